"""The plan of the house: who imports whom, what an import costs, and which names are public."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import robustsim
from tests.conftest import ROOT

PACKAGE = Path(robustsim.__file__).parent

# Each room, and the rooms it may import. Nothing imports the terminal.
ANYBODY = {"errors", "lazy", "jsonl"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "lazy": set(),
    "jsonl": set(),
    "pages": set(),
    "images": set(),
    "encoders": {"images"},
    "vectors": set(),
    "distances": {"images", "vectors"},
    "onnx": {"images", "encoders", "vectors"},
    "metric": {"images", "encoders", "distances", "onnx", "vectors"},
    "default": {"images", "encoders", "metric"},
    "search": {"pages", "images", "encoders", "metric", "onnx", "attacks"},
    "explain": {"pages", "images", "encoders", "distances", "metric", "attacks", "vectors"},
    "compat": {"images", "encoders", "distances", "metric", "explain", "vectors"},
    "attacks": set(),
    "data": {"images"},
    "baselines": {"images", "encoders", "metric"},
    "integrations": {"images", "encoders", "metric"},
    "evaluation": {"images", "encoders", "distances", "metric", "attacks", "data", "baselines", "explain", "search"},
    "training": {"images", "encoders", "metric", "attacks", "data"},
    "cli": {
        "onnx",
        "images",
        "encoders",
        "metric",
        "search",
        "attacks",
        "data",
        "baselines",
        "evaluation",
        "training",
        "explain",
    },
    "__main__": {"cli"},
}
# The rooms inside the wide ones, from the ground up: each imports those below it and none beside it.
FLOORS = {
    "attacks": [{"engine", "rounding"}, {"objectives", "methods"}, {"batches"}, {"masking"}],
    "evaluation": [
        {"subjects", "statistics"},
        {"ranking"},
        {"tasks", "reports"},
        {"running"},
        {"tails", "sheet", "impostors"},
        {"run", "calibration", "inversion", "attention", "retrieval", "copies", "detection"},
    ],
    "search": [
        {"engines", "formats", "partial", "scan", "stamps"},
        {"duplicates", "embedding", "storage"},
        {"rates"},
        {"index"},
        {"detection", "scale"},
    ],
    "training": [{"sources", "methods"}, {"recipes"}, {"loop"}, {"tasks"}, {"run", "estimate"}],
}
LONGEST = 400  # lines of a file


def dotted(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in PACKAGE.rglob("*.py")}


def import_nodes(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


# Where a package's public names live: they are imported from it, and defined elsewhere.
HOMES = {
    f"{package}.{name}": home
    for package, path in MODULES.items()
    if path.name == "__init__.py"
    for home, name in import_nodes(path)
    if home != package
}


def imported_modules(module):
    """The modules of the package that one imports, at its head or later; names of packages count where they live."""
    for source, name in import_nodes(MODULES[module]):
        whole = f"{source}.{name}"
        while whole in HOMES:
            whole = f"{HOMES[whole]}.{name}"
        found = next((one for one in (whole, whole.rpartition(".")[0]) if one in MODULES), None)
        if found and found != "robustsim":
            yield found


def inside(module, depth):
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else None


def test_rooms_import_only_whom_they_may():
    for module in MODULES.keys() - {"robustsim"}:
        own = inside(module, 1)
        assert own in ALLOWED, f"{module}: a room that the plan does not know"
        for other in imported_modules(module):
            assert inside(other, 1) in ALLOWED[own] | ANYBODY | {own}, f"{module} may not import {other}"


def test_rooms_inside_rooms_import_downwards():
    for house, floors in FLOORS.items():
        level = {room: number for number, rooms in enumerate(floors) for room in rooms}
        for module in MODULES:
            if inside(module, 1) != house or inside(module, 2) is None:
                continue
            own = inside(module, 2)
            assert own in level, f"{module}: a room that the plan does not know"
            for other in imported_modules(module):
                if inside(other, 1) == house:
                    below = inside(other, 2)
                    assert below == own or level[below] < level[own], f"{module} imports {other}, which is not below it"


def test_no_file_imports_in_a_circle():
    from graphlib import TopologicalSorter

    # Packages import their public names when these are asked for, and are no part of an order.
    files = {module for module, path in MODULES.items() if path.name != "__init__.py"}
    graph = {module: (set(imported_modules(module)) & files) - {module} for module in files}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_room_is_entered_by_a_name_made_up_at_run_time():
    """What imports by a string escapes the tests above: `lazy` alone does, for what they follow."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                written = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
                assert module == "robustsim.lazy" or not str(written).startswith(("robustsim", ".")), module


def test_no_file_is_too_long():
    for module, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= LONGEST, module


def test_only_hub_touches_the_network():
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("hub.py", "info.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {"huggingface_hub", "requests", "httpx", "urllib", "socket"} & {name.split(".")[0] for name in names}
            assert not bad, f"{path} imports {bad}"


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_robustsim_is_light():
    assert not {"torch", "numpy", "PIL", "typer", "huggingface_hub"} & modules_after("import robustsim")
    assert "torch" not in modules_after("import robustsim; robustsim.list_models()")
    assert not {"torch", "torchmetrics"} & modules_after("import robustsim.integrations")
    assert not {"torch", "lance", "pyarrow"} & modules_after("import robustsim.search")


def test_the_bundled_model_needs_torch_alone():
    files = [str(ROOT / "examples" / name) for name in ("chelsea.png", "coffee.png")]
    code = f"import robustsim; robustsim.distance(*{files!r})"
    heavy = {"torchvision", "timm", "open_clip", "peft", "huggingface_hub", "transformers", "typer", "pyarrow"}
    assert not heavy & modules_after(code)


@pytest.mark.parametrize(
    "words",
    [
        ("compare",),
        ("explain",),
        ("evaluate", "2afc"),
        ("data", "check"),
        ("train",),
        ("finetune",),
        ("index",),
        ("search",),
        ("detect",),
        ("filter",),
        ("benchmark",),
    ],
    ids=" ".join,
)
def test_help_needs_no_torch(words):
    code = (
        f"import sys; sys.argv = ['robustsim', *{words!r}, '--help']\n"
        "from robustsim.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert not {"torch", "numpy", "PIL"} & modules_after(code)


@pytest.mark.parametrize(
    "name",
    [
        "robustsim",
        "robustsim.images",
        "robustsim.encoders",
        "robustsim.search",
        "robustsim.explain",
        "robustsim.compat",
        "robustsim.attacks",
        "robustsim.baselines",
        "robustsim.integrations",
        "robustsim.data",
        "robustsim.evaluation",
        "robustsim.training",
    ],
)
def test_public_names_are_sorted_and_there(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None
        assert public in dir(module)
        # The import of a module puts it into its package, over a function of the same name.
        assert public not in {path.stem for path in Path(module.__file__).parent.iterdir()}, public
    with pytest.raises(AttributeError, match="no attribute 'nothing_here'"):
        _ = module.nothing_here


def test_the_face_of_the_package_is_small():
    assert len((PACKAGE / "__init__.py").read_text().splitlines()) <= 40
    assert robustsim.__all__ == [
        "EncoderCard", "RobustSim", "RobustSimError", "distance", "embed", "from_onnx", "list_models", "similarity",
    ]  # fmt: skip


def test_errors_are_one_tree_and_drawn():
    from robustsim import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(one, errors.RobustSimError) for one in classes)
    assert all(one.__name__ in errors.__doc__ for one in classes)


def test_the_default_is_named_in_one_place():
    from robustsim.encoders.card import DEFAULT_MODEL

    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value == DEFAULT_MODEL:
                assert path.name == "card.py", path


def test_what_ships_is_credited():
    import hashlib
    import json

    credited = (ROOT / "examples" / "CREDITS.md").read_text()
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".png", ".jpg"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in credited, path.name
    for folder in (PACKAGE / "encoders" / "bundled").iterdir():
        card = json.loads((folder / "config.json").read_text())
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == card["weights_sha256"]
        assert card["license"] in (folder / "NOTICE").read_text().replace("Apache License 2.0", "Apache-2.0")

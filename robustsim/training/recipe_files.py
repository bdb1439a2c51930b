"""Recipes in files: the bundled ones and the user's own, one built on another, with changes from the command line."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias, Union

import yaml
from pydantic import BaseModel, ValidationError

from robustsim.encoders.card import did_you_mean
from robustsim.errors import InputError, RecipeError
from robustsim.training.recipe import FinetuneRecipe, TrainRecipe

Recipe: TypeAlias = Union[TrainRecipe, FinetuneRecipe]

KINDS: dict[str, type[TrainRecipe] | type[FinetuneRecipe]] = {"adversarial": TrainRecipe, "2afc": FinetuneRecipe}

# Where a value came from: a file and its line, or the command line.
_Places: TypeAlias = dict[tuple[str | int, ...], str]
_Key: TypeAlias = tuple[str | int, ...]


def list_recipes() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(_bundled())


def load_recipe(name: "str | os.PathLike[str]", changes: Sequence[str] = ()) -> Recipe:
    """A recipe, checked, with everything that it is built on.

    Args:
        name: a bundled recipe (:func:`list_recipes`), or a file that ends in ``.yaml`` or ``.yml``.
        changes: ``key=value``, the key with dots (``attack.eps=2/255``), the value as YAML.

    Raises:
        InputError: no such recipe; the nearest names are given.
        RecipeError: unknown keys or values that do not fit; the message names the file, the line and the nearest key.
    """
    data, places = _read(os.fspath(name), ())
    for change in changes:
        _set(data, places, change)
    return _build(data, places, os.fspath(name))


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with every value written out; :func:`load_recipe` reads it back."""
    values = recipe.model_dump(mode="json", exclude={"base"}, exclude_none=True)
    order = ["name", "description", "kind", "encoder", *values]
    text: str = yaml.safe_dump({key: values[key] for key in order if key in values}, sort_keys=False, width=100)
    return text


def describe(name: str) -> str:
    """A bundled recipe's own words on itself."""
    return load_recipe(name).description


def _bundled() -> dict[str, Any]:
    folder = files("robustsim.training").joinpath("recipes")
    return {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}


def _read(name: str, above: tuple[str, ...]) -> tuple[dict[str, Any], _Places]:
    bundled = _bundled()
    if name in bundled:
        text, where, short = bundled[name].read_text(encoding="utf-8"), f"recipe {name!r}", name
    elif name.endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            text, where, short = path.read_text(encoding="utf-8"), name, path.stem
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise InputError(f"cannot read the recipe {name!r}: {reason}") from None
    else:
        raise InputError(
            f"no recipe is called {name!r}{did_you_mean(name, list(bundled))} `robustsim recipes` lists them; "
            "a file must end in .yaml"
        )
    if name in above:
        raise RecipeError(f"{where} is built on itself: {' -> '.join((*above, name))}")
    places: _Places = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _plain(node, places, where) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{line} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{where} holds no keys: a recipe is a mapping, such as `encoder: clip-vit-b-32`")
    data.setdefault("name", short)
    base = data.get("base")
    if base is None:
        return data, places
    if not isinstance(base, str):
        raise RecipeError(f"{places[('base',)]}: base must be the name of a recipe or a file, not {base!r}")
    beside = Path(name).parent / base if name not in bundled and base.endswith((".yaml", ".yml")) else base
    below, from_below = _read(os.fspath(beside), (*above, name))
    below.pop("description", None)
    return _over(below, data), {**from_below, **places}


def _plain(node: Any, places: _Places, where: str, key: _Key = ()) -> Any:
    """A YAML node as plain data, the line of each value noted."""
    places[key] = f"{where}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            if name in out:
                raise RecipeError(f"{where}, line {name_node.start_mark.line + 1}: the key {name!r} is there twice")
            out[name] = _plain(value_node, places, where, (*key, name))
            places[(*key, name)] = f"{where}, line {name_node.start_mark.line + 1}"
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, places, where, (*key, index)) for index, item in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, key by key; another method takes none of the options of the one below."""
    out = dict(below)
    for key, value in above.items():
        mine, theirs = _named(key, value), _named(key, below.get(key))
        if (
            isinstance(mine, dict)
            and isinstance(theirs, dict)
            and mine.get("name", theirs.get("name")) == theirs.get("name")
        ):
            out[key] = _over(theirs, mine)
        else:
            out[key] = mine
    return out


def _named(key: str, value: Any) -> Any:
    return {"name": value} if key in ("method", "adapter") and isinstance(value, str) else value


def _set(data: dict[str, Any], places: _Places, change: str) -> None:
    """Enter ``key=value`` from the command line."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set wants key=value, such as attack.eps=2/255, not {change!r}")
    where = f"--set {change}"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        names = tuple(key.split("."))
        value = None if node is None else _plain(node, {}, where)
    except yaml.YAMLError:
        raise InputError(
            f"{where}: the value is not valid YAML; put text with a colon or a bracket in quotes"
        ) from None
    here: Any = data
    for name in names[:-1]:
        inner = here.get(name) if isinstance(here, dict) else None
        inner = _named(name, inner)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {name!r} has no keys below it")
        here[name] = inner
        here = inner
    here[names[-1]] = _over({names[-1]: here.get(names[-1])}, {names[-1]: value})[names[-1]]
    # Alternatives exclude each other, and the command line decides.
    if names in (("steps",), ("epochs",)):
        data.pop({"steps": "epochs", "epochs": "steps"}[names[0]], None)
    places[names] = where


def _build(data: dict[str, Any], places: _Places, name: str) -> Recipe:
    kind = data.get("kind", "adversarial")
    if kind not in KINDS:
        where = places.get(("kind",), name)
        raise RecipeError(f"{where}: kind is {kind!r}; it is one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        lines = [_explain(one, places, KINDS[kind], name) for one in error.errors()]
        raise RecipeError("; ".join(lines)) from None


def _explain(error: Any, places: _Places, model: type[BaseModel], name: str) -> str:
    """One problem: where it is, what was seen, and the nearest key."""
    key: _Key = tuple(error["loc"])
    nearest = key
    while nearest and nearest not in places:
        nearest = nearest[:-1]
    where = places.get(nearest, f"recipe {name!r}")
    spelled = ".".join(map(str, key))
    if error["type"] == "extra_forbidden":
        known = _keys(model, key[:-1])
        return f"{where}: unknown key {spelled!r}{did_you_mean(str(key[-1]), known) or '; known: ' + ', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: {spelled!r} is missing"
    message = str(error.get("ctx", {}).get("error", error["msg"]))
    seen = error.get("input")
    shown = "" if isinstance(seen, dict) or error["type"] == "value_error" else f", not {seen!r}"
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    return f"{where}: {spelled + ': ' if spelled else ''}{message}{shown}"


def _keys(model: Any, path: _Key) -> list[str]:
    """The keys that a section may have."""
    for step in path:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel))
    return [name for name in model.model_fields if name != "kind"]

"""The README and the pages: their Python blocks run, top to bottom, and so do their robustsim commands."""

import re
import shlex
import shutil
import sys

import pytest

from tests.conftest import EXAMPLES, ROOT

# The drop-ins say once how they differ, which is no error of the page that shows them.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::robustsim.compat.CompatWarning"),
]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<skip><!-- not run: needs [^>]+ -->\n)?^```(?P<kind>python|sh)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(page):
    return [(match["kind"], match["text"], bool(match["skip"])) for match in BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    from robustsim.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("gc.freeze", lambda: None)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    shutil.copy(ROOT / "README.md", tmp_path)
    names, ran = {}, 0
    for kind, text, skip in blocks(page):
        if skip:
            continue
        if kind == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
            ran += 1
            continue
        for line in text.splitlines():
            if not line.startswith("robustsim "):
                continue  # pip and pytest: .ci/run runs these
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            try:
                main()
            except SystemExit as stop:
                assert not stop.code, line  # noqa: PT017
            ran += 1
    assert ran


def test_few_blocks_are_left_out_and_each_says_why():
    skipped = [text for page in PAGES for _, text, skip in blocks(page) if skip]
    assert len(skipped) <= 9
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.M)) for page in PAGES)
    assert fences == sum(len(blocks(page)) for page in PAGES), "a fence of a kind that is not run"


def test_readme_names_every_model():
    from robustsim import list_models

    readme = (ROOT / "README.md").read_text()
    assert [name for name in list_models() if f"`{name}`" not in readme] == []


def tables(page, since=""):
    """{first cell of a row: the other cells}, of the first table that has such a row; bold figures as plain ones."""
    found = {}
    for line in (ROOT / "docs" / page).read_text().partition(since or "#")[2].splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name.replace("**", ""), [cell.strip("*") for cell in cells])
    return found


def test_figures_of_the_first_page_are_those_of_the_others():
    from robustsim.encoders import load_card

    shown, measured = tables("index.md"), tables("benchmarks.md", since="## More steps, more items")
    for head in ("measured on materials, in %", "published for NIGHTS, in %"):
        assert shown.pop(head) == ["agrees", "attacked"]
    for name, row in (
        ("`l2`, of pixels", "l2"),
        ("SSIM", "ssim"),
        ("LPIPS (Alex)", "lpips-alex"),
        ("`lite-clean`", "lite-clean"),
        ("`lite-2026.11`, the default before `lite`", "lite-2026.11"),
    ):
        clean, _, attacked = (cell.split()[0] for cell in measured[row])
        assert shown.pop(name) == [clean, attacked]
    for name in ("clip-convnext-base", "rclip-t-convnext-base"):
        scores = load_card(name).scores
        assert shown.pop(f"`{name}`") == [str(scores["nights_clean"]), str(scores["nights_linf"])]
    # Of the same table of the paper; the package has no card of these.
    assert sorted(shown) == ["DreamSim, ensemble", "LipSim, margin 0.5", "R-LPIPS"]

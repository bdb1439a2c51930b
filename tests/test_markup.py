"""Docstrings are in Markdown, and the check of the built pages finds what is not rendered."""

import ast
import importlib.util
import re

import pytest

from tests.conftest import ROOT

# Markup of Sphinx and reStructuredText, as it stands in a docstring.
MARKUP = {
    "role": re.compile(r":[a-z:]+:`"),
    "double backticks": re.compile(r"(?<!`)``(?!`)"),
    "literal block": re.compile(r"::$", re.M),
    "table": re.compile(r"^ *[=-]{3,}(?: +[=-]{3,})* *$", re.M),
    "directive": re.compile(r"^ *\.\. \w+", re.M),
    "link": re.compile(r"`_{1,2}(?!\w)"),
}


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "scripts" / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raw(text):
    return [kind for kind, pattern in MARKUP.items() if pattern.search(text)]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("See :meth:`embed`.", ["role"]),
        ("See :py:class:`~robustsim.RobustSim`.", ["role"]),
        ("One of ``alex`` and ``vgg``.", ["double backticks"]),
        ("So it goes::\n\n    x = 1\n", ["literal block"]),
        ("=====  ====\na      b\n=====  ====", ["table"]),
        ("A title\n-------\n", ["table"]),
        (".. note:: never", ["directive"]),
        ("`The paper <https://arxiv.org>`_", ["link"]),
        ("`hf:NAME:CONFIG`, `values[::2]`, a ratio of 3:4:`x`, (N, 3) -> (N,), `_embed`", []),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = y[::-1]\n```\n", []),
    ],
)
def test_markup_is_told_from_text(text, kinds):
    assert raw(text) == kinds


def test_what_is_raised_has_a_name():
    """An entry without one is dropped from the built page, with a warning."""
    for path in sorted((ROOT / "robustsim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                section = re.search(r"^Raises:\n((?:    .*\n?|\n)+)", ast.get_docstring(node) or "", re.M)
                for line in section[1].splitlines() if section else ():
                    if re.match(r"    \S", line):
                        assert re.match(r"    \w+(, \w+)*: ", line), f"{path}, {node.name}: {line}"


def test_docstrings_have_no_markup_that_the_site_shows_raw():
    found = []
    for path in sorted((ROOT / "robustsim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                found += [f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}: {kind}" for kind in raw(text)]
    assert found == []


@pytest.mark.parametrize(
    ("page", "kinds"),
    [
        ("<p>See :meth:<code>embed</code>.</p>", ["role"]),
        ("<p>:class:<code>Task</code> first</p>", ["role"]),
        ("<p>See <code>:meth:`embed`</code>.</p>", ["role"]),
        ("<p>So it goes::</p><pre><code>x = 1</code></pre>", ["literal block"]),
        ("<p>One of `alex</p>", ["backtick"]),
        ("<p>======\na b</p>", ["table"]),
        ("<p>[embed][robustsim.RobustSim.embed]</p>", ["reference"]),
        ("<p>one<br>two :func:<code>x</code><img src='a'> three</p>", ["role"]),
        ("<ul><li>one<li>two::</ul>", ["literal block"]),
        ("<pre><code>x = values[::2]; y = {'a':b, 'c':d}</code></pre><p>at 12:30:15, a:b:c, (N, 3): so</p>", []),
        ("<head><title>a::b</title></head><script>a::b</script><style>p::before {}</style><p>text</p>", []),
        ("<p>before<code>a::b</code>after</p>", []),
    ],
)
def test_pages_are_looked_through(check, page, kinds):
    assert [line.partition(":")[0] for line in check.raw_markup(page)] == kinds


def test_signatures_that_are_not_wrapped_are_found(check):
    def page(signature):
        return f"<div class='doc-signature highlight'><pre><code>{signature}</code></pre></div><p>{'long ' * 40}</p>"

    long = "embed(" + ", ".join(f"<span>name{n}</span>: int" for n in range(9)) + ")"
    assert [line.partition(" of")[0] for line in check.raw_markup(page(long))] == ["signature"]
    assert check.raw_markup(page(long.replace(", ", ",\n    "))) == []


def test_the_check_fails_where_it_finds_something_or_nothing_to_look_at(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_site.py", str(tmp_path)])
    assert check.main() == 1
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "index.html").write_text("<p>fine</p>")
    assert check.main() == 0
    (tmp_path / "api" / "index.html").write_text("<p>So it goes::</p>")
    capsys.readouterr()
    assert check.main() == 1
    assert capsys.readouterr().out == "api/index.html: literal block: So it goes::\n"

"""`robustsim dedup`: what it tells, the page, and what becomes of files."""

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFilter

from robustsim import RobustSim
from robustsim.errors import InputError
from robustsim.images.files import from_printable, printable
from robustsim.search import Index
from robustsim.search.duplicates import act, moving, page
from robustsim.search.duplicates.page import write_page
from robustsim.search.duplicates.report import DuplicatesReport, Group, Member
from tests import trainings
from tests.conftest import EXAMPLES

pytest.importorskip("lance")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small():
    """A model whose distances are large: what was saved anew is within 0.02, and others are not."""
    return RobustSim(trainings.encoder())


@pytest.fixture
def folder(tmp_path):
    """Two pictures, one of them three times, in small and once more as it is; a third one; and a file that is none."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("chelsea.png", "coffee.png"):
        with Image.open(EXAMPLES / name) as image:
            image = image.convert("RGB").resize((90, 60))
            image.save(root / name)
            image.filter(ImageFilter.GaussianBlur(0.3)).resize((60, 40)).save(root / "sub" / f"small {name}")
    shutil.copy(root / "chelsea.png", root / "sub" / "again.png")
    with Image.open(EXAMPLES / "rocket.jpg") as image:
        image.resize((80, 50)).save(root / "rocket.png")
    (root / "bad.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture
def clean():
    encoder = trainings.encoder(seed=1)
    encoder.card = replace(encoder.card, name="small-clean")
    return RobustSim(encoder)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Where the lock is, too: others may be acting on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def dedup(run, small, clean, monkeypatch):
    made = {"small": small, "small-clean": clean}
    monkeypatch.setattr(RobustSim, "from_pretrained", lambda name, **options: made[name])
    monkeypatch.setattr("robustsim.cli.output.DEFAULT_MODEL", "small")
    return lambda *words: run("dedup", *words, "--by", "small", "--distance", "0.05")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


ALL = ["bad.jpg", "chelsea.png", "coffee.png", "rocket.png", "sub/again.png", "sub/small chelsea.png"]
ALL += ["sub/small coffee.png"]
LEFT = ["bad.jpg", "chelsea.png", "coffee.png", "rocket.png"]


def test_it_says_what_it_would_do(dedup, folder, tmp_path, monkeypatch):
    code, out, err = dedup(folder, "-o", tmp_path / "groups.jsonl")
    assert code == 0
    assert names(folder) == ALL
    assert "6 pictures, 2 groups; 3 files beside those that are kept" in err
    assert "of these, 1 have the same content as the kept one, 0 were found by a line that was made to hold" in err
    assert "bad.jpg" in err
    assert "identical" in out
    assert "within small 0.0500. Of these lines, none was made to hold" in err
    groups = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    kept = {group["keep"]["path"]: [one["path"] for one in group["others"]] for group in groups}
    assert kept == {
        str(folder / "chelsea.png"): [str(folder / "sub/again.png"), str(folder / "sub/small chelsea.png")],
        str(folder / "coffee.png"): [str(folder / "sub/small coffee.png")],
    }
    assert [one["found_by"] for one in groups[0]["others"]] == [["identical"], ["small"]]
    assert 0 < groups[0]["others"][1]["distances"]["small"] <= 0.05
    assert (groups[0]["keep"]["width"], groups[0]["keep"]["height"]) == (90, 60)
    # Once more: nothing is embedded; and as JSON, with another rule.
    monkeypatch.setattr(RobustSim, "from_pretrained", None)
    code, out, _ = dedup(folder, "--keep", "smallest", "--json")
    found = json.loads(out)
    assert code == 0
    assert [Path(group["keep"]["path"]).name for group in found["groups"]] == ["small chelsea.png", "small coffee.png"]
    assert found["thresholds"] == {"small": 0.05}
    assert found["index"].startswith(str(tmp_path / "cache"))


def test_an_index(run, folder, small, tmp_path):
    index = Index.create(tmp_path / "index", small)
    index.add(folder, label="mine", tenant="a")
    code, out, _ = run("dedup", tmp_path / "index", "--distance", "small=0.05", "--distance", "phash=0.3", "--json")
    found = json.loads(out)
    assert code == 0
    assert len(found["groups"]) == 2
    assert found["thresholds"] == {"small": 0.05, "phash": 0.3}
    assert found["groups"][0]["keep"]["label"] == "mine"
    for words in (("--label", "other"), ("--tenant", "b")):
        code, out, _ = run("dedup", tmp_path / "index", "--distance", "0.05", *words, "--json")
        assert (code, json.loads(out)["groups"]) == (0, [])
    report = Index.open(tmp_path / "index").duplicates(0.05)
    assert [len(group) for group in report.groups] == [3, 2]
    assert report.version == index.version
    with pytest.raises(InputError, match="does not compare by 'other'"):
        index.duplicates({"other": 0.1})
    with pytest.raises(InputError, match=r"exclude each other|give one"):
        index.duplicates(0.1, 1e-5)


def test_views_are_those_of_a_picture(folder, small, tmp_path):
    """A mirrored copy is near a view of it; a picture's own views, as near as they are, are no duplicates of it."""
    with Image.open(folder / "coffee.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    whole, viewed = Index.create(tmp_path / "whole", small), Index.create(tmp_path / "views", small, views=["mirror"])
    found = []
    for index in (whole, viewed):
        index.add(folder)
        report = index.duplicates(0.02)
        assert report.compared == 7
        found.append({name for pair in report.pairs() for name in map(os.path.basename, pair.paths)})
        assert all(one != two for pair in report.pairs() for one, two in [pair.ids])
    assert "mirrored.png" not in found[0]
    assert {"mirrored.png", "coffee.png"} <= found[1]


@pytest.mark.parametrize(
    "words",
    [
        ("--move", "x", "--delete"),
        ("--delete",),
        ("--keep", "best"),
        ("--distance", "far"),
        ("--distance", "1", "--distance", "2"),
        ("--distance", "phash=1", "--by", "phash"),
        ("--distance", "1", "--by", "all"),
        ("--distance", "1", "--label", "mine"),
        ("--distance", "1", "--false-positives", "1e-5"),
        ("--distance", "small=0.2", "--distance", "small=0.9"),
        ("--distance", "1", "-o", "groups.PNG"),
        ("--distance", "1", "--html", "page.webp"),
    ],
)
def test_wrong_usage(run, folder, words):
    assert run("dedup", folder, *words)[0] == 2


def test_what_cannot_be_done(run, dedup, folder, tmp_path):
    assert dedup(tmp_path / "none")[0] == 1
    (tmp_path / "empty").mkdir()
    code, _, err = dedup(tmp_path / "empty")
    assert code == 1
    assert "holds no images" in err
    code, _, err = dedup(folder, "--move", folder / "sub" / "away")
    assert code == 1
    assert "whose pictures are compared" in err
    assert names(folder) == ALL


def test_pictures_are_not_written_over(dedup, folder, tmp_path):
    """By whatever name they have."""
    (folder / "coffee.png").rename(tmp_path / "coffee")
    shutil.copy(tmp_path / "coffee", tmp_path / "before")
    for option in ("-o", "--html"):
        code, _, err = dedup(folder, option, tmp_path / "coffee")
        assert code == 2
        assert "picture" in err
    assert (tmp_path / "coffee").read_bytes() == (tmp_path / "before").read_bytes()


def test_what_is_an_index(dedup, folder, tmp_path):
    """Not every folder with a seal; a name that no file can have is no error of the output; what can be made anew."""
    (folder / "seal.json").write_text('{"animal": "seal"}')
    code, _, err = dedup(folder)
    assert (code, "3 files beside those that are kept" in err) == (0, True)
    code, _, err = dedup("x" * 300)
    assert (code, "xxx' is not a folder" in err) == (1, True)
    (kept,) = (path for path in (tmp_path / "cache/robustsim/dedup").iterdir() if path.is_dir())
    (kept / "seal.json").write_text("{}")
    code, _, err = dedup(folder)
    assert code == 1
    assert "is damaged: its seal.json cannot be understood. It is one that dedup keeps in the cache" in err
    assert f"delete the folder '{kept}'" in err
    code, _, err = dedup(folder, "--index", kept)
    assert code == 1
    assert "delete" not in err
    shutil.rmtree(kept)
    assert dedup(folder)[0] == 0


def test_delete(dedup, folder):
    code, _, err = dedup(folder, "--delete")
    assert code == 0
    assert names(folder) == LEFT
    assert "3 files" in err
    code, _, err = dedup(folder, "--delete")
    assert code == 0
    assert "3 pictures, 0 groups" in err


def test_move_keeps_places_and_overwrites_nothing(dedup, folder, tmp_path):
    away = tmp_path / "away"
    (away / "sub").mkdir(parents=True)
    (away / "sub" / "again.png").write_bytes(b"another one")
    content = (folder / "sub" / "small chelsea.png").read_bytes()
    code, _, err = dedup(folder, "--move", away)
    assert code == 1
    assert "left alone" in err
    assert "another file is there already" in err
    assert names(folder) == sorted([*LEFT, "sub/again.png"])
    assert names(away) == ["moved.jsonl", "sub/again.png", "sub/small chelsea.png", "sub/small coffee.png"]
    assert (away / "sub" / "small chelsea.png").read_bytes() == content
    assert (away / "sub" / "again.png").read_bytes() == b"another one"
    lines = [json.loads(line) for line in (away / "moved.jsonl").read_text().splitlines()]
    assert {"from": str(folder / "sub/small coffee.png"), "to": str(away / "sub/small coffee.png")}.items() <= lines[
        -1
    ].items()
    (away / "sub" / "again.png").unlink()
    assert dedup(folder, "--move", away)[0] == 0
    assert names(folder) == LEFT


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize(
    ("step", "links"),
    [("journal", True), ("copy", False), ("link", True), ("link", False), ("unlink", True), ("unlink", False)],
)
def test_an_interrupted_move_is_repeated(dedup, folder, tmp_path, monkeypatch, step, links):
    """Wherever it ends, each file is in one place at least, as it was, and the same command ends as it would have."""
    away = tmp_path / "away"
    contents = {name: (folder / name).read_bytes() for name in ALL}
    if not links:
        monkeypatch.setattr(os, "link", _raises(OSError(errno.EXDEV, "other file system")))
    unlink = os.unlink
    steps = {
        "journal": (moving.Target, "_write", _raises(Killed())),
        "copy": (shutil, "copystat", _raises(Killed())),
        "link": (moving, "_remove", _raises(Killed())),
        "unlink": (os, "unlink", lambda path, **how: _stop() if folder in Path(path).parents else unlink(path, **how)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*steps[step])
        with pytest.raises(Killed):
            dedup(folder, "--move", away)
    there = {name: [root / name for root in (folder, away) if (root / name).exists()] for name in ALL}
    assert all(path.read_bytes() == contents[name] for name, places in there.items() for path in places)
    assert all(there.values())
    with (away / "moved.jsonl").open("a") as journal:
        journal.write('{"from": "cut o')  # and as a line may be
    assert dedup(folder, "--move", away)[0] == 0
    assert names(folder) == LEFT
    assert names(away) == ["moved.jsonl", "sub/again.png", "sub/small chelsea.png", "sub/small coffee.png"]
    assert all((away / name).read_bytes() == contents[name] for name in names(away)[1:])


def _raises(error):
    def raises(*words, **options):
        raise error

    return raises


def _stop():
    raise Killed


@pytest.fixture
def groups(folder, small, tmp_path):
    index = Index.create(tmp_path / "index", small)
    index.add(folder)
    return index.duplicates(0.05).groups


def removed(groups, **options):
    """Delete; what was told of each file by its name."""
    told = {}
    left = act.delete(groups, tell=lambda done: told.update({Path(done.path).name: done.left}), **options)
    assert left == sum(why is not None for why in told.values())
    return told


def test_never_the_last_copy(groups, folder):
    """The kept one is gone, another one now, or the same file as those that are to go."""
    kept = folder / "chelsea.png"
    content = kept.read_bytes()
    kept.unlink()
    told = removed(groups[:1])
    assert len(told) == 2
    assert all("the one that is kept cannot be read: No such file" in why for why in told.values())
    shutil.copy(EXAMPLES / "rocket.jpg", kept)
    assert all("has changed since it was indexed" in why for why in removed(groups[:1]).values())
    kept.unlink()
    kept.symlink_to(folder / "sub" / "again.png")
    told = removed(groups[:1])
    assert "the same file" in told["again.png"]
    assert told["small chelsea.png"] is None  # which is no copy of it
    kept.unlink()
    os.link(folder / "sub" / "again.png", kept)
    assert "the same file" in removed(groups[:1])["again.png"]
    assert (folder / "sub" / "again.png").read_bytes() == content
    kept.unlink()
    kept.write_bytes(content)  # at another time: it is what it was
    assert removed(groups[:1])["again.png"] is None


def test_what_has_changed_is_left_alone(groups, folder):
    again, small = folder / "sub" / "again.png", folder / "sub" / "small chelsea.png"
    stamp = os.stat(small)
    os.utime(again)
    data = bytearray(small.read_bytes())
    data[-1] ^= 1
    small.write_bytes(data)
    os.utime(small, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # by its content alone
    other = folder / "sub" / "small coffee.png"
    content = other.read_bytes()
    other.unlink()
    (folder / "sub" / "real.png").write_bytes(content)
    other.symlink_to(folder / "sub" / "real.png")
    told = removed(groups)
    assert told == {
        "again.png": "it has changed since it was indexed",
        "small chelsea.png": "it has changed since it was indexed",
        "small coffee.png": "it is no regular file, but a link or the like",
    }
    assert removed(groups, root=folder / "elsewhere").keys() == told.keys()
    assert {"sub/again.png", "sub/small chelsea.png", "sub/small coffee.png", "sub/real.png"} <= set(names(folder))


def test_outside_of_the_folder(groups, folder):
    told = removed(groups, root=folder / "elsewhere")
    assert all("lies outside" in why for why in told.values())
    assert names(folder) == ALL


def test_a_file_of_two_tenants(folder, small, tmp_path):
    """One who does not have the kept one keeps the other."""
    index = Index.create(tmp_path / "index", small)
    index.add(folder, tenant="a")
    index.add([folder / "sub" / "again.png"], tenant="b")
    groups = index.duplicates(0.05).groups
    assert [len(group) for group in groups] == [3, 2]
    (again,) = (one for one in groups[0].others if one.path.endswith("again.png"))
    assert again.tenants == ("a", "b")
    told = removed(index.duplicates(0.05, tenant="a").groups)
    assert told == {
        "again.png": "it belongs to a tenant who does not have the one that is kept",
        "small chelsea.png": None,
        "small coffee.png": None,
    }


ODD = ["line\nbreak.png", "<b>&amp;\"'.png", "\u202egnp.png", "-rf.png", "back\\slash \\x41.png", "ünï 🐈.png"]


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_odd_names(dedup, tmp_path):
    root, away = tmp_path / "odd", tmp_path / "away"
    root.mkdir()
    odd = [*ODD]
    try:
        (root / os.fsdecode(b"\xff.png")).touch()
        odd.append(os.fsdecode(b"\xff.png"))
    except OSError:
        pass  # a file system of UTF-8 alone
    with Image.open(EXAMPLES / "coffee.png") as image:
        small = image.convert("RGB").resize((40, 30))
    small.save(root / "0.png")
    for name in odd:
        shutil.copy(root / "0.png", root / name)
    odd_root = tmp_path / os.fsdecode(b"odd \xff")
    if len(odd) > len(ODD):
        root.rename(odd_root)
        root = odd_root
    code, _, _ = dedup(root, "--move", away, "--html", tmp_path / "page.html")
    assert code == 0
    assert os.listdir(root) == ["-rf.png"]  # the first by its name, as all are the same
    assert set(os.listdir(away)) == {*odd, "0.png", "moved.jsonl"} - {"-rf.png"}
    moved = [json.loads(line)["from"] for line in (away / "moved.jsonl").read_text().splitlines()]
    assert {from_printable(name) for name in moved} == {str(root / name) for name in ["0.png", *odd]} - {
        str(root / "-rf.png")
    }
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert {one["data-path"] for one in page.inputs} == {printable(root / name) for name in ["0.png", *odd]}
    assert "\\u202e" in page.text
    assert "\u202e" not in page.text
    assert "line\\nbreak.png" in page.text
    assert "b" not in page.tags


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inputs, self.images, self.references, self.ids, self.labels = set(), [], [], [], [], []
        self.sections, self.text, self.open = 0, "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert len(found) == len(attributes)
        self.tags.add(tag)
        if tag not in ("meta", "img", "input", "br", "link", "wbr"):
            self.open.append(tag)
        self.references += [found[name] for name in ("src", "href", "action", "srcset") if found.get(name)]
        if "id" in found:
            self.ids.append(found["id"])
        self.labels += [found["aria-labelledby"]] if "aria-labelledby" in found else []
        if tag == "input" and "data-path" in found:
            self.inputs.append(found)
        if tag == "img":
            self.images.append(found)
        self.sections += tag == "section"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def test_the_page(dedup, folder, tmp_path, monkeypatch):
    code, _, _ = dedup(folder, "--html", tmp_path / "page.html")
    assert code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"main", "header", "h1", "h2", "fieldset", "legend", "title"} <= page.tags
    # Nothing from anywhere else.
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in page.references)
    assert not {"link", "iframe", "object", "base"} & page.tags
    assert "default-src 'none'" in text
    assert all(word not in text for word in ("http://", "https://", "url(", "@import"))
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    # All groups, one of each marked, every picture with a text.
    assert page.sections == 2
    assert sorted(one["data-path"] for one in page.inputs) == sorted(
        str(folder / name) for name in ALL if name not in ("bad.jpg", "rocket.png")
    )
    checked = [one for one in page.inputs if "checked" in one]
    assert [Path(one["data-path"]).name for one in checked] == ["chelsea.png", "coffee.png"]
    assert len({one["name"] for one in page.inputs}) == 2
    assert [one["alt"] for one in page.images] == [
        "chelsea.png", "again.png", "small chelsea.png", "coffee.png", "small coffee.png",
    ]  # fmt: skip
    assert all(one["loading"] == "lazy" and int(one["width"]) <= 320 for one in page.images)
    assert "identical content" in page.text
    assert "small (0.0" in page.text
    # A page that cannot be finished is not there, and a picture that is gone is told.
    report = Index.open(next((tmp_path / "cache/robustsim/dedup").iterdir())).duplicates(0.05)
    (folder / "coffee.png").unlink()
    write_page(report, tmp_path / "page.html", what="<i>", promises=["small"])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "The file cannot be read now." in page.text
    assert "made to hold" in page.text
    assert "i" not in page.tags
    monkeypatch.setattr("robustsim.search.duplicates.page._group_tail", _raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_page(report, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_a_large_group_is_not_held(tmp_path, monkeypatch):
    """As many thumbnails are made as are read ahead, and not those of a whole group."""
    made, written = [], []
    monkeypatch.setattr("robustsim.search.duplicates.page._thumbnail", lambda one: made.append(one) or "none")

    def member(*words):
        written.append(words)
        assert len(made) <= len(written) + 64
        return ""

    monkeypatch.setattr("robustsim.search.duplicates.page._member", member)
    members = tuple(Member(f"/{number}.png", f"{number}") for number in range(500))
    kept = SimpleNamespace(also_like=lambda group: [])
    groups = (Group(members[0], members[1:], members[0]),)
    write_page(DuplicatesReport(groups, {}, "largest", 500, 1, None, kept), tmp_path / "page.html")
    assert [words[2] for words in written] == list(members)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is nothing here that runs scripts")
def test_the_list_of_the_page():
    """Names that would not be one line, or not the name, are JSON, as the other file has them."""
    script = (Path(page.__file__).with_name("page.js")).read_text()
    names = ["/plain.png", "/a\nb.png", "/\\xff.png", "", "/back\\slash.png", "/\u2028.png"]
    stubs = f"""
    const elements = {{}};
    const made = () => ({{
      listeners: {{}}, addEventListener(kind, call) {{ this.listeners[kind] = call; }}, focus() {{}},
    }});
    globalThis.document = {{
      getElementById: (name) => (elements[name] ??= made()),
      querySelectorAll: () => {json.dumps(names)}.map((path) => ({{ dataset: {{ path }} }})),
      addEventListener() {{}},
    }};
    """
    told = "elements.show.listeners.click();"
    told += "console.log(JSON.stringify([elements.list.value, elements.status.textContent]))"
    result = subprocess.run(["node", "-e", f"{{{stubs}{script};{told}}}"], capture_output=True, text=True, check=True)
    shown, status = json.loads(result.stdout)
    assert shown.split("\n") == ["/plain.png", '"/a\\nb.png"', '"/\\\\xff.png"', "/back\\slash.png", "/\u2028.png"]
    assert status.startswith("5 files are not marked to be kept. 2 of them")


def test_a_page_of_no_groups(tmp_path, small):
    index = Index.create(tmp_path / "index", small)
    write_page(index.duplicates(0.1), tmp_path / "page.html")
    assert "No two pictures are alike." in Page((tmp_path / "page.html").read_text()).text

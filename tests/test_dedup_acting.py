"""What becomes of files that are moved or deleted: none is lost, whatever links, other programs, disks and kills do."""

import errno
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest

from robustsim.encoders.weights import sha256
from robustsim.errors import InputError, OutputError
from robustsim.images.files import printable
from robustsim.search.duplicates import act, moving
from robustsim.search.duplicates.report import Group, Member

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes are others there")
LARGE, SMALL, NEW = b"large " * 100, b"small", b"hours of retouching"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def member(path, *tenants):
    found = os.stat(path)
    whose = tenants or (None,)
    return Member(printable(path), sha256(path), size=found.st_size, mtime=found.st_mtime_ns, tenants=whose)


def group(keep, *others):
    members = [one if isinstance(one, Member) else member(one) for one in (keep, *others)]
    return Group(members[0], tuple(members[1:]), members[0])


class Place:
    """A folder of two pictures, one of which may go, and one that it may go to."""

    def __init__(self, root):
        self.photos, self.away = root / "photos", root / "away"
        (self.photos / "sub").mkdir(parents=True)
        self.large, self.small = self.photos / "large.png", self.photos / "sub" / "small.png"
        self.large.write_bytes(LARGE)
        self.small.write_bytes(SMALL)
        self.goes = self.away / "sub" / "small.png"
        self.groups = [group(self.large, self.small)]
        self.told = []

    def move(self, groups=None, root=True):
        root = self.photos if root else None
        return act.move(groups or self.groups, self.away, root=root, tell=self.told.append)

    def delete(self, groups=None):
        return act.delete(groups or self.groups, tell=self.told.append)

    @property
    def left(self):
        return self.told[-1].left

    @property
    def journal(self):
        return [json.loads(line) for line in (self.away / "moved.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def across(patch, photos):
    """As if the two folders lay on different file systems."""
    link = os.link

    def links(source, to, **options):
        if Path(source).is_relative_to(photos):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, to, **options)

    patch.setattr(os, "link", links)


def before(patch, where, name, what):
    """Let something happen before a function, the first time that it is called."""
    function, happened = getattr(where, name), []

    def replacement(*words, **options):
        if not happened:
            happened.append(True)
            what()
        return function(*words, **options)

    patch.setattr(where, name, replacement)


def after(patch, where, name, what):
    function = getattr(where, name)

    def replacement(*words, **options):
        result = function(*words, **options)
        what(*words)
        return result

    patch.setattr(where, name, replacement)


def kill(*words):
    os.kill(os.getpid(), signal.SIGKILL)


KILLS = {
    "begun": lambda patch, place: before(patch, os, "link", kill),
    "copied": lambda patch, place: after(patch, shutil, "copystat", kill),
    "linked": lambda patch, place: after(patch, os, "link", kill),
    "flushed": lambda patch, place: after(patch, moving, "_flush", lambda path: path == place.goes.parent and kill()),
    "removed": lambda patch, place: after(patch, os, "unlink", lambda path: path == place.small and kill()),
}


@pytest.mark.parametrize("other_disk", [False, True])
@pytest.mark.parametrize("when", KILLS)
def test_a_killed_run_is_repeated(place, monkeypatch, when, other_disk):
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which this child needs
        if other_disk:
            across(patch, place.photos)
        KILLS[when](patch, place)
        if not (child := os.fork()):
            try:
                place.move()
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or (when, other_disk) == ("copied", False)
    there = [path.read_bytes() for path in (place.small, place.goes) if path.exists()]
    assert there in ([SMALL], [SMALL, SMALL])
    if other_disk:
        across(monkeypatch, place.photos)
    for _ in range(2):
        left = place.move()
        assert place.goes.read_bytes() == SMALL
        assert names(place.photos) == ["large.png"]
        assert names(place.away) == ["moved.jsonl", "sub/small.png"]
    assert left == 1  # it is not there any more


@pytest.mark.parametrize("through", ["folder", "link in it", "link to above"])
def test_a_target_that_is_where_the_files_are(place, through):
    """By whatever way the new place is the old one: the file is not taken for moved."""
    if through == "folder":
        place.away.symlink_to(place.photos)
        with pytest.raises(InputError, match="whose pictures are compared"):
            place.move(root=False)
    elif through == "link in it":
        place.away.mkdir()
        (place.away / "sub").symlink_to(place.photos / "sub")
        assert place.move() == 1
        assert "another file is there already" in place.left
        assert place.journal == []
        # Nor if a run was killed that had begun to move it, before the link was there.
        entry = {"from": printable(place.small), "to": printable(place.goes), "id": place.groups[0].others[0].id}
        (place.away / "moved.jsonl").write_text(json.dumps(entry) + "\n")
        assert place.move() == 1
        os.link(place.small, place.photos.parent / "a second name.png")
        assert place.move() == 1
    else:  # files that are compared by a link, and moved to where they are
        (place.photos.parent / "disk" / "sub").mkdir(parents=True)
        shutil.move(place.small, place.photos.parent / "disk" / "sub")
        (place.photos / "sub").rmdir()
        (place.photos / "sub").symlink_to(place.photos.parent / "disk" / "sub")
        place.away = place.photos.parent / "disk"
        assert place.move() == 1
    assert (place.large.read_bytes(), place.small.read_bytes()) == (LARGE, SMALL)


def test_a_name_that_is_there_twice_in_one_folder(place, monkeypatch):
    """As where a folder is mounted twice, and nobody can tell: the only name of a file stays."""
    place.away.mkdir()
    (place.away / "sub").symlink_to(place.photos / "sub")
    entry = {"from": printable(place.small), "to": printable(place.goes), "id": place.groups[0].others[0].id}
    (place.away / "moved.jsonl").write_text(json.dumps(entry) + "\n")
    monkeypatch.setattr(os.path, "samefile", lambda one, two: False)
    assert place.move() == 1
    assert place.small.read_bytes() == SMALL


def test_what_is_there_with_the_same_content_was_not_moved(place):
    """Only what the list says was begun; and a line that says that it was not moved takes that back."""
    place.goes.parent.mkdir(parents=True)
    shutil.copy(place.small, place.goes)
    assert place.move() == 1
    entry = {"from": printable(place.small), "to": printable(place.goes), "id": place.groups[0].others[0].id}
    journal = place.away / "moved.jsonl"
    journal.write_text(f"{json.dumps(entry)}\n{json.dumps({**entry, 'left': 'why'})}\n[1]\n7\ncut o")
    assert place.move() == 1
    assert place.small.exists()
    journal.write_text(json.dumps(entry))
    place.goes.unlink()
    place.goes.symlink_to(place.small)
    assert place.move() == 1
    place.goes.unlink()
    place.goes.write_bytes(NEW)
    assert place.move() == 1
    assert place.small.read_bytes() == SMALL
    place.goes.write_bytes(SMALL)
    assert place.move() == 0
    assert not place.small.exists()


@pytest.mark.parametrize(
    "target",
    ["photos/dups", "photos", "photos/sub/dups", "link/dups"],
)
@pytest.mark.parametrize("root", [True, False])
def test_a_target_among_the_pictures(place, target, root):
    (place.photos.parent / "link").symlink_to(place.photos / "sub")
    place.away = place.photos.parent / target
    with pytest.raises(InputError, match="choose a folder outside"):
        place.move(root=root)
    assert not place.away.exists() or place.away == place.photos
    assert names(place.photos) == ["large.png", "sub/small.png"]


def test_targets_beside_folders_of_an_index(place):
    """What an index was made of is not known: what holds files, and what these folders are in, is not moved to."""
    (place.photos / "other" / "deep").mkdir(parents=True)
    large = place.photos / "other" / "deep" / "large.png"
    place.large.rename(large)
    groups = [group(large, place.small)]
    for target, refused in (("", True), ("other/dups", True), ("sub/dups", True), ("dups", False)):
        place.away = place.photos / target
        if refused:
            with pytest.raises(InputError, match="choose a folder outside"):
                place.move(groups, root=False)
        else:
            assert place.move(groups, root=False) == 0
    assert names(place.photos) == ["dups/moved.jsonl", "dups/sub/small.png", "other/deep/large.png"]
    with pytest.raises(InputError, match="choose a folder outside"):
        place.move(groups)


def test_a_folder_that_is_named_by_a_link(place):
    link = place.photos.parent / "link"
    link.symlink_to(place.photos)
    groups = [group(link / "large.png", link / "sub" / "small.png")]
    with pytest.raises(InputError, match="choose a folder outside"):
        act.move(groups, place.photos / "dups", root=link)


def test_a_target_above(place):
    place.away = place.photos.parent
    assert place.move() == 0
    assert (place.away / "sub" / "small.png").read_bytes() == SMALL


def test_one_run_at_a_time(place, monkeypatch):
    monkeypatch.setattr(moving, "_PATIENCE", 0)
    with moving.alone():
        for run in (place.move, place.delete):
            with pytest.raises(OutputError, match=r"another run moves or deletes.*acting.lock"):
                run()
    assert place.small.exists()
    assert not place.away.exists()
    assert place.delete() == 0
    place.small.write_bytes(SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.large))
    with pytest.raises(OutputError, match="cannot lock"):
        place.delete()


def replaced(path, content=NEW):
    new = path.with_name("new")
    new.write_bytes(content)
    os.replace(new, path)


CHANGES = {
    "saved anew": replaced,
    "saved with its time": lambda path: _with_time(path, lambda: replaced(path, NEW[: path.stat().st_size])),
    "written to": lambda path: path.write_bytes(NEW),
    "written to, with its time": lambda path: _with_time(path, lambda: path.write_bytes(NEW[: path.stat().st_size])),
}


def _with_time(path, change):
    found = os.stat(path)
    change()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


WHEN = {
    "delete": lambda patch, change: after(patch, act, "_checked", lambda *words: change()),
    "begun": lambda patch, change: before(patch, moving.Target, "_write", change),
    "copied": lambda patch, change: before(patch, shutil, "copystat", change),
    "placed": lambda patch, change: before(patch, moving, "_remove", change),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(
    ("when", "other_disk"),
    [("delete", False), ("begun", False), ("begun", True), ("copied", True), ("placed", False), ("placed", True)],
)
def test_a_file_that_changes_meanwhile(place, monkeypatch, when, how, other_disk):
    """What an editor saves after the file was read is not removed."""

    def change():
        CHANGES[how](place.small)

    if other_disk:
        across(monkeypatch, place.photos)
    WHEN[when](monkeypatch, change)
    left = place.delete() if when == "delete" else place.move()
    there = [path.read_bytes() for path in (place.small, place.goes) if path.exists()]
    assert there in ([NEW], [NEW[: len(SMALL)]])
    if how != "written to, with its time" or when == "delete" or other_disk:  # else it is the same file, and moved
        assert left == 1
        assert place.small.exists()
    if left and when != "delete":
        assert "changed" in place.left
        assert "left" in place.journal[-1]
        assert names(place.away) == ["moved.jsonl"]


@pytest.mark.parametrize("how", [*CHANGES, "removed"])
@pytest.mark.parametrize("run", ["delete", "move"])
def test_a_kept_one_that_changes_meanwhile(place, monkeypatch, how, run):
    """As another run, of another rule, would remove it: one of the two stays."""
    change = CHANGES.get(how, os.unlink)
    after(monkeypatch, act, "_checked", lambda *words: change(place.large))
    assert getattr(place, run)() == 1
    assert "the one that is kept" in place.left
    assert place.small.read_bytes() == SMALL
    assert not place.goes.exists()


def test_what_killed_runs_have_left_is_not_opened(place, monkeypatch):
    across(monkeypatch, place.photos)
    precious = place.photos.parent / "precious.txt"
    precious.write_bytes(NEW)
    place.goes.parent.mkdir(parents=True)
    (place.goes.parent / f".moved-{'0' * 16}.part").symlink_to(precious)
    os.link(precious, place.goes.parent / f".moved-{'1' * 16}.part")
    assert place.move() == 0
    assert names(place.away) == ["moved.jsonl", "sub/small.png"]
    # Nor what comes between.
    place.goes.unlink()
    place.small.write_bytes(SMALL)
    place.groups = [group(place.large, place.small)]
    monkeypatch.setattr("secrets.token_hex", lambda count: "2" * 16)
    part = place.goes.parent / f".moved-{'2' * 16}.part"
    before(monkeypatch, moving.Target, "_put", lambda: part.symlink_to(precious))
    assert place.move() == 1
    assert "File exists" in place.left
    assert precious.read_bytes() == NEW
    assert place.small.read_bytes() == SMALL


def test_a_journal_that_is_a_link_is_not_followed(place):
    precious = place.photos.parent / "precious.txt"
    precious.write_bytes(NEW)
    place.away.mkdir()
    (place.away / "moved.jsonl").symlink_to(precious)
    with pytest.raises(OutputError, match=r"moved\.jsonl"):
        place.move()
    assert precious.read_bytes() == NEW


@pytest.mark.parametrize("alias", ["link", "folder", "hard link"])
@pytest.mark.parametrize("why", ["tenant", "kept", "changed"])
def test_what_another_picture_leads_to_stays(place, alias, why):
    """One that is kept in another group, or left alone: the file that it is does not go by another name."""
    other = place.photos.parent / "other.png"
    if alias == "link":
        other.symlink_to(place.small)
    elif alias == "hard link":
        os.link(place.small, other)
    else:
        (place.photos.parent / "linked").symlink_to(place.photos / "sub")
        other = place.photos.parent / "linked" / "small.png"
    if why == "tenant":
        groups = [group(member(place.large, "a"), member(place.small, "a"), member(other, "b"))]
    elif why == "kept":
        third = place.photos / "third.png"
        third.write_bytes(NEW)
        groups = [group(place.large, place.small), group(other, third)]
    else:
        found = member(other)
        groups = [group(place.large, place.small, Member(found.path, found.id, size=found.size, mtime=1))]
    assert place.delete(groups) >= 1
    assert "the same file as one that stays" in next(done.left for done in place.told if done.path == str(place.small))
    assert other.read_bytes() == SMALL


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_file_that_cannot_be_removed(place, monkeypatch, other_disk):
    """It is in one place, and told as left alone; once it can be, it goes."""
    unlink = os.unlink

    def denied(path, **options):
        if path == place.small:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, **options)

    if other_disk:
        across(monkeypatch, place.photos)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", denied)
        assert place.move() == 1
    assert place.left == "it could not be removed: Permission denied"
    assert names(place.away) == ["moved.jsonl"]
    assert "Permission denied" in place.journal[-1]["left"]
    assert place.small.read_bytes() == SMALL
    assert place.move() == 0
    assert "left" not in place.journal[-1]


def test_another_one_removes_it_first(place, monkeypatch):
    """What is in its new place is the only one then, and stays."""
    before(monkeypatch, moving, "_remove", lambda: place.small.unlink())
    assert place.move() == 0
    assert place.told[0].to == str(place.goes)
    assert place.goes.read_bytes() == SMALL


@pytest.mark.parametrize("other_disk", [False, True])
def test_what_is_on_the_disk_when(place, monkeypatch, other_disk):
    """The list, the copy, all folders that were made, and only then the removal."""
    events, fsync, link, unlink = [], os.fsync, os.link, os.unlink

    def fsyncs(handle):
        events.append(("flush", os.fstat(handle).st_ino))
        fsync(handle)

    def links(source, to, **options):
        if other_disk and source == place.small:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        events.append(("link", to))
        link(source, to, **options)

    def unlinks(path, **options):
        events.append(("unlink", path))
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", fsyncs)
    monkeypatch.setattr(os, "link", links)
    monkeypatch.setattr(os, "unlink", unlinks)
    assert place.move() == 0
    inode = {path: os.stat(path).st_ino for path in (place.away.parent, place.away, place.goes.parent, place.goes)}
    journal = os.stat(place.away / "moved.jsonl").st_ino
    linked, removed = events.index(("link", place.goes)), events.index(("unlink", place.small))
    assert ("flush", journal) in events[:linked]
    assert (("flush", inode[place.goes]) in events[:linked]) == other_disk
    assert {("flush", inode[path]) for path in (place.away.parent, place.away)} <= set(events[:removed])
    assert ("flush", inode[place.goes.parent]) in events[linked:removed]


def test_the_list_is_on_the_disk_where_all_folders_are_there(place, monkeypatch):
    place.goes.parent.mkdir(parents=True)
    flushed, fsync = [], os.fsync

    def fsyncs(handle):
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsyncs)
    assert place.move() == 0
    assert place.away.stat().st_ino in flushed


def test_a_disk_that_writes_something_else(place, monkeypatch):
    across(monkeypatch, place.photos)
    monkeypatch.setattr(shutil, "copyfileobj", lambda file, copy, length: copy.write(b"smell"))
    assert place.move() == 1
    assert "what came there is not what it was" in place.left
    assert names(place.away) == ["moved.jsonl"]
    assert place.small.read_bytes() == SMALL


@pytest.mark.parametrize("can_link", [True, False])
def test_a_copy_overwrites_nothing(place, monkeypatch, can_link):
    """Not even what comes while it is made."""
    link = os.link

    def links(source, to, **options):
        if source == place.small:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        place.goes.write_bytes(NEW)
        if not can_link:
            raise OSError(errno.EPERM, "Operation not permitted")
        link(source, to, **options)

    monkeypatch.setattr(os, "link", links)
    assert place.move() == 1
    assert "another file is there already" in place.left
    assert place.goes.read_bytes() == NEW
    assert place.small.read_bytes() == SMALL
    assert names(place.away) == ["moved.jsonl", "sub/small.png"]


def test_what_takes_the_new_place_meanwhile(place, monkeypatch):
    before(monkeypatch, moving, "_remove", lambda: replaced(place.goes))
    assert place.move() == 1
    assert "another file is there by now" in place.left
    assert (place.small.read_bytes(), place.goes.read_bytes()) == (SMALL, NEW)


def test_pipes_are_not_read(place):
    for path in (place.large, place.small):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert place.delete() == 1
        assert "no regular file" in place.left
        path.unlink()
        path.write_bytes(content)

"""Ground truths of retrieval: the pickles that are read, those that are not, and tables."""

import json
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
from PIL import Image

from robustsim.data import read_retrieval
from robustsim.data.unpickle import plain, read_pickle
from robustsim.errors import DataError, ImageError


def truth():
    """As the published files: a list of dicts, with lists and arrays of places."""
    return {
        "imlist": ["a", "b", "c", "d"],
        "qimlist": ["q", "r"],
        "gnd": [
            {"bbx": [1.5, 2, 30, 40.25], "easy": [0], "hard": np.array([2, 1]), "junk": np.array([], dtype=np.int32)},
            {"bbx": np.array([0.0, 0.0, 5.0, 6.0]), "easy": [], "hard": [np.int64(3)], "junk": (0, 1)},
        ],
    }


def payload(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_published_layout_in_every_protocol(tmp_path, protocol):
    read = read_retrieval(payload(tmp_path / "gnd_small.pkl", pickle.dumps(truth(), protocol)))
    assert (read.name, read.root) == ("small", tmp_path / "jpg")
    assert [path.name for path in read.database] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    first, second = read.queries
    assert (first.name, first.path) == ("q", tmp_path / "jpg" / "q.jpg")
    assert first.lists == {"easy": (0,), "hard": (2, 1), "junk": ()}
    assert second.lists == {"easy": (), "hard": (3,), "junk": (0, 1)}
    assert (first.box, second.box) == ((1.5, 2, 30, 40.25), (0, 0, 5, 6))
    assert read.protocols["medium"] == (("easy", "hard"), ("junk",))


def test_what_python_2_and_older_numpys_wrote(tmp_path):
    # Of Python 2 and NumPy 1: text as bytes, the names of NumPy's modules before they were moved.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'i4'\nI0\n"
        b"I1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x07\\x00\\x00\\x00\\xe8\\x03\\x00\\x00'\ntb"
    )
    read = read_pickle(payload(tmp_path / "old.pkl", b"(lp0\n" + array + b"aS'caf\\xe9'\na."))
    assert plain(read[0]).tolist() == [7, 1000]
    assert read[1] == "café"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.array([True, False]),
        np.array([], dtype=np.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays(tmp_path, array, protocol):
    found = plain(read_pickle(payload(tmp_path / "a.pkl", pickle.dumps(array, protocol))))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_arrays_of_objects_and_numbers_of_numpy(tmp_path):
    held = [np.array(["a", None], dtype=object), np.float32(0.5), np.int64(-3), np.bool_(True), np.str_("ab")]
    first, *rest = read_pickle(payload(tmp_path / "a.pkl", pickle.dumps(held)))
    assert plain(first) == ["a", None]
    assert rest == [0.5, -3, True, "ab"]


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def short(text):
    return b"\x8c" + bytes([len(text)]) + text


MARKER = "executed"
CODE = f"open({MARKER!r}, 'w').close()"
NAMES = b"\x80\x04" + short(b"numpy.core.multiarray")
SYSTEM = b"\x80\x04" + short(b"os") + short(b"system")
DTYPE = b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
DOUBLED = b"2\x86" * 60  # a pair of what is there, and of that a pair
HUGE = b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"q\x00"
SHAPE = b"\x80\x02" + ARRAY + b"(K\x01("  # and its numbers, up to the mark
# {"imlist": ["a"], "qimlist": ["q"], "gnd": [{"bbx": ...}]}
DOUBLED_BOX = (
    b"\x80\x04}(" + short(b"imlist") + b"(" + short(b"a") + b"l" + short(b"qimlist") + b"(" + short(b"q") + b"l"
    + short(b"gnd") + b"(}(" + short(b"bbx") + b")" + DOUBLED + b"ulu."
)  # fmt: skip
PAYLOADS = {
    "os.system by REDUCE": pickle.dumps(Runs(os.system, f"touch {MARKER}")),
    "posix.system by name": b"cposix\nsystem\n(S'touch executed'\ntR.",
    "builtins.eval": pickle.dumps(Runs(eval, CODE)),
    "builtins.exec of Python 2": f"c__builtin__\neval\n(S{CODE!r}\ntR.".encode(),
    "numpy.load": b"cnumpy\nload\n(S'x.npy'\nNI01\ntR.",
    "numpy.testing runs strings": f"cnumpy.testing._private.utils\nruncode\n(S{CODE!r}\ntR.".encode(),
    "numpy.f2py": b"cnumpy.f2py.diagnose\nrun_command\n(S'touch executed'\ntR.",
    "numpy.ctypeslib": b"cnumpy.ctypeslib\nload_library\n(S'x'\nS'.'\ntR.",
    "numpy.dtype reached from ndarray": b"cnumpy\nndarray.__class__\n.",
    "globals of an allowed name": NAMES + short(b"_reconstruct.__globals__") + b"\x93.",
    "STACK_GLOBAL of made-up strings": SYSTEM + b"\x93" + short(b"touch executed") + b"\x85R.",
    "STACK_GLOBAL across a dot": b"\x80\x04" + short(b"numpy") + short(b"core.multiarray.scalar.__class__") + b"\x93.",
    "STACK_GLOBAL of no strings": b"\x80\x04K\x01K\x02\x93.",
    "INST": b"(S'touch executed'\nios\nsystem\n.",
    "OBJ": b"(cnumpy\nndarray\nI1\no.",
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\n(I3\nt\x81.",
    "extension registry": b"\x82\x01.",
    "persistent id": b"Psomething\n.",
    "buffers from outside": b"\x80\x05\x97.",
    "a call of text": b"S'os.system'\n(S'touch executed'\ntR.",
    "a class that is filled": b"cnumpy\nndarray\n(N(dS'function'\nI1\nstb.",
    "a pickle in an array of objects": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'x'\ntR.",
    "an array of 8 TB": ARRAY + b"(I1\n(L1000000000000L\nt" + DTYPE + b"I00\nS'x'\ntb.",
    "reconstructed at 8 TB": NAMES + short(b"_reconstruct") + b"\x93(cnumpy\nndarray\n(L1000000000000L\ntS'd'\ntR(.",
    "a type of 4 GB": ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'S4000000000'\nI0\nI1\ntRI00\nS'x'\ntb.",
    "bytes of 8 TB by their number": b"c__builtin__\nbytes\n(L1000000000000L\ntR.",
    "a bytearray of 2 EB": b"\x80\x05\x96" + struct.pack("<Q", 2**61) + b"x.",
    "bytes of 2 EB": b"\x80\x04\x8e" + struct.pack("<Q", 2**61) + b"x.",
    "a frame of 2 EB": b"\x80\x04\x95" + struct.pack("<Q", 2**61) + b"x.",
    "a memo of four billion": b"]r\xff\xff\xff\xff.",
    "a long array, filled again and again": ARRAY + b"(I1\n(I125000\nt" + DTYPE + b"I00\nX" + struct.pack("<I", 10**6)
    + b"x" * 10**6 + b"tp0\n" + b"bg0\n" * 50 + b"b.",
    "lists nested in themselves": b"]q\x00h\x00a.",
    "deep lists": b"]" * 50_000 + b"a" * 49_999 + b".",
    "a key of 2**60 leaves": b"\x80\x02})" + DOUBLED + b"K\x01s.",
    "keys of 2**60 leaves": b"\x80\x02}()" + DOUBLED + b"K\x01u.",
    "a dict of 2**60 leaves": b"\x80\x02()" + DOUBLED + b"K\x01d.",
    "a set of 2**60 leaves": b"\x80\x04\x8f()" + DOUBLED + b"\x90.",
    "a frozen set of 2**60 leaves": b"\x80\x04()" + DOUBLED + b"\x91.",
    "a huge number as a key, again and again": b"\x80\x02}(" + HUGE + b"h\x00h\x00" * 100_000 + b"u.",
    "a shape of huge numbers": SHAPE + HUGE + b"h\x00" * 200_000 + b"t" + DTYPE + b"\x89C\x00tb.",
    "a shape of one huge number": SHAPE + HUGE + b"h\x00" * 40 + b"t" + DTYPE + b"\x89C\x00tb.",
    "a box of 2**60 leaves": DOUBLED_BOX,
    "a long state, again and again": ARRAY + b"(" + b"K\x00" * 100_000 + b"tq\x00" + b"bh\x00" * 100_000 + b"b.",
    "half of a pickle": pickle.dumps(truth())[:-9],
    "text": b"imlist, qimlist",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_pickle_runs_anything(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"bad\.pkl") as caught:
        read_retrieval(payload(tmp_path / "bad.pkl", PAYLOADS[name]))
    assert not os.path.exists(MARKER)
    assert len(str(caught.value)) < 1000


def test_the_payloads_would_run_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("os.system by REDUCE", "builtins.eval", "STACK_GLOBAL of made-up strings", "INST"):
        pickle.loads(PAYLOADS[name])
        os.remove(MARKER)


def test_a_pickle_changes_nothing_for_the_next(tmp_path):
    """What it may call is its own: attributes that it sets are gone with it."""
    changing = b"cnumpy\ndtype\n(N(dS'function'\nS'x'\nstb."
    for _ in range(2):
        with pytest.raises(DataError, match="fills an object that is no array"):
            read_pickle(payload(tmp_path / "bad.pkl", changing))
    assert plain(read_pickle(payload(tmp_path / "good.pkl", pickle.dumps(np.arange(3))))).tolist() == [0, 1, 2]
    assert {op.name for op, *_ in pickletools.genops(changing)} >= {"BUILD"}


def changed(**changes):
    return {**truth(), **changes}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1], "holds list; a ground truth has gnd, imlist and qimlist"),
        ({"gnd": []}, "holds gnd; a ground truth has"),
        (changed(gnd=truth()["gnd"][:1]), "one dict for each of 2 queries"),
        (changed(gnd=[1, 2]), "query 'q': its ground truth is no dict"),
        (changed(imlist=["a", "b"]), r"query 'q': hard must be a list of places in imlist, from 0 to 1"),
        (changed(imlist=["a", "../../etc/passwd", "c", "d"]), "imlist must be a list of names, without a folder's"),
        (changed(qimlist=["q", "q"]), "names a picture, or a query, twice"),
        (changed(qimlist="qr"), "qimlist must be a list of names"),
        (changed(gnd=[{"bbx": [5, 0, 1, 1]}, {}]), "bbx must be left, top, right and bottom of a box, not"),
        (changed(gnd=[{"bbx": [0, 0, float("nan"), 1]}, {}]), "bbx must be"),
        (changed(gnd=[{"bbx": [0, 0, 10**400, 1]}, {}]), "query 'q': bbx must be left, top, .* and is too large"),
        (changed(gnd=[{"bbx": [0, 0, 10**5000]}, {}]), "of a box, not list"),
        (changed(gnd=[{"easy": [0.5]}, {}]), "easy must be a list of places"),
    ],
)  # fmt: skip
def test_refused_ground_truths(tmp_path, content, match):
    with pytest.raises(DataError, match=match):
        read_retrieval(payload(tmp_path / "bad.pkl", pickle.dumps(content)))


def test_one_list_named_often_is_no_way_to_fill_the_memory(tmp_path, monkeypatch):
    from robustsim.data import retrieval

    monkeypatch.setattr(retrieval, "_MOST_PLACES", 10)
    long = list(range(4))
    with pytest.raises(DataError, match="more than 10 places"):
        content = changed(gnd=[{"easy": long, "hard": long, "junk": long}, {}])
        read_retrieval(payload(tmp_path / "bad.pkl", pickle.dumps(content)))


def test_json_of_the_same_layout(tmp_path):
    content = truth()
    content["gnd"] = [{key: np.asarray(value).tolist() for key, value in one.items()} for one in content["gnd"]]
    (tmp_path / "gnd_small.json").write_text(json.dumps(content))
    of_json = read_retrieval(tmp_path / "gnd_small.json", tmp_path / "elsewhere")
    of_pickle = read_retrieval(payload(tmp_path / "gnd_small.pkl", pickle.dumps(truth())), tmp_path / "elsewhere")
    assert of_json == of_pickle
    assert of_json.database[0] == tmp_path / "elsewhere" / "a.jpg"
    (tmp_path / "bad.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is no JSON"):
        read_retrieval(tmp_path / "bad.json")
    with pytest.raises(DataError, match="is no file: pass gnd_"):
        read_retrieval(tmp_path)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "d", "below/e"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return tmp_path


def table(folder, text):
    (folder / "pairs.csv").write_text(text)
    return folder / "pairs.csv"


def test_tables(folder):
    text = "query,relevant,junk\na.png,b.png,\na.png,below/e.png,c.png\nd.png,,\n"
    read = read_retrieval(table(folder, text))
    names = [path.relative_to(folder).as_posix() for path in read.database]
    assert names == ["a.png", "b.png", "below/e.png", "c.png", "d.png"]
    first, second = read.queries
    assert (first.name, first.path, first.box) == ("a.png", folder / "a.png", None)
    assert first.lists == {"relevant": (1, 2), "junk": (3, 0)}  # and not itself
    assert second.lists == {"relevant": (), "junk": (4,)}
    assert read.protocols == {"relevant": (("relevant",), ("junk",))}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("query,other\n", r"needed are query, relevant"),
        ("query,relevant\n", "no row names a query"),
        ("query,relevant\nx.png,a.png\n", r"row 2: column 'query' names 'x.png', which is no picture below"),
        ("query,relevant\na.png,x.png\n", r"row 2: column 'relevant' names 'x.png'"),
        ("query,relevant\na.png,a.png\n", "relevant to itself"),
        ("query,relevant,junk\na.png,b.png,\na.png,,b.png\n", r"row 3: 'b.png' is both relevant and junk to 'a.png'"),
    ],
)
def test_refused_tables(folder, text, match):
    with pytest.raises(DataError, match=match):
        read_retrieval(table(folder, text))


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        read_retrieval(table(tmp_path, "query,relevant\na.png,b.png\n"))

"""Pickles of plain data, read without running anything that is in them.

Published annotations come as pickles, and a pickle is a program. Here its machine knows no objects but lists, dicts,
tuples, sets, strings, bytes and numbers, and calls nothing but the few names by which NumPy writes arrays, behind which
stands code of this file: nothing is imported, and no function of NumPy is called by a name of the file. The machine is
that of the standard library written in Python: the one in C takes gigabytes for a single number of a malicious file.
"""

import pickle
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robustsim.errors import DataError

#: Bytes of a file; annotations of a million pictures have some ten.
LARGEST = 2**28

# What runs something, brings objects in from outside, or takes memory before it has read what goes there.
_REFUSED = tuple(
    code[0]
    for code in (
        pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
        pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    )
)  # fmt: skip
# What a few bytes of the file name again and again must cost little each time.
_MOST_ARGUMENTS = 16  # NumPy's calls and states have up to nine
_MOST_AXES, _LONGEST_AXIS = 64, 2**40
_LONGEST_TYPE, _LONGEST_KEY, _LARGEST_KEY = 16, 4096, 2**64
# Types of arrays: numbers and text. Those of objects are lists; all others hold what this file does not know.
_TYPE = re.compile(r"[<>|=]?[biufSU]\d{1,9}")
_CORES = ("numpy.core", "numpy._core")  # up to NumPy 1, and since


class _Call:
    """What a pickle may call. An object of its own for each file: a pickle that changes it changes nothing else."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class _Type:
    """A NumPy dtype as it is being built."""

    __slots__ = ("code", "is_object")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or len(code) > _LONGEST_TYPE:
            raise DataError("an array's type is no short text")
        self.is_object = code == "O8" or code == "O"
        self.code = "O" if self.is_object else code

    def set(self, state: Any) -> None:
        """Its order of bytes, and of text its length."""
        order, parts = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(parts):
            raise DataError("an array has a type of several parts")
        if not self.is_object:
            self.code = order + self.code.lstrip("<>|=")

    @property
    def real(self) -> "np.dtype[Any]":
        """As NumPy's, of numbers or text."""
        if not _TYPE.fullmatch(self.code):
            raise DataError(f"an array of type {self.code!r} is neither numbers nor text")
        return np.dtype(self.code)


class _Array:
    """A NumPy array as it is being built."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: Any = []

    def set(self, state: Any) -> None:
        """Shape, type and content."""
        *_, shape, kind, is_fortran, content = state
        self.value = _array(kind, shape, content, "F" if is_fortran else "C")


def _array(kind: Any, shape: Any, content: Any, order: str) -> Any:
    if not isinstance(kind, _Type) or not isinstance(shape, tuple):
        raise DataError("an array has no type or no shape")
    # Before they are multiplied: numbers of a million digits take hours.
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n <= _LONGEST_AXIS for n in shape):
        raise DataError("an array has a shape that none has")
    if kind.is_object:
        if not isinstance(content, list) or shape != (len(content),):
            raise DataError("an array of objects is no list")
        return content
    data = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote bytes as text
    real = kind.real
    # Before anything is made: a shape may be larger than the memory.
    if not isinstance(data, (bytes, bytearray)) or prod(shape) * real.itemsize != len(data) or not real.itemsize:
        raise DataError("an array has another size than its content")
    return np.frombuffer(bytes(data), real).reshape(shape, order=order)  # type: ignore[call-overload]


def _scalar(kind: Any, content: Any) -> Any:
    return _array(kind, (1,), content, "C")[0].item()


def _buffer(content: Any, kind: Any, shape: Any, order: Any) -> Any:
    found = _Array()
    found.value = _array(kind, shape, content, "F" if order == "F" else "C")
    return found


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise DataError("bytes are written in another way than by pickle itself")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,  # which is all that protocols below 3 ask it for
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _buffer for core in _CORES},
}
_Machine: Any = pickle._Unpickler


class _Unpickler(_Machine):  # type: ignore[misc]
    """Python's own machine, in Python, without what could do harm."""

    left = 0  # bytes that arrays may hold from here on
    dispatch: ClassVar[dict[int, Any]] = dict(_Machine.dispatch)

    def find_class(self, module: str, name: str) -> _Call:
        if (module, name) not in _CALLS:
            raise DataError(f"it asks for {module}.{name}, which is no plain data")
        return _Call(_CALLS[module, name])

    def spend(self, values: tuple[Any, ...]) -> None:
        """What is copied whenever it is named."""
        if len(values) > _MOST_ARGUMENTS:
            raise DataError("a call has more arguments than any of NumPy's")
        self.left -= sum(len(value) for value in values if isinstance(value, (str, bytes, bytearray)))
        if self.left < 0:
            raise DataError("its arrays hold more than the file")

    def load_reduce(self) -> None:
        arguments, call = self.stack.pop(), self.stack.pop()
        if not isinstance(call, _Call) or not isinstance(arguments, tuple):
            raise DataError("it calls what is no function")
        self.spend(arguments)
        self.append(call.function(*arguments))

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Type)) or not isinstance(state, tuple):
            raise DataError("it fills an object that is no array")
        self.spend(state)
        self.stack[-1].set(state)

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Hashing a tuple walks all that is in it, which may be one thing named 2**60 times."""
        for key in keys:
            fits = (
                abs(key) < _LARGEST_KEY
                if isinstance(key, int)
                else isinstance(key, (str, bytes)) and len(key) <= _LONGEST_KEY
            )
            if not fits:
                raise DataError("a key of a dict or a member of a set is no short text, and no number of 64 bits")

    def load_setitem(self) -> None:
        self.check_keys(self.stack[-2:-1])
        _Machine.load_setitem(self)

    def load_setitems(self) -> None:
        self.check_keys(self.stack[::2])  # since the mark
        _Machine.load_setitems(self)

    def load_dict(self) -> None:
        self.check_keys(self.stack[::2])
        _Machine.load_dict(self)

    def load_members(self) -> None:
        self.check_keys(self.stack)
        _Machine.load_additems(self)

    def load_frozenset(self) -> None:
        self.check_keys(self.stack)
        _Machine.load_frozenset(self)

    def load_bytearray8(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(count)))

    def refuse(self) -> None:
        raise DataError("it holds objects, which are no plain data")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_members
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch.update(dict.fromkeys(_REFUSED, refuse))


def read_pickle(path: Path) -> Any:
    """What a pickle of plain data holds; arrays as `numpy.ndarray` where they stand in lists, tuples and dicts.

    Made for annotations: values that are reached by two ways are one value, as in the file.

    Args:
        path: a file that somebody else may have written.

    Raises:
        DataError: it cannot be read, is larger than 256 MB, is no pickle, or holds anything but plain data; nothing of
            it was run.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes: annotations have {LARGEST:,} at most")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    try:
        # latin1: text of Python 2 is bytes, those of arrays among them.
        machine = _Unpickler(BytesIO(content), encoding="latin1")
        machine.left = 2 * len(content) + 2**20
        found = machine.load()
    except DataError as error:
        raise DataError(
            f"{path} is not read, as a pickle can run programs, and this one is not plain: {error}"
        ) from None
    except (Exception, RecursionError, MemoryError) as error:  # whatever a broken program does to its machine
        raise DataError(f"{path} is no pickle that can be read: {type(error).__name__}: {error}") from None
    return found


def plain(value: Any) -> Any:
    """A value of a pickle as such: what stands where an array was built."""
    return value.value if isinstance(value, _Array) else value

"""Weights files: read them safely, check them, write them whole or not at all."""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsim.errors import CorruptFileError, OutputError, RobustSimError, WeightsError

if TYPE_CHECKING:  # whoever writes a file whole, or takes its checksum, needs no torch for it
    from torch import Tensor, nn

# The name of what the unpickler of torch refused, in its message.
_NAMED_CODE = re.compile(r"GLOBAL ([\w.]+\w)")


def read_weights(path: Path, keep: Callable[[str], bool] = lambda key: True) -> "dict[str, Tensor]":
    """The tensors of a `.safetensors`, or of a `.bin`, `.pt` or `.pth` read with `weights_only=True`.

    Args:
        path: the file.
        keep: which names are wanted; a safetensors file's others are not read from the disk.

    Raises:
        CorruptFileError: the file cannot be parsed, or holds more than tensors.
        WeightsError: it is not there, cannot be read, or holds no tensors, or several state dicts.
    """
    if path.suffix == ".safetensors":
        _check_readable(path)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys() if keep(key)}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise CorruptFileError(
                f"{os.fspath(path)!r} is no whole safetensors file ({error}): fetch it anew"
            ) from error
    from robustsim.encoders.containers import unwrap

    tensors = unwrap(read_pickle(path), repr(os.fspath(path)))
    if not tensors:
        raise WeightsError(f"{os.fspath(path)!r} holds no tensors")
    return {key: value for key, value in tensors.items() if keep(key)}


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds; code in it is not run.

    Raises:
        CorruptFileError: it cannot be parsed, or holds more than tensors and plain data.
        WeightsError: it is not there, or cannot be read.
    """
    import pickle

    import torch

    _check_readable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        # What torch says of it takes a page, and advises to run the code.
        named = _NAMED_CODE.search(str(error))
        if named is None:
            raise CorruptFileError(
                f"{os.fspath(path)!r} holds more than tensors and plain data, or is damaged, and was not loaded: fetch "
                "it anew, or save its state dict alone"
            ) from error
        raise CorruptFileError(
            f"{os.fspath(path)!r} holds more than tensors and plain data ({named[1]}), and was not loaded, as code in "
            "such a file can do anything. If you trust it, load it yourself and save its state dict alone"
        ) from error
    except Exception as error:  # the unpickler answers damage with whatever its next step stumbles over
        raise CorruptFileError(
            f"{os.fspath(path)!r} is no whole file of torch.save: it is damaged, half-copied or of another kind; fetch "
            "it anew"
        ) from error


def _check_readable(path: Path) -> None:
    if not path.exists():
        raise WeightsError(f"there is no file {os.fspath(path)!r}")
    if not path.is_file():
        raise WeightsError(f"{os.fspath(path)!r} is no file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return _digest(path, hashlib.sha256())


def state_sha256(module: "nn.Module", *, without: str | None = None, typed: bool = True) -> str:
    """Hexadecimal SHA-256 of a module's state, names, types and values: what tells two sets of weights apart.

    Args:
        module: whose state.
        without: leave out what has names that begin so.
        typed: whether the same values in another floating type are another state.
    """
    import torch

    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        if without is not None and key.startswith(without):
            continue
        if not isinstance(value, torch.Tensor) or value.is_quantized:  # a module's extra state
            digest.update(f"{key} {value!r}".encode())
            continue
        if not typed and value.is_floating_point():
            value = value.to(torch.float32)
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def git_blob(path: Path) -> str:
    """The hash by which git, and so the Hub, names small files."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any) -> str:
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    result: str = digest.hexdigest()
    return result


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; it takes its place as `path` when the block ends well, and is gone when it does not.

    Raises:
        OutputError: it cannot be written: permissions, disk full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers put a file of their own there, which nobody else may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, RobustSimError):
            raise
        raise OutputError(
            f"cannot write {os.fspath(path)!r}: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_weights(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file to a path that `whole_file` gave.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    except SafetensorError as error:  # what an OSError becomes on its way through Rust
        raise OutputError(
            f"cannot write weights into {os.fspath(path.parent)!r}: {error}; nothing was left there"
        ) from error

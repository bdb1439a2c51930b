"""How much memory a piece of work takes: on CUDA as torch counts it, on the CPU as Linux keeps it of the process."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak is the present size from here on


@contextmanager
def peak_memory(device: torch.device, tell: Callable[[int], object]) -> Iterator[None]:
    """Tell the peak of a block's memory, in bytes, when it ends well; nothing where it cannot be known.

    On CUDA that is the largest amount allocated in the block, with all that was allocated before. On the CPU it is how
    far the resident memory of the whole process, all of its threads, rose above what it was before the block: what the
    allocator kept from earlier work and hands out again is not in it, what glibc would give back is given back before.

    Args:
        device: where the work is done.
        tell: called with the bytes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield
        tell(torch.cuda.max_memory_allocated(device))
        return
    before = _reset_resident() if device.type == "cpu" else None
    yield
    if before is not None:
        with suppress(OSError, ValueError, KeyError):
            tell(max(0, _resident("VmHWM") - before))


def _reset_resident() -> int | None:
    """The resident memory, from which on its peak counts; None where there is no such thing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        return _resident("VmRSS")
    except (OSError, ValueError, KeyError):  # another system, or a container that hides it
        return None


def _resident(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(said[name].split()[0])

"""Products of codes with codes, without rounding: by numkong, which brings usearch's kernels, or by torch.

Both give the same whole numbers, so that an index answers alike with either.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from robustsim.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: (rows (N, D) int8) -> products with the queries that it was made for, (N, Q) int32 or float64, exact.
Kernel: TypeAlias = "Callable[[NDArray[np.int8]], NDArray[np.int32] | NDArray[np.float64]]"

#: Products of two codes, 127 * 127, of which 1,024 add up to less than 2**24: whole in float32 in whatever order.
_WHOLE = 1024

# Rows that are widened at a time on a CPU: what they become stays in its cache.
_CACHED = 256

KERNELS = ("numkong", "torch")


def make_kernel(queries: "NDArray[np.int8]", name: str | None = None, device: str = "cpu") -> Kernel:
    """What multiplies rows with these queries.

    Args:
        queries: (Q, D) codes, from -127 to 127.
        name: `numkong` or `torch`; None for numkong where it is installed, else torch.
        device: where torch computes: the CPU or CUDA.

    Raises:
        InputError: no such kernel.
        MissingDependencyError: numkong was asked for, and is not installed.
    """
    if name not in (None, *KERNELS):
        raise InputError(f"the kernel {name!r} is none of {', '.join(KERNELS)}")
    if name == "torch":
        return _by_torch(queries, device)
    try:
        import numkong  # noqa: F401
    except ImportError:
        if name is None:
            return _by_torch(queries, device)
        raise MissingDependencyError(
            "the kernel 'numkong' needs the package of that name: pip install \"robustsim[search]\""
        ) from None
    return _by_numkong(queries)


def _by_numkong(queries: "NDArray[np.int8]") -> Kernel:
    import numkong

    queries = np.ascontiguousarray(queries)
    if len(queries) == 1:
        return lambda rows: np.asarray(numkong.cdist(queries, rows, "dot")).reshape(-1, 1)
    packed = numkong.dots_pack(queries)
    return lambda rows: np.asarray(numkong.dots_packed(rows, packed))


def _by_torch(queries: "NDArray[np.int8]", device: str) -> Kernel:
    """In float32, 1,024 dimensions at a time: every sum on the way is a whole number that float32 holds.

    Types of fewer bits that torch may be set to multiply in (TF32, bfloat16) hold whole numbers up to 127 as well.
    """
    import torch

    from robustsim.images.resize import full_precision

    place = torch.device(device)
    whole = torch.from_numpy(np.ascontiguousarray(queries)).to(place)
    wide = [part.T.to(torch.float32).contiguous() for part in torch.split(whole, _WHOLE, dim=1)]

    def product(rows: "NDArray[np.int8]") -> "NDArray[np.int32]":
        with torch.inference_mode(), full_precision(wide[0]):
            total = torch.zeros(len(rows), wide[0].shape[1], dtype=torch.int32, device=place)
            step = _CACHED if place.type == "cpu" else max(1, len(rows))
            for start in range(0, len(rows), step):
                block = torch.from_numpy(rows[start : start + step]).to(place)
                for part, slab in zip(torch.split(block, _WHOLE, dim=1), wide, strict=True):
                    total[start : start + step] += (part.to(torch.float32) @ slab).to(torch.int32)
            exact: NDArray[np.int32] = total.cpu().numpy()
            return exact

    return product

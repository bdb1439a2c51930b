"""Perceptual hashes: what stands beside an encoder, and knows other edits as harmless than it does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from robustsim.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bits of a hash.
HASH_BITS = 256
# ImageHash's phash looks at the lowest 16 x 16 frequencies of a picture of 64 x 64.
_SIDE, _GRID = 16, 64


def perceptual_hash(image: Image.Image) -> bytes | None:
    """ImageHash's `phash` of a picture with 16 x 16 frequencies, as 32 bytes, the first bit the highest of the first.

    Args:
        image: in mode RGB, upright; hash the picture as decoded, not what a model sees of it.

    Returns:
        None for a picture with next to no contrast: its bits would be those of the noise on it.

    Raises:
        MissingDependencyError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ImportError:
        raise MissingDependencyError('perceptual hashes need ImageHash: pip install "robustsim[search]"') from None
    small = image.convert("L").resize((_GRID, _GRID), Image.Resampling.LANCZOS)
    bits = imagehash.phash(small, hash_size=_SIDE).hash
    return np.packbits(bits).tobytes()


def hash_rows(hashes: Sequence[bytes]) -> "NDArray[np.int8]":
    """Hashes of 32 bytes as (N, 256) of -1 (bit 0) and 1 (bit 1).

    Divided by 16 they are vectors of length 1; the inner product of two that differ in b bits is 1 - b / 128.

    Raises:
        InputError: one is not of that length.
    """
    if wrong := [one for one in hashes if len(one) != HASH_BITS // 8]:
        raise InputError(f"a perceptual hash has {HASH_BITS // 8} bytes, and one of {len(wrong[0])} was passed")
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8)).reshape(len(hashes), HASH_BITS)
    return bits.astype(np.int8) * 2 - 1

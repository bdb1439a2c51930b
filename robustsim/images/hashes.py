"""Perceptual hashes: what stands beside an encoder, and knows other edits as harmless than it does."""

from collections.abc import Sequence
from functools import cache
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
# Noise of 2 grey levels on those 64 x 64 changes at most 8 bits of each of 400 photographs; it changes 24 where their
# contrast is a twentieth, and JPEG at half the size 28. From 32 on a hash says little about the picture.
_NOISE, _MOST_CHANGED = 2, 32


def perceptual_hash(image: Image.Image) -> bytes | None:
    """ImageHash's `phash` of a picture with 16 x 16 frequencies, as 32 bytes, the first bit the highest of the first.

    Args:
        image: in mode RGB, upright; hash the picture as decoded, not what a model sees of it.

    Returns:
        None if noise of 2 grey levels changes more than 32 bits, as on pictures with next to no contrast, plain
        gradients and single lines: different ones would have much the same hash, and one of them another in each copy.

    Raises:
        MissingDependencyError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ImportError:
        raise MissingDependencyError('perceptual hashes need ImageHash: pip install "robustsim[search]"') from None
    small = image.convert("L").resize((_GRID, _GRID), Image.Resampling.LANCZOS)
    noisy = Image.fromarray((np.asarray(small) + _noise()).clip(0, 255).astype(np.uint8))
    bits, others = (imagehash.phash(one, hash_size=_SIDE).hash for one in (small, noisy))
    return None if (bits != others).sum() > _MOST_CHANGED else np.packbits(bits).tobytes()


@cache
def _noise() -> "NDArray[np.int16]":
    # The older generator, whose numbers are the same in all versions of NumPy.
    return np.random.RandomState(0).randint(-_NOISE, _NOISE + 1, (_GRID, _GRID)).astype(np.int16)


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

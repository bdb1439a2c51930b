"""What counts as embeddings, and what goes with what: the rules of the metric for which nobody needs torch."""

from collections.abc import Sequence
from typing import Any

from robustsim.errors import InputError

#: How far from 1 the length of a vector may be that is taken for an embedding.
NO_EMBEDDING = 1e-2

#: The message about embeddings that are none.
NOT_FINITE = (
    "the encoder gave values that are not finite, or nothing but zeros: its weights are damaged, or do not fit into "
    "its type (float16 ends at 65,504; use dtype=torch.float32 or torch.bfloat16)"
)


def check_batch_size(batch_size: int) -> int:
    """Images per encoding, as they were asked for.

    Raises:
        InputError: less than one.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


def check_counts(counts: Sequence[int]) -> None:
    """N images against N or 1.

    Raises:
        InputError: other counts.
    """
    most = max(counts)
    if any(count not in (1, most) for count in counts):
        seen = " against ".join(f"{count} images" if place == 0 else str(count) for place, count in enumerate(counts))
        raise InputError(f"{seen}: the counts must be equal, or one of them 1")


def are_embeddings(array: Any, size: int) -> bool:
    """Whether an array is one of embeddings, such as np.load gives: any other array (H, W) is a grey picture.

    Args:
        array: what was passed.
        size: D of the embeddings.
    """
    import numpy as np

    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim not in (1, 2):
        return False
    return array.shape[-1] == size and np.allclose(np.linalg.norm(array, axis=-1), 1, atol=NO_EMBEDDING)

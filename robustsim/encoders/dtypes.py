"""The types that an encoder may compute in, and the way into them."""

from collections.abc import Mapping

import torch

from robustsim.encoders.encoder import Encoder
from robustsim.encoders.finite import non_finite, some
from robustsim.errors import InputError, WeightsError

_TYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
    "fp64": torch.float64,
}


def parse_dtype(dtype: object) -> torch.dtype:
    """A floating type of torch, or its name, as ``dtype=`` takes it; None is float32.

    Args:
        dtype: such as `torch.bfloat16`, `"torch.bfloat16"`, `"bfloat16"` or `"bf16"`.

    Raises:
        InputError: an encoder cannot compute in it.
    """
    if dtype is None:
        return torch.float32
    found = _TYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in _TYPES.values():
        raise InputError(
            f"dtype={dtype!r} is no type that an encoder computes in: use torch.float32, torch.bfloat16, torch.float16 "
            "or torch.float64, or their names, such as 'bfloat16'"
        )
    return found


def cast_encoder(encoder: Encoder, dtype: object) -> Encoder:
    """The encoder itself, its weights and buffers brought to a type that `parse_dtype` understands.

    Raises:
        InputError: an encoder cannot compute in it.
        WeightsError: some of the weights are too large for it, and would be infinities.
    """
    wanted = parse_dtype(dtype)
    if wanted == encoder.mean.dtype:
        return encoder
    over = non_finite(encoder.to(wanted).state_dict())
    if over:
        raise WeightsError(
            f"weights of {encoder.card.name!r} are too large for {wanted}, which ends at "
            f"{torch.finfo(wanted).max:.4g}: {some(over)}. Use torch.bfloat16 or torch.float32"
        )
    return encoder

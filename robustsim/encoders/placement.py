"""Where an encoder lives and in which type it computes: what people write, as torch's own."""

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
_NO_DEVICE = "this machine, or this build of torch, has no {!r} device: use device='cpu'"


def parse_dtype(dtype: object) -> torch.dtype:
    """A floating type of torch, or its name, as `dtype=` takes it; None is float32.

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


def refuse_overflow(encoder: Encoder) -> None:
    """Refuse an encoder some of whose weights have become infinities in the type that it was brought to.

    Raises:
        WeightsError: they have; the message names them.
    """
    if over := non_finite(encoder.state_dict()):
        kind = encoder.mean.dtype
        raise WeightsError(
            f"weights of {encoder.card.name!r} are too large for {kind}, which ends at {torch.finfo(kind).max:.4g}: "
            f"{some(over)}. Use torch.bfloat16 or torch.float32, and load it anew: what was too large is lost"
        )


def find_device(device: "str | torch.device | None") -> torch.device:
    """A device by its name; None for CUDA where there is one, else MPS, else the CPU.

    Raises:
        InputError: there is no such device, or this machine has none.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{device!r} is no device: use 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if place.type == "meta":
        raise InputError("on the device 'meta' there are no weights to compute with: use device='cpu'")
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if place.type not in ("cpu", *missing):
        try:
            torch.empty(0, device=place)
        except Exception as error:  # each backend has its own way to say that it is not there
            raise InputError(_NO_DEVICE.format(place.type)) from error
    if missing.get(place.type):
        raise InputError(_NO_DEVICE.format(place.type))
    return place

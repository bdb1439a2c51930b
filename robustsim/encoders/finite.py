"""Weights must be numbers: with one NaN among them every distance is NaN, and every choice is "left"."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustsim.errors import WeightsError


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinities, of any floating type; one pass over each tensor, without a copy of it.

    Args:
        tensors: by their names; integers are passed over.
        where: what holds them, the beginning of the message.

    Raises:
        WeightsError: some hold NaN or an infinity; the message names them.
    """
    bad = [f"{name} ({fault})" for name, value in tensors.items() if (fault := _fault(value))]
    if bad:
        raise WeightsError(
            f"{where} hold values that are not finite, in {len(bad)} of {len(tensors)} tensors: {some(bad)}. They are "
            "damaged, or of a training that failed, and measure nothing: take an earlier checkpoint, or fetch the file "
            "anew"
        )


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or an infinity."""
    return [name for name, value in tensors.items() if _fault(value)]


def some(names: list[str], count: int = 4) -> str:
    """A few of many names, for a message."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _fault(value: Tensor) -> str | None:
    value = value.detach()
    if value.is_complex():
        value = torch.view_as_real(value)
    if not value.is_floating_point() or not value.numel() or value.is_meta:
        return None
    if value.element_size() == 1:  # torch knows no order of the 8-bit types
        value = value.float()
    ends = torch.stack(torch.aminmax(value))  # the extremes of numbers with a NaN among them are NaN
    if ends.isnan().any():
        return "NaN"
    return "infinity" if ends.isinf().any() else None

"""Where the weights are in what training scripts save: the state dict in a file, the wrappers around its names."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from robustsim.encoders.finite import some
from robustsim.errors import WeightsError

# What a file calls the state dict of a model.
_STATE_DICTS = frozenset(
    {
        *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
        *("vision_encoder_state_dict", "vision_encoder", "visual", "image_encoder", "encoder", "backbone"),
        *("state_dict_ema", "model_ema", "ema_model", "ema", "ema_state_dict", "model_ema_state_dict", "params_ema"),
        *("teacher", "student"),
    }
)
# Parts that wrappers add to names, anywhere in them: torch.compile, FSDP, activation checkpointing, Lightning's Fabric.
_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_TRANSPARENT_PART = re.compile(rf"(?<![^.\x1f])(?:{'|'.join(_TRANSPARENT)})\.")
# What DataParallel, DDP, weight averaging and Lightning put before all names.
_WRAPPERS = re.compile(r"^(?:(?:module|model)\.)+")
# Between the names of nested mappings, as a point is within the names of a state dict; in no name itself.
_INSIDE = "\x1f"
_DEEPEST = 8


def unwrap(loaded: Any, where: str) -> dict[str, Tensor]:
    """The one state dict in a file: bare, or under one of the usual names, such as `state_dict` or `model`.

    Args:
        loaded: what the file holds.
        where: the file, for messages.

    Returns:
        The tensors by their names, without what torch.compile and FSDP add to them; none if there is no state dict.

    Raises:
        WeightsError: there are several, and they differ.
    """
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            return {}
        inside = {
            key: value
            for key, value in loaded.items()
            if key in _STATE_DICTS and isinstance(value, Mapping) and any(_leaves(value))
        }
        if not inside:
            break
        name, first = next(iter(inside.items()))
        if any(not _alike(dict(_leaves(first)), dict(_leaves(other))) for other in inside.values()):
            raise WeightsError(_several([f"{key!r}" for key in inside], where))
        loaded = inside[name]
    return _plain(_named(((name, value) for name, value in _leaves(loaded) if _INSIDE not in name), where), where)


def strip_wrappers(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names without the `module.` and `model.` before them, and without what weight averaging counts.

    Raises:
        WeightsError: that would make one name of two, whose tensors differ.
    """
    return _named(((_WRAPPERS.sub("", name), value) for name, value in tensors.items() if name != "n_averaged"), where)


def flatten(loaded: Any, where: str) -> dict[str, Tensor]:
    """All tensors in a file, however deep, by their way; `find_state` knows its form.

    Args:
        loaded: what the file holds.
        where: the file, for messages.

    Raises:
        WeightsError: one name twice, once with and once without what torch.compile or FSDP adds to it.
    """
    return _named(_leaves(loaded), where)


def find_state(tensors: Mapping[str, Tensor], wanted: Collection[str], where: str) -> dict[str, Tensor]:
    """The state dict in a file that has all the wanted names, whatever it lies in and whatever stands before them.

    Args:
        tensors: what `flatten` gave.
        wanted: the names that a module has.
        where: the file, for messages.

    Returns:
        Everything that lies where the wanted names do, under its name there. If they are nowhere together, where the
        most are.

    Raises:
        WeightsError: they are there several times, and differ.
    """
    wanted = frozenset(wanted)
    places: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(place + 1 for place, sign in enumerate(name) if sign in (".", _INSIDE))]
        places.update(name[:start] for start in starts if name[start:] in wanted)
    if not places or 2 * max(places.values()) < len(wanted):  # another architecture: the biggest state dict
        places = Counter(name[: name.rfind(_INSIDE) + 1] for name in tensors)
    # The best, and of the equally good the nearest to the top.
    most = max(places.values(), default=0)
    best = sorted((place for place, count in places.items() if count == most), key=len)
    found = [{name: tensors[place + name] for name in wanted if place + name in tensors} for place in best]
    if any(not _alike(found[0], other) for other in found[1:]):
        raise WeightsError(_several([f"{_shown(place)!r}" for place in best], where))
    place = best[0] if best else ""
    inside = {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}
    return _plain({name: value for name, value in inside.items() if _INSIDE not in name}, where)


def _leaves(loaded: Any, way: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested mappings and lists, with their way."""
    if isinstance(loaded, Tensor):
        yield way, loaded
    if depth >= _DEEPEST:
        return
    if isinstance(loaded, list | tuple):
        loaded = dict(enumerate(loaded))
    if isinstance(loaded, Mapping):
        for key, value in loaded.items():
            yield from _leaves(value, f"{way}{_INSIDE}{key}" if way else str(key), depth + 1)


def _named(leaves: Iterator[tuple[str, Tensor]], where: str) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for long_name, value in leaves:
        # Most have none, and are not taken apart.
        wrapped = any(part in long_name for part in _TRANSPARENT)
        name = _TRANSPARENT_PART.sub("", long_name) if wrapped else long_name
        if name in out and not _equal(out[name], value):
            raise WeightsError(
                f"{where} holds two different {_shown(name)}, with and without the names of wrappers before or in it"
            )
        out[name] = value
    return out


def _plain(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors, unless one of them has no values, or is not stored as an array of them."""
    for name, value in tensors.items():
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            kind = "without values" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            raise WeightsError(f"{where} holds {name!r}, which is {kind}: save plain tensors")
    return tensors


def _several(names: list[str], where: str) -> str:
    return (
        f"{where} holds {len(names)} sets of weights that differ, under {some(names)}, and it is not clear which is "
        "meant: save that one alone, into a file of its own"
    )


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, NaN in the same places included."""
    if one is other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _shown(place: str) -> str:
    return place.rstrip("." + _INSIDE).replace(_INSIDE, ".") or "the top"

"""The ways to make a map of where two pictures differ."""

from typing import Literal, get_args

from robustsim.errors import InputError

#: What several layers find together; the last layer's features; or integrated gradients of the distance.
MapMethod = Literal["layers", "features", "gradient"]
#: That of maps for which nothing is said.
METHOD: MapMethod = "layers"
#: Steps of `gradient`: with their backward passes, about as much as a dozen forward passes of both pictures.
STEPS = 12


def check_method(method: str) -> None:
    """Refuse what is no way to make a map.

    Raises:
        InputError: it is none.
    """
    if method not in get_args(MapMethod):
        raise InputError(f"method={method!r} is none of {', '.join(get_args(MapMethod))}")

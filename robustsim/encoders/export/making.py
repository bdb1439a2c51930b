"""The ONNX form of a bundled model: made once of its weights file, without torch, and kept in the cache."""

import hashlib
import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from robustsim import __version__
from robustsim.encoders.card import EncoderCard, load_card
from robustsim.encoders.export.files import EXPORT_VERSION, describe, read_sealed
from robustsim.errors import CorruptFileError, MissingDependencyError, OutputError, WeightsError

# Whatever decides on the graph: another one is another file.
_SOURCES = ("export/lite_graph.py", "export/packing.py", "lite_plan.py")


def bundled_model(name: str, *, anew: bool = False) -> bytes:
    """A bundled model as an exported file's bytes, from the cache if it is there and whole.

    Args:
        name: of the model.
        anew: whatever is in the cache.

    Raises:
        MissingDependencyError: onnx is not installed, and nothing is in the cache.
        CorruptFileError: the weights are not those that the card names.
    """
    card = load_card(name)
    path = cached_path(card)
    if path is not None and not anew:
        with suppress(WeightsError):  # whatever is wrong with it, it can be made anew
            return read_sealed(path)
    model = _made(card)
    if path is None:
        return model
    with suppress(OutputError):  # a home that cannot be written to costs the making each time, no more
        from robustsim.encoders.weights import whole_file

        with whole_file(path) as temporary:
            temporary.write_bytes(model)
    return model


def cached_path(card: EncoderCard) -> Path | None:
    """Where the ONNX form of a card's weights is kept: `robustsim/onnx` in the user's cache; None without a home."""
    known = hashlib.sha256(card.to_json().encode())  # the weights' checksum is in the card
    for source in _SOURCES:
        known.update(files("robustsim.encoders").joinpath(source).read_bytes())
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robustsim" / "onnx"
    except RuntimeError:  # nobody's home
        return None
    return cache / f"{card.name}-{known.hexdigest()[:16]}-{EXPORT_VERSION}-{__version__}.onnx"


def _made(card: EncoderCard) -> bytes:
    from robustsim.encoders.export.lite_graph import lite_graph
    from robustsim.encoders.export.packing import pack

    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the ONNX form of {card.name!r} is made with onnx, which is not installed: pip install 'robustsim[fast]'"
        ) from error
    held = files("robustsim.encoders").joinpath("bundled").joinpath(card.name).joinpath("model.safetensors")
    data = held.read_bytes()
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise CorruptFileError(f"the weights of {card.name!r} are damaged: install robustsim anew")
    from safetensors.numpy import load

    weights = card.calibration.weights if card.calibration else ""
    return pack(lite_graph(card, load(data)), describe(card, weights))

"""A graph of ours with what it says of itself, as the bytes of a file."""

from typing import Any

from robustsim.encoders.export.files import Exported, sealed
from robustsim.errors import InputError


def pack(model: Any, said: Exported) -> bytes:
    """An `onnx.ModelProto` with its metadata, sealed.

    Raises:
        InputError: it is larger than the 2 GiB that such a file can hold.
    """
    from onnx import helper

    helper.set_model_props(model, said.to_metadata())
    try:
        return sealed(model.SerializeToString(deterministic=True))
    except ValueError as error:  # protobuf's limit
        raise InputError(
            f"{said.card.name!r} is too large for one ONNX file, which ends at 2 GiB: use --format torch-export"
        ) from error

"""An encoder as a file that runs without this library: ONNX, or a program of `torch.export`."""

import dataclasses
import io
import json
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.encoder import Encoder
from robustsim.encoders.export.files import INPUT, OUTPUT, Exported, ExportFormat, describe
from robustsim.encoders.load import image_sha256, valid_calibration
from robustsim.encoders.weights import whole_file
from robustsim.errors import EncodingError, InputError, MissingDependencyError

# Distances of embeddings that a runtime may give instead of torch's; rounding alone makes 1e-6.
_MOST_ERROR = 1e-3


class _Embeds(nn.Module):
    """Pixels (N, 3, S, S) in [0, 1] -> unit embeddings (N, D), as `RobustSim.embed_pixels`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.encoder(pixels).to(torch.float32), dim=1)


def export_encoder(
    encoder: Encoder, path: "str | os.PathLike[str]", *, form: ExportFormat = "onnx", int8: bool = False
) -> Exported:
    """Write an encoder into one file that takes pixels (N, 3, S, S) in [0, 1] and gives unit embeddings (N, D).

    N is free, and the normalisation inside. The card, the preprocessing, the checksum of the weights and the versions
    stand in the file's metadata (ONNX), or in its extra file `robustsim.json` (`torch.export`).
    [`robustsim.from_onnx`][robustsim.from_onnx] makes a metric of an ONNX file, without torch.

    Args:
        encoder: in float32 and on the CPU, such as `load_encoder(name)` or `metric.encoder`.
        path: the file, which is replaced if it is there.
        form: `onnx` or `torch-export`.
        int8: products of matrices in 8 bits, with scales that each call computes (dynamic quantisation); what that
            costs is measured on pictures of noise, told in the result and written into the file. ONNX only.

    Returns:
        What the file says of itself.

    Raises:
        InputError: a format that is not known, an encoder in another type or place, or nothing to quantise.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        EncodingError: the file would give other embeddings than the encoder.
        OutputError: it cannot be written; what was there before stays.
    """
    if form not in ("onnx", "torch-export"):
        raise InputError(f"the export format {form!r} is none of onnx, torch-export")
    if int8 and form != "onnx":
        raise InputError("int8 goes with the format onnx: a program of torch.export is quantised by torchao")
    if encoder.mean.dtype != torch.float32 or encoder.mean.device.type != "cpu":
        raise InputError(
            f"an encoder in {encoder.mean.dtype} on {encoder.mean.device} is not exported: load it with device='cpu' "
            "and dtype=torch.float32"
        )
    card = encoder.card
    if card.calibration is not None and valid_calibration(encoder) is None:  # its weights are others by now
        card = dataclasses.replace(card, calibration=None, weights_sha256=None, source=None)
    said = describe(card, image_sha256(encoder))
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad(), torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about their own insides
            if form == "torch-export":
                data = _program(encoder, said)
            else:
                data, said = _onnx(encoder, said, int8)
    finally:
        encoder.train(training)
    with whole_file(Path(path).expanduser()) as temporary:
        temporary.write_bytes(data)
    return said


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth noise with the spectrum of photographs, 1 / f: (count, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    smooth = torch.fft.irfft2(spectrum / (rows.square() + columns.square()).sqrt().clamp_min(1 / size), s=(size, size))
    found: Tensor = (0.5 + smooth / (4 * smooth.flatten(1).std(1)[:, None, None, None])).clamp(0, 1)
    return found


def _program(encoder: Encoder, said: Exported) -> bytes:
    size = said.card.preprocessing.size
    shapes = {INPUT: {0: torch.export.Dim("n")}}
    program = torch.export.export(_Embeds(encoder).eval(), (pictures(2, size),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    about = json.dumps(said.to_metadata(), indent=2)
    torch.export.save(program, buffer, extra_files={"robustsim.json": about})
    return buffer.getvalue()


def _onnx(encoder: Encoder, said: Exported, int8: bool) -> tuple[bytes, Exported]:
    from robustsim.encoders.export.packing import pack
    from robustsim.encoders.export.session import open_session

    card = said.card
    _require("onnx", "onnxruntime")
    if card.architecture.library == "robustsim" and encoder.head is None:
        from robustsim.encoders.export.lite_graph import lite_graph

        model = lite_graph(card, {key: value.numpy() for key, value in encoder.state_dict().items()})
    else:
        model = _traced(encoder)
    pixels = pictures(2, card.preprocessing.size)
    data = pack(model, said)
    run = open_session(data, repr(card.name)).run
    off = float(np.abs(run([OUTPUT], {INPUT: pixels.numpy()})[0] - _Embeds(encoder)(pixels).numpy()).max())
    if not off <= _MOST_ERROR:
        raise EncodingError(
            f"the ONNX form of {card.name!r} gives other embeddings than the model, by {off:.2g}: it was not written"
        )
    if int8:
        from robustsim.encoders.export.quantise import quantised

        return quantised(model, said, _Embeds(encoder), pictures(8, card.preprocessing.size))
    return data, said


def _require(*packages: str) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"the format onnx needs {name}, which is not installed: pip install 'robustsim[fast]'"
            ) from error


def _traced(encoder: Encoder) -> Any:
    _require("onnxscript")
    program = torch.onnx.export(
        _Embeds(encoder).eval(),
        (pictures(2, encoder.card.preprocessing.size),),
        dynamo=True,
        dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    if program is None:
        raise EncodingError(f"torch gave no ONNX form of {encoder.card.name!r}")
    model = program.model_proto
    del model.metadata_props[:]
    for node in model.graph.node:  # where in which file each was made: nobody's business, and other bits each time
        del node.metadata_props[:]
        node.doc_string = ""
    return model

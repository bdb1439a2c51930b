"""What a machine does with an encoder: pictures and gradients a second of each way to run it, and what each costs."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.encoders.card import load_card
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.encoders.memory import peak_memory

REFERENCE = "modules"
_ROUNDS = 3  # in turn, so that what else the machine does falls on all modes alike


@dataclass
class Measured:
    """One mode of one model; what could not be measured is None.

    Attributes:
        mode: `modules` (the library's own, float32), `default`, `bfloat16`, `float16`, `compiled`, `onnx` (on ONNX
            Runtime, float32) or `onnx-int8` (likewise, with products of matrices in 8 bits).
        images_per_second: forward, by the median of its calls.
        gradients_per_second: pictures a second, forward and backward to the pixels.
        error_median: 1 - cosine of embeddings to those of `modules`, over the pictures of the batch.
        error_worst: likewise.
        model_bytes: what the parameters and buffers take, or the file.
        peak_bytes: on CUDA, the largest amount of memory that was allocated in a round, with what the other modes hold.
            On the CPU of Linux, the most by which the process grew in the mode's first calls or in a round, forward and
            gradients together: the weights are not in it, nor what the allocator had kept and handed out again. None
            elsewhere.
        problem: why the mode was left, or empty.
    """

    mode: str
    images_per_second: float | None = None
    gradients_per_second: float | None = None
    error_median: float | None = None
    error_worst: float | None = None
    model_bytes: int | None = None
    peak_bytes: int | None = None
    problem: str = ""

    def keep_peak(self, seen: int) -> None:
        """Take a peak of memory into account."""
        self.peak_bytes = max(self.peak_bytes or 0, seen)


@dataclass
class _Mode:
    said: Measured
    forward: Callable[[Tensor], Tensor]
    differentiable: bool = True
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"forward": [], "gradient": []})


def measure(
    encoder: Encoder, *, batch_size: int = 8, seconds: float = 3.0, compiled: bool = False
) -> tuple[list[Measured], bool]:
    """Measure the modes of an encoder where it is; a mode that fails is told in its `problem`.

    Args:
        encoder: in float32; its parameters are frozen here.
        batch_size: pictures a call.
        seconds: about how long each mode is run, forward and gradients together, after its first calls.
        compiled: with `torch.compile`, which takes minutes.

    Returns:
        The modes, the reference first, and whether they are all measured: False after Ctrl-C.
    """
    encoder = encoder.eval().requires_grad_(False)
    pixels = pictures(batch_size, encoder.card.preprocessing.size).to(encoder.mean.device)
    modes: list[_Mode] = []
    told: list[Measured] = []
    try:
        reference: Tensor | None = None
        for name, build in _builders(encoder, compiled).items():
            said = Measured(name)
            told.append(said)
            try:
                mode = build(said)
                with peak_memory(pixels.device, said.keep_peak):
                    found = _forward(mode, pixels)
                    if mode.differentiable:
                        _gradient(mode, pixels)
                found = _unit(found)
            except Exception as error:  # an unsupported type, an operator that is missing, no memory: one mode less
                said.problem = _first_line(error)
                continue
            if not bool(found.isfinite().all()):
                said.problem = "its embeddings are not finite"
                continue
            reference = found if reference is None else reference
            errors = (1 - (found * reference).sum(1)).clamp(min=0)
            said.error_median, said.error_worst = float(errors.median()), float(errors.max())
            modes.append(mode)
        for _ in range(_ROUNDS):
            for mode in modes:
                try:
                    _round(mode, pixels, seconds / _ROUNDS)
                except Exception as error:
                    mode.said.problem = _first_line(error)
    except KeyboardInterrupt:
        for said in told:
            if said.images_per_second is None and not said.problem:
                said.problem = "interrupted before it was timed"
        return told, False
    return told, True


def pictures(count: int, size: int) -> Tensor:
    """(N, 3, S, S) in [0, 1]: gratings, a shape with an edge and some noise, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    made = []
    for _ in range(count):
        draw = torch.rand(3, 6, generator=generator).unbind(1)
        angle, wave, phase, across, down, radius = (one.view(3, 1, 1) for one in draw)
        grating = torch.sin((x * angle.cos() + y * angle.sin()) * (2 + 30 * wave) + 6 * phase)
        disc = ((x - across[:1] + 0.5) ** 2 + (y - down[:1] + 0.5) ** 2 < (0.2 + 0.5 * radius[:1]) ** 2).float()
        noise = torch.randn(3, size, size, generator=generator)
        made.append((0.5 + 0.25 * grating + 0.4 * (disc - 0.5) * (phase - 0.5).sign() + 0.03 * noise).clamp(0, 1))
    return torch.stack(made)


def random_encoder(name: str) -> Encoder:
    """A catalogue model's architecture with random values, which run as fast as the real ones."""
    encoder = build_encoder(load_card(name))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + float(parameter.ndim <= 1 and key.endswith("weight")))
    encoder.card = dataclasses.replace(encoder.card, weights_sha256=None)  # they are not the ones it names
    return encoder


def _builders(encoder: Encoder, compiled: bool) -> dict[str, Callable[[Measured], _Mode]]:
    def plain(said: Measured) -> _Mode:
        said.model_bytes = _size(encoder)
        return _Mode(said, own_modules(encoder))

    def default(said: Measured) -> _Mode:
        said.model_bytes = _size(encoder)
        return _Mode(said, encoder)

    def narrow(dtype: torch.dtype) -> Callable[[Measured], _Mode]:
        def build(said: Measured) -> _Mode:
            narrowed = copy.deepcopy(encoder).to(dtype)
            said.model_bytes = _size(narrowed)
            return _Mode(said, narrowed)

        return build

    def through_compiler(said: Measured) -> _Mode:
        said.model_bytes = _size(encoder)
        function: Callable[[Tensor], Tensor] = torch.compile(encoder)
        return _Mode(said, function)

    builders: dict[str, Callable[[Measured], _Mode]] = {
        REFERENCE: plain,
        "default": default,
        "bfloat16": narrow(torch.bfloat16),
        "float16": narrow(torch.float16),
    }
    if compiled:
        builders["compiled"] = through_compiler
    if encoder.mean.device.type == "cpu":

        @cache  # an exporter takes seconds, and both modes begin with its file
        def exported() -> bytes:
            return _exported(encoder)

        builders["onnx"] = lambda said: _session(exported(), said)
        builders["onnx-int8"] = lambda said: _session(_in_8_bits(exported(), encoder), said)
    return builders


def own_modules(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """The encoder with its library's own modules, past this package's fast paths."""
    trunk: Any = encoder.trunk
    module: nn.Module | None = getattr(trunk, "visual", getattr(trunk, "model", None))

    def run(pixels: Tensor) -> Tensor:
        x = encoder.normalize(pixels)
        # The bundled architecture has no other library: `layers` runs its modules one by one.
        features: Tensor = trunk.layers(x)[0] if module is None else module(x)
        return features if encoder.head is None else encoder.head(features)

    return run


def _exported(encoder: Encoder) -> bytes:
    """Its ONNX form in float32."""
    from robustsim.encoders.export.write import export_encoder

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_encoder(encoder, path)
        return path.read_bytes()


def _in_8_bits(model: bytes, encoder: Encoder) -> bytes:
    """The same with products of matrices in 8 bits."""
    import onnx

    from robustsim.encoders.export.files import describe
    from robustsim.encoders.export.quantise import quantised

    def embed(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return _unit(encoder(pixels), torch.float32)

    graph = onnx.load_from_string(model)
    del graph.metadata_props[:]
    shown = pictures(2, encoder.card.preprocessing.size)
    return quantised(graph, describe(encoder.card, ""), embed, shown)[0]


def _session(model: bytes, said: Measured) -> _Mode:
    from robustsim.encoders.export.files import INPUT, OUTPUT
    from robustsim.encoders.export.session import open_session

    said.model_bytes = len(model)
    session = open_session(model, "the ONNX form")

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])

    return _Mode(said, run, differentiable=False)


def _round(mode: _Mode, pixels: Tensor, seconds: float) -> None:
    """One round of one mode; its medians are those of all calls so far."""
    with peak_memory(pixels.device, mode.said.keep_peak):
        _time(mode, pixels, seconds)


def _time(mode: _Mode, pixels: Tensor, seconds: float) -> None:
    parts = {"forward": _forward, "gradient": _gradient} if mode.differentiable else {"forward": _forward}
    for part, function in parts.items():
        end = time.perf_counter() + seconds / len(parts)
        while True:
            start = time.perf_counter()
            function(mode, pixels)
            _wait_for(pixels.device)
            now = time.perf_counter()
            mode.seconds[part].append(now - start)
            if now >= end:
                break
        rate = len(pixels) / statistics.median(mode.seconds[part])
        if part == "forward":
            mode.said.images_per_second = rate
        else:
            mode.said.gradients_per_second = rate


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _forward(mode: _Mode, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return mode.forward(pixels)


def _gradient(mode: _Mode, pixels: Tensor) -> Tensor:
    x = pixels.detach().requires_grad_()
    return torch.autograd.grad(_unit(mode.forward(x), torch.float32).sum(), x)[0]


def _unit(z: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    if z.device.type == "mps":  # which has no float64
        z = z.cpu()
    return nn.functional.normalize(z.to(dtype))


def _size(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))

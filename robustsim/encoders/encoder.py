"""The encoder: pixels in [0, 1] to features, with the normalisation inside."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsim.encoders.card import EncoderCard
from robustsim.encoders.fast.execution import Execution, is_compiled, memory_format
from robustsim.encoders.heads import ResidualMLP
from robustsim.errors import InputError


class Trunk(Protocol):
    """What the library-specific trunks have in common."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised (N, 3, S, S) -> (N, D)."""

    def tokens(self, x: Tensor, *, project: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised (N, 3, S, S) -> ((N, D), (N, C, h, w))."""

    def layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same with the maps of several layers, the first ones first; the last is that of `tokens`."""

    def path(self) -> tuple[str, str]:
        """By what code it is run, and why, as `Execution` has it."""


@dataclass(frozen=True)
class Features:
    """An encoder's view of N images, place by place.

    Attributes:
        embedding: (N, D), not normalised, as the encoder returns it.
        tokens: (N, h * w, C), row by row: a transformer's patch tokens after the last norm, or a convolutional
            network's last feature map.
        grid: (h, w).
        layers: on request, the maps of several layers, (N, C, h, w) each, from the first to the last, which is that of
            the tokens. Of a convolutional network, one for each resolution.
    """

    embedding: Tensor
    tokens: Tensor
    grid: tuple[int, int]
    layers: tuple[Tensor, ...] = ()


class Encoder(nn.Module):
    """A trunk with its card, its normalisation and its head.

    Normalisation is inside, so that attacks and losses live in [0, 1] pixels. Parameters are as they were built,
    not frozen: training wants them; [`RobustSim`][robustsim.RobustSim] freezes its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: EncoderCard, trunk: nn.Module, text: nn.Module | None = None) -> None:
        super().__init__()
        self.card = card
        self.trunk = trunk
        self.head = ResidualMLP(card.embedding_dim, card.head.hidden) if card.head.kind == "mlp" else None
        self.text = text
        # Not persistent: the card says them, and weights files stay those of the trunk.
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] to the trunk's input; in the pixels' precision, then in the encoder's type."""
        mean, std = self.mean.to(pixels.dtype), self.std.to(pixels.dtype)
        return ((pixels - mean) / std).to(self.mean.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of preprocessed images.

        Args:
            pixels: (N, 3, S, S) in [0, 1], S the card's `preprocessing.size`, on the encoder's device.

        Returns:
            (N, D) in the encoder's type, not normalised.
        """
        features: Tensor = self.trunk(self.normalize(pixels))
        return features if self.head is None else self.head(features)

    def features(self, pixels: Tensor, *, project: bool = False, layers: bool = False) -> Features:
        """Features of preprocessed images together with their patch tokens or last feature map.

        Args:
            pixels: as for [`forward`][robustsim.encoders.Encoder.forward].
            project: bring the tokens into the space of the embedding, by the projection that CLIP applies to the
                class token, so that they can be compared with embeddings of texts (C is D then).
            layers: give the maps of several layers too, of the same pass; not with `project`.

        Raises:
            InputError: the architecture has no projection that can be applied place by place, or gives no access to
                its layers.
        """
        trunk: Any = self.trunk
        x, maps = self.normalize(pixels), ()
        if layers:
            embedding, maps = trunk.layers(x)
            last = maps[-1]
        else:
            embedding, last = trunk.tokens(x, project=project)
        if self.head is not None:
            embedding = self.head(embedding)
        height, width = last.shape[-2:]
        return Features(embedding, last.flatten(2).transpose(1, 2), (height, width), tuple(maps))

    def describe(self) -> Execution:
        """By what code its images are computed, on which device and in which type."""
        trunk: Any = self.trunk
        path, reason = trunk.path()
        return Execution(
            self.card.architecture.name,
            path,
            reason,
            self.mean.dtype,
            self.mean.device,
            memory_format(self.trunk),
            is_compiled(self),
        )

    def encode_text(self, texts: list[str]) -> Tensor:
        """(N, D) features of texts, not normalised.

        Raises:
            InputError: the encoder was loaded without its text tower, or has none.
        """
        if self.text is None:
            raise InputError(
                f"{self.card.name!r} was loaded without a text tower: load it with text=True"
                if self.card.architecture.library == "open_clip"
                else f"{self.card.name!r} has no text tower: use a CLIP model, such as 'clip-vit-b-32', with text=True"
            )
        features: Tensor = self.text(texts)
        return features


class _Uninitialised(TorchFunctionMode):
    """Builds modules without drawing their initial values, which the weights file overwrites anyway.

    That saves seconds for a large model, and leaves the caller's random numbers alone. Only this thread is affected.
    """

    _FILLS = frozenset({"normal_", "uniform_", "erfinv_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})
    _DRAWS = frozenset({"rand", "randn"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        if name in self._DRAWS:
            return torch.empty(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def build_encoder(card: EncoderCard, *, text: bool = False, **options: Any) -> Encoder:
    """The card's architecture with undefined weights, on the CPU, in float32; no random numbers are drawn.

    Args:
        card: what to build.
        text: with the text tower.
        options: for the library's own builder (see `timm_models.build`).
    """
    library = card.architecture.library
    # The fork catches what a constructor may draw in a way the mode does not see. New tensors are on the CPU, whatever
    # device the caller has set for theirs.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _Uninitialised():
        tower: nn.Module | None = None
        trunk: nn.Module
        if library == "open_clip":
            from robustsim.encoders import clip

            trunk, tower = clip.build(card, text=text)
        elif library == "timm":
            from robustsim.encoders import timm_models

            trunk = timm_models.build(card, **options)
        else:
            from robustsim.encoders import lite

            trunk = lite.build(card)
        if text and tower is None:
            raise InputError(f"{card.name!r} has no text tower: use a CLIP model, such as 'clip-vit-b-32'")
        # The caller's type of new tensors is not that of the weights: in bfloat16 they would lose half their digits.
        return Encoder(card, trunk, tower).float().eval()

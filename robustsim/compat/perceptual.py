"""What scripts use of the package `dreamsim`: its function, and the model and the preprocessing that it returns."""

import os
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from robustsim.compat.dropin import DropIn, Model, checked, crops, tell
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.encoders.placement import find_device
from robustsim.errors import InputError
from robustsim.images.inputs import ImageSource, load_square, split_images, stack_squares
from robustsim.images.preprocessing import Preprocessing
from robustsim.images.resize import full_precision
from robustsim.metric import RobustSim

# The original's folder of downloads, which is none of this package's.
_THEIR_CACHE = "./models"


class PerceptualModel(DropIn):
    """A model of this package with the calls, the range and the shapes of DreamSim's: pictures (N, 3, S, S) in [0, 1].

    Pictures of the size that the model looks at are taken as they are, as the preprocessing has left them. Of any other
    size, they are brought to it as the model's card says.

    Args:
        model: a catalogue name, a Hub id, a folder, or a [`RobustSim`][robustsim.RobustSim].
        device: where to load it.
        normalize_embeds: whether `embed` gives vectors of length 1.
    """

    # Of the adapter around it, and of the networks and the layer below it.
    theirs = re.compile(r"(base_model\.model\.)?(extractor_list\.\d+\.model|mlp\.fc[12])\..+")

    def __init__(self, model: Model, device: "str | torch.device | None", normalize_embeds: bool = True) -> None:
        super().__init__(model, device)
        self.normalize_embeds = normalize_embeds

    @property
    def device(self) -> torch.device:
        """Where the encoder is; pictures are brought there."""
        return self.metric.device

    @property
    def embed_size(self) -> int:
        """D, of the embeddings."""
        return self.metric.card.embedding_dim

    def forward(self, img_a: Tensor, img_b: Tensor) -> Tensor:
        """`1 - cos` of the embeddings of pairs, (N,) float32 in [0, 2]; differentiable.

        Args:
            img_a: N pictures in [0, 1], or 1: (N, 3, S, S). Values outside the range are clamped, and their gradient
                passes unless it leads further out.
            img_b: the same, of the same count, or one of them 1.

        Raises:
            InputError: another shape, counts that do not fit, or, where nothing is compiled, values as of 0..255.
        """
        if (empty := self.of_none(img_a, img_b)) is not None:
            return empty
        d = self.distance(self.pixels(img_a, (0, 1)), self.pixels(img_b, (0, 1)), squared=True)
        return d.to(img_a.device)

    def embed(self, img: Tensor) -> Tensor:
        """Embeddings of pictures, (N, D) float32: of length 1; without `normalize_embeds`, as the encoder has them."""
        pixels = self.pixels(img, (0, 1))
        with full_precision(pixels):
            if self.normalize_embeds:
                z = self.metric.embed_pixels(pixels)
            else:
                encoder = self.metric.encoder
                parts = [encoder(batch) for batch in torch.split(pixels, self.metric.batch_size)]
                z = torch.cat(parts).to(torch.float32)
            return checked(z, (pixels,), (z,))

    def prepared(self, images: Tensor) -> Tensor:
        """What has the size that the model looks at was resized, and perhaps cropped, before."""
        size = self.metric.card.preprocessing.size
        return images if images.shape[-2:] == (size, size) else super().prepared(images)


def dreamsim(
    pretrained: bool = True,
    device: "str | torch.device | None" = None,
    cache_dir: "str | os.PathLike[str]" = _THEIR_CACHE,
    normalize_embeds: bool = True,
    dreamsim_type: str = "ensemble",
    use_patch_model: bool = False,
    *,
    model: Model = DEFAULT_MODEL,
) -> tuple[PerceptualModel, Callable[[ImageSource], Tensor]]:
    """A model of this package in the place of the one that `dreamsim.dreamsim` returns, with its preprocessing.

    The distance is `1 - cos`, DreamSim's own formula, of other embeddings: numbers do not compare. It says once in a
    process how it differs (`CompatWarning`).

    Args:
        pretrained: True; an untrained metric is none.
        device: None for CUDA where there is one, else MPS, else the CPU; the original has "cuda".
        cache_dir: where downloads of a model from the Hub are kept. The default is the original's folder, and left
            alone: it stands for huggingface_hub's cache.
        normalize_embeds: whether `model.embed` gives vectors of length 1; the original also takes away their mean.
        dreamsim_type: without effect: `model` chooses.
        use_patch_model: without effect.
        model: a catalogue name, a Hub id, a folder, or a [`RobustSim`][robustsim.RobustSim], whose encoder is
            used where it is unless a device is given.

    Returns:
        `(model, preprocess)`. `preprocess(image)` takes a PIL image, or any other picture that robustsim reads, and
        gives (1, 3, S, S) float32 in [0, 1] on the CPU by the model's reference pipeline, bit for bit. S is 224 for the
        default, and for each model what its card says.

    Raises:
        InputError: `pretrained` is False, or this machine has no such device.
        RobustSimError: the model cannot be loaded, as for
            [`from_pretrained`][robustsim.RobustSim.from_pretrained].
    """
    if not pretrained:
        raise InputError(
            "pretrained=False cannot be honoured by robustsim.compat.dreamsim: there is no untrained metric here: "
            "model= takes a catalogue name, a folder or a RobustSim"
        )
    if not isinstance(model, RobustSim):
        own = None if os.fspath(cache_dir) == _THEIR_CACHE else cache_dir
        model = RobustSim.from_pretrained(model, device=device, cache_dir=own)
    elif device is not None:
        model = model.to(find_device(device))
    made = PerceptualModel(model, None, normalize_embeds)
    card = made.metric.card
    tell(
        "dreamsim",
        f"robustsim.compat.dreamsim gives {card.name!r} of robustsim in DreamSim's place: dreamsim_type= and "
        "use_patch_model= have no effect (model= chooses), and distances, 1 - cos, do not compare with DreamSim's. "
        f"{crops(card)}Said once; "
        'warnings.filterwarnings("ignore", category=robustsim.compat.CompatWarning) silences it',
    )
    return made, partial(_preprocess, preprocessing=card.preprocessing)


def _preprocess(image: ImageSource, *, preprocessing: Preprocessing) -> Tensor:
    """One picture as (1, 3, S, S); of the module, so that it can be sent to the processes of a data loader."""
    (part,) = split_images(image)
    if isinstance(part, Tensor):
        raise InputError("preprocess takes a PIL image, a file or a uint8 array; tensors go to the model as they are")
    return stack_squares([load_square(part, preprocessing)], torch.device("cpu"))

"""What scripts use of the package `lpips`: its class, and its ways from files to tensors in [-1, 1] and back."""

import os
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsim.compat.dropin import DropIn, Model, batch_of, checked, crops, tell
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.errors import InputError
from robustsim.images.decode import read_image
from robustsim.images.resize import full_precision

__all__ = ["LPIPS", "im2tensor", "load_image", "tensor2im"]

_NETS = ("alex", "vgg", "vgg16", "squeeze")


class LPIPS(DropIn):
    """A model of this package with the constructor, the call, the ranges and the shapes of `lpips.LPIPS`.

    It begins on the CPU, as the original does; `.to()` and `.cuda()` move it. Its value is `1 - cos` of the embeddings,
    in [0, 2]. Like LPIPS's, it is made of squared differences: its gradient goes to zero with the distance, as
    learning rates that were found with LPIPS expect.

    It differs from the original in that it looks at the picture at once, resized, and perhaps cropped, as the model's
    card says, mostly to 224 x 224; in that it is frozen whole, stays in eval mode, and leaves nothing in a checkpoint;
    in that it computes in float32 under autocast too; and in its numbers, which do not compare with LPIPS's. It says so
    once in a process (`CompatWarning`), unless `verbose` is False.

    Args:
        pretrained: True; an untrained metric is none.
        net: `alex`, `vgg` or `squeeze`; without effect: `model` chooses the encoder.
        version: without effect.
        lpips: without effect.
        spatial: give maps (N, 1, H, W) instead of one number for a pair, as
            [`difference_map`][robustsim.explain.difference_map] makes them by `layers`: the mean of a map, over what
            the model looks at, is the number.
        pnet_rand: False; an encoder of random weights is none of this package's.
        pnet_tune: False; the encoder is frozen.
        use_dropout: without effect: there is none.
        model_path: None; weights of LPIPS fit no encoder here.
        eval_mode: without effect: it is always in eval mode.
        verbose: whether to say once how it differs.
        model: a catalogue name, a Hub id, a folder, or a [`RobustSim`][robustsim.RobustSim], whose encoder is
            used where it is.
        squared: False gives the root, `sqrt(1 - cos)`, as `RobustSim` does.

    Raises:
        InputError: what cannot be honoured: an argument whose only value here is its default has another.
        RobustSimError: the model cannot be loaded, as for
            [`from_pretrained`][robustsim.RobustSim.from_pretrained].
    """

    # Of the three trunks, and the linear layers, which the original registers twice.
    theirs = re.compile(
        r"scaling_layer\.(shift|scale)"
        r"|net\.slice[1-7]\.\d+\.((squeeze|expand1x1|expand3x3)\.)?(weight|bias)"
        r"|lin(s\.)?[0-6]\.model\.[01]\.weight"
    )

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: "str | os.PathLike[str] | None" = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        model: Model = DEFAULT_MODEL,
        squared: bool = True,
    ) -> None:
        _refuse(pretrained=pretrained, pnet_rand=pnet_rand, pnet_tune=pnet_tune, model_path=model_path, net=net)
        super().__init__(model, "cpu")
        # What scripts read of the original.
        self.pnet_type, self.version, self.lpips, self.spatial = net, version, lpips, spatial
        self.pnet_tune, self.pnet_rand, self.L = False, False, 1
        self.squared, self.verbose = squared, verbose
        if verbose:
            card = self.metric.card
            side = card.preprocessing.size
            tell(
                "LPIPS",
                f"robustsim.compat.lpips.LPIPS is {card.name!r} of robustsim in LPIPS's place: net={net!r} has no "
                f"effect (model= chooses), pictures are looked at in {side} x {side}, "
                f"values are {'1 - cos, in [0, 2],' if squared else 'sqrt(1 - cos)'} and do not compare with LPIPS's. "
                f"{crops(card)}Said once; verbose=False silences it",
            )

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Any:  # noqa: N803
        """Distances of pairs, differentiable: (N, 1, 1, 1) float32, or maps (N, 1, H, W) if `spatial`.

        Args:
            in0: N pictures in [-1, 1], or 1: (N, 3, H, W), (3, H, W), or grey, (N, 1, H, W) or (1, H, W). Values
                outside the range are clamped, and their gradient passes unless it leads further out. uint8 is 0..255.
            in1: the same, of the same count, or one of them 1; sizes may differ.
            retPerLayer: give `(value, [value])`: there is one layer.
            normalize: the range is [0, 1].

        Raises:
            InputError: another shape, counts that do not fit, or, where nothing is compiled, values as of 0..255.
        """
        input_range = (0, 1) if normalize else (-1, 1)
        height, width = batch_of(in0).shape[-2:]
        if (empty := self.of_none(in0, in1)) is not None:
            value = empty.view(0, 1, 1, 1).expand(0, 1, height, width) if self.spatial else empty.view(0, 1, 1, 1)
            return (value, [value]) if retPerLayer else value
        a, b = self.pixels(in0, input_range), self.pixels(in1, input_range)
        if self.spatial:
            from robustsim.explain.differences import map_of_pixels

            with full_precision(a):
                maps = map_of_pixels(self.metric, a, b, (height, width), squared=self.squared, check=False)
            value = checked(maps, (a, b), ())[:, None]
        else:
            value = self.distance(a, b, squared=self.squared)[:, None, None, None]
        value = value.to(in0.device)
        return (value, [value]) if retPerLayer else value


def __getattr__(name: str) -> Any:
    if not name.startswith("__"):
        raise AttributeError(
            f"robustsim.compat.lpips has {', '.join(__all__)}, and no {name!r}: the package lpips itself has the rest"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _refuse(*, pretrained: bool, pnet_rand: bool, pnet_tune: bool, model_path: object, net: str) -> None:
    """What would be silently something else."""
    other = "model= takes a catalogue name, a folder or a RobustSim"
    for wrong, said, why in (
        (not pretrained, "pretrained=False", f"there is no untrained metric here: {other}"),
        (pnet_rand, "pnet_rand=True", f"there is no random encoder here: {other}"),
        (pnet_tune, "pnet_tune=True", "the encoder is frozen: `robustsim train` and `robustsim finetune` make another"),
        (model_path is not None, f"model_path={model_path!r}", f"LPIPS's weights fit no encoder here: {other}"),
        (net not in _NETS, f"net={net!r}", f"LPIPS has the nets {', '.join(_NETS)}; for a model of robustsim, {other}"),
    ):
        if wrong:
            raise InputError(f"{said} cannot be honoured by robustsim.compat.lpips: {why}")


def load_image(path: "str | os.PathLike[str]") -> "NDArray[np.uint8]":
    """A file as (H, W, 3) uint8, RGB; any that robustsim reads.

    Raises:
        ImageError: it cannot be read.
    """
    return np.array(read_image(path))


def im2tensor(image: "NDArray[Any]", imtype: type = np.uint8, cent: float = 1.0, factor: float = 255 / 2) -> Tensor:
    """(H, W, 3) in 0..255 as (1, 3, H, W) float32 in [-1, 1]: `image / factor - cent`. `imtype` has no effect."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image / factor - cent, 2, 0), dtype=np.float32))[None]


def tensor2im(
    image_tensor: Tensor, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255 / 2
) -> "NDArray[Any]":
    """The first of (N, 3, H, W) in [-1, 1] as (H, W, 3) in 0..255, cut off to whole numbers as the original does."""
    image = image_tensor[0].detach().cpu().float().numpy()
    converted: NDArray[Any] = ((np.moveaxis(image, 0, 2) + cent) * factor).astype(imtype)
    return converted

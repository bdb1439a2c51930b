"""Distortions of known, ordered strength: from 1, hardly to be seen, to 5.

JPEG, noise, contrast and pixelation are corruptions of ImageNet-C (Hendrycks and Dietterich 2019) with its strengths;
the other kinds move things or colours about. torchvision and Pillow compute them.
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

from PIL import Image

from robustsim.errors import InputError
from robustsim.images import Preprocessing, read_image

if TYPE_CHECKING:
    from torch import Tensor

#: Side of the pictures that are distorted, in pixels.
SIDE = 224
LEVELS = 5

_AMOUNTS: dict[str, tuple[float, ...]] = {
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "blur": (0.7, 1.2, 2.0, 3.2, 5.0),  # standard deviation of the Gaussian, in pixels
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, of pixels in [0, 1]
    "colour shift": (0.02, 0.05, 0.1, 0.17, 0.25),  # of the circle of hues
    "crop": (0.95, 0.88, 0.8, 0.7, 0.58),  # side of the part that stays
    "rotation": (2, 5, 10, 18, 30),  # degrees
    "warp": (2, 4, 7, 11, 16),  # largest displacement, in pixels
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor
    "pixelation": (0.6, 0.5, 0.4, 0.3, 0.25),  # factor of the size
}
#: All kinds.
DISTORTIONS = tuple(_AMOUNTS)

# What a caption says, and the quality of JPEG of what is posted again.
_CAPTION, _REPOSTED = "Best picture of the year 2024", 70

_Distort: TypeAlias = Callable[[Image.Image, float, int], Image.Image]


@dataclass(frozen=True, slots=True)
class LadderPhoto:
    """A photograph as the ladder shows it: its middle square at 224 x 224, so that all metrics see the same."""

    path: Path

    @property
    def variant(self) -> str:
        """See `robustsim.evaluation.tasks.pictures.Picture`."""
        return "square"

    def read(self) -> Image.Image:
        """See `robustsim.evaluation.tasks.pictures.Picture`."""
        return _square(self.path).copy()


@dataclass(frozen=True, slots=True)
class Distorted:
    """A photograph of the ladder, distorted.

    Attributes:
        path: the file.
        kind: one of `DISTORTIONS`.
        level: 1 to 5.
        seed: of noise, of the direction of a turn and of the shape of a warp, which are the same at all levels.
    """

    path: Path
    kind: str
    level: int
    seed: int

    @property
    def variant(self) -> str:
        """See `robustsim.evaluation.tasks.pictures.Picture`."""
        return f"{self.kind} {self.level} {self.seed}"

    def read(self) -> Image.Image:
        """See `robustsim.evaluation.tasks.pictures.Picture`."""
        # A copy: Pillow writes into a picture that it saves, and several threads are at work on this one.
        return distort(_square(self.path).copy(), self.kind, self.level, self.seed)


@lru_cache(maxsize=32)  # decoded once, not for each of its distortions, which come one after the other
def _square(path: Path) -> Image.Image:
    return Preprocessing(size=SIDE, mode="shortest").apply(read_image(path))


def seed_of(name: str, seed: int) -> int:
    """A seed for one photograph, by its name, so that it does not depend on which others there are."""
    return crc32(name.encode()) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF)


def distort(image: Image.Image, kind: str, level: int, seed: int = 0) -> Image.Image:
    """Distort an RGB picture.

    Args:
        image: of any size; amounts in pixels are meant for a side of 224.
        kind: one of `DISTORTIONS`.
        level: 1 to 5.
        seed: see `Distorted`.
    """
    return change(image, kind, _AMOUNTS[kind][level - 1], seed)


def change(image: Image.Image, kind: str, amount: float, seed: int = 0) -> Image.Image:
    """Change an RGB picture by any amount.

    Args:
        image: of any size; it keeps it.
        kind: one of `DISTORTIONS`, or `resize` (amount: factor of the size, and back), `mirror` (no amount),
            `brightness` (factor), `saturation` (factor; 0 leaves grey), `grey` (no amount), `border` (white or black;
            its width, as a share of the sides), `caption` (a line of text on a dark strip along the lower edge; its
            height, as a share), `repost` (factor of the size, saved as JPEG of quality 70, and back).
        amount: what it is for each kind of `DISTORTIONS`, the table of levels says; `check_changes` knows its range.
        seed: see `Distorted`.
    """
    return _HOW[kind](image, amount, seed)


def _jpeg(image: Image.Image, quality: float, seed: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=int(quality))
    return read_image(data.getvalue())


def _blur(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    half = round(4 * sigma)
    if min(image.size) > half:
        blurred: Image.Image = _F().gaussian_blur(image, 2 * half + 1, sigma)
        return blurred
    # The blur mirrors a picture at its edges, which takes more pixels than half its window: here the edges go on.
    padded = _F().pad(image, [half, half], padding_mode="edge")
    middle: Image.Image = _F().center_crop(_F().gaussian_blur(padded, 2 * half + 1, sigma), [image.height, image.width])
    return middle


def _noise(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    return _picture(_pixels(image) + sigma * _random(seed, 3, image.height, image.width))


def _colour_shift(image: Image.Image, amount: float, seed: int) -> Image.Image:
    shifted: Image.Image = _F().adjust_hue(image, amount if seed % 2 else -amount)
    return shifted


def _crop(image: Image.Image, share: float, seed: int) -> Image.Image:
    margin_x, margin_y = image.width * (1 - share) / 2, image.height * (1 - share) / 2
    box = (margin_x, margin_y, image.width - margin_x, image.height - margin_y)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _rotation(image: Image.Image, degrees: float, seed: int) -> Image.Image:
    def turn(padded: Image.Image) -> Any:
        angle = degrees if seed % 2 else -degrees
        return _F().rotate(padded, angle, interpolation=_F().InterpolationMode.BILINEAR)

    return _inside(image, turn)


def _warp(image: Image.Image, pixels: float, seed: int) -> Image.Image:
    def bend(padded: Image.Image) -> Any:
        import torch
        from torch.nn.functional import interpolate

        # A smooth field: random directions at 5 x 5 places, and between them what bicubic interpolation gives.
        size = (padded.height, padded.width)
        field = interpolate(_random(seed, 1, 2, 5, 5), size=size, mode="bicubic", align_corners=True)
        scale = torch.tensor([2 / padded.width, 2 / padded.height]).view(1, 2, 1, 1)  # elastic counts from -1 to 1
        field = field / field.abs().amax() * pixels * scale
        return _F().elastic(padded, field.permute(0, 2, 3, 1))

    return _inside(image, bend)


def _inside(image: Image.Image, move: Callable[[Image.Image], Any]) -> Image.Image:
    """Move things about in a picture mirrored at its edges: black corners would be a distortion of another kind."""
    margins = [image.width // 3, image.height // 3]
    middle: Image.Image = _F().center_crop(
        move(_F().pad(image, margins, padding_mode="reflect")), [image.height, image.width]
    )
    return middle


def _contrast(image: Image.Image, factor: float, seed: int) -> Image.Image:
    flat: Image.Image = _F().adjust_contrast(image, factor)
    return flat


def _pixelation(image: Image.Image, factor: float, seed: int) -> Image.Image:
    small = image.resize(_scaled(image, factor), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _resize(image: Image.Image, factor: float, seed: int) -> Image.Image:
    small = image.resize(_scaled(image, factor), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _scaled(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _mirror(image: Image.Image, amount: float, seed: int) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _brightness(image: Image.Image, factor: float, seed: int) -> Image.Image:
    changed: Image.Image = _F().adjust_brightness(image, factor)
    return changed


def _saturation(image: Image.Image, factor: float, seed: int) -> Image.Image:
    changed: Image.Image = _F().adjust_saturation(image, factor)
    return changed


def _grey(image: Image.Image, amount: float, seed: int) -> Image.Image:
    return image.convert("L").convert("RGB")


def _border(image: Image.Image, share: float, seed: int) -> Image.Image:
    width, height = (max(1, round(side / (1 + 2 * share))) for side in image.size)
    framed = Image.new("RGB", image.size, (255,) * 3 if seed % 2 else (0,) * 3)
    place = ((image.width - width) // 2, (image.height - height) // 2)
    framed.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
    return framed


def _caption(image: Image.Image, share: float, seed: int) -> Image.Image:
    from PIL import ImageDraw, ImageFont

    strip = max(1, round(share * image.height))
    written = image.copy()
    draw = ImageDraw.Draw(written)
    draw.rectangle((0, image.height - strip, image.width, image.height), fill=(20, 20, 20))
    place = (image.width / 2, image.height - strip / 2)
    draw.text(place, _CAPTION, fill=(255,) * 3, font=ImageFont.load_default(0.6 * strip), anchor="mm")
    return written


def _repost(image: Image.Image, factor: float, seed: int) -> Image.Image:
    small = image.resize(_scaled(image, factor), Image.Resampling.BICUBIC)
    return _jpeg(small, _REPOSTED, seed).resize(image.size, Image.Resampling.BICUBIC)


_HOW: dict[str, _Distort] = {
    "jpeg": _jpeg,
    "blur": _blur,
    "noise": _noise,
    "colour shift": _colour_shift,
    "crop": _crop,
    "rotation": _rotation,
    "warp": _warp,
    "contrast": _contrast,
    "pixelation": _pixelation,
    "resize": _resize,
    "mirror": _mirror,
    "brightness": _brightness,
    "saturation": _saturation,
    "grey": _grey,
    "border": _border,
    "caption": _caption,
    "repost": _repost,
}


#: All kinds that `change` knows.
CHANGES = tuple(_HOW)

# The least and the largest amount; kinds without one take anything finite. Less than the least leaves nothing to see.
_RANGES: dict[str, tuple[float, float]] = {
    "jpeg": (1, 100),
    "blur": (0.1, 64),
    "noise": (0, 10),
    "colour shift": (0, 0.5),
    "crop": (0.01, 1),
    "rotation": (0, 360),
    "warp": (0, 512),
    "contrast": (0, 100),
    "pixelation": (0.001, 1),
    "resize": (0.001, 4),
    "brightness": (0, 100),
    "saturation": (0, 100),
    "border": (0, 4),
    "caption": (0.01, 1),
    "repost": (0.001, 4),
}


def check_changes(edits: Mapping[str, Sequence[float]]) -> None:
    """Refuse what `change` cannot do, before there is a picture.

    Args:
        edits: amounts by kind.

    Raises:
        InputError: a kind that is none of `CHANGES`, or an amount out of its range.
    """
    for kind, amounts in edits.items():
        if kind not in _HOW:
            raise InputError(f"{kind!r} is none of the edits {', '.join(CHANGES)}")
        least, most = _RANGES.get(kind, (-sys.float_info.max, sys.float_info.max))
        for amount in amounts:
            if not least <= amount <= most:  # NaN is in no range
                told = f"from {least:g} to {most:g}" if kind in _RANGES else "a finite number"
                raise InputError(f"an amount of {kind} must be {told}, not {amount:g}")


@cache
def _F() -> Any:  # noqa: N802 - torchvision's functions, imported when they are needed
    from torchvision.transforms.v2 import functional

    return functional


def _random(seed: int, *shape: int) -> "Tensor":
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pixels(image: Image.Image) -> "Tensor":
    return _F().pil_to_tensor(image).float() / 255  # type: ignore[no-any-return]


def _picture(pixels: "Tensor") -> Image.Image:
    return _F().to_pil_image(pixels.clamp(0, 1).mul(255).round().byte())  # type: ignore[no-any-return]

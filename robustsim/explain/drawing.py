"""Two pictures with the map of their difference over them, drawn with Pillow alone."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.errors import InputError
from robustsim.explain.colours import colours
from robustsim.explain.differences import compared
from robustsim.explain.gradients import gradients_with_squares
from robustsim.explain.methods import METHOD, STEPS, MapMethod, check_method
from robustsim.explain.panels import INK, MARGIN, PAPER, TEXT, font, row, shortened, sized
from robustsim.explain.resolution import interpolated, of_one_size
from robustsim.images.decode import read_image
from robustsim.images.inputs import ImageInput, count_images, split_images, unit_range
from robustsim.images.preprocessing import Preprocessing
from robustsim.metric import RobustSim

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

# How much of what is drawn is the map; the rest is the picture without its colours.
_OPACITY = 0.65
# Pixels of the square on a side of a cell of a drawn gradient: single pixels of it are grain.
_CELL = 8
_BAR = 18
_TICKS = 5
_TITLES = {
    "layers": "how the distance is shared out to the places (their mean is the distance, {distance:.3g})",
    "features": "how far apart the model's last layer finds each place (0: alike)",
    "gradient": "what each place adds to the distance, as a multiple of its share of the area (negative: takes away)",
}


@dataclass(frozen=True)
class Overlay:
    """A map of a pair on the encoder's square, with its scale.

    Attributes:
        values: (1, h, w), on the CPU.
        end: where the scale ends, above 0; it begins at 0, or at -end if signed.
        signed: whether values may be negative.
        title: what the numbers are.
        preprocessing: where the square lies on a picture.
        squared_distance: of the pair, to the bits that `metric.distance(a, b, squared=True)` gives.
    """

    values: Tensor
    end: float
    signed: bool
    title: str
    preprocessing: Preprocessing
    squared_distance: float = 0.0

    @property
    def distance(self) -> float:
        """That of the pair; the map was made in the same pass."""
        return math.sqrt(self.squared_distance)

    def over(self, picture: "Image.Image") -> "Image.Image":
        """The map over a picture of any size, RGB; grey alone where the encoder does not look."""
        import numpy as np
        from PIL import Image

        width, height = picture.size
        values = interpolated(self.values, (height, width), self.preprocessing)[0].numpy()
        grey = np.repeat(np.asarray(picture.convert("L"), np.float32)[..., None], 3, 2)
        left, top, right, bottom = self.preprocessing.seen(width, height)
        rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
        looked = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))[None]
        mixed = np.where(looked[..., None], self._mixed(grey, values), grey)
        return Image.fromarray(np.rint(mixed).astype(np.uint8))

    def legend(self, width: int) -> "Image.Image":
        """The scale with its numbers and its title, RGB, `width` pixels wide."""
        import numpy as np
        from PIL import Image, ImageDraw

        lines = _wrapped(self.title, width)
        canvas = Image.new("RGB", (width, _BAR + TEXT + 8 + len(lines) * (TEXT + 4)), PAPER)
        values = np.linspace(-self.end if self.signed else 0, self.end, width, dtype=np.float32)
        bar = self._mixed(np.full((1, width, 3), 128, np.float32), values[None])  # as it looks on grey
        canvas.paste(Image.fromarray(np.rint(np.repeat(bar, _BAR, 0)).astype(np.uint8)), (0, 0))
        draw = ImageDraw.Draw(canvas)
        for tick in range(_TICKS):
            share = tick / (_TICKS - 1)
            value = self.end * (2 * share - 1 if self.signed else share)
            anchor = "lt" if tick == 0 else "rt" if tick == _TICKS - 1 else "mt"
            draw.line([(share * (width - 1), _BAR), (share * (width - 1), _BAR + 3)], fill=INK)
            draw.text((share * width, _BAR + 6), f"{value:.3g}", fill=INK, font=font(), anchor=anchor)
        for number, line in enumerate(lines):
            top = _BAR + TEXT + 10 + number * (TEXT + 4)
            draw.text((width / 2, top), line, fill=INK, font=font(), anchor="mt")
        return canvas

    def _mixed(self, grey: "NDArray[Any]", values: "NDArray[Any]") -> "NDArray[Any]":
        return (1 - _OPACITY) * grey + _OPACITY * colours(values / self.end, signed=self.signed)


def overlay(
    metric: RobustSim, a: ImageInput, b: ImageInput, *, method: MapMethod = METHOD, steps: int = STEPS
) -> Overlay:
    """The map of one pair, made once, to be drawn over pictures of any size; it holds the pair's distance too.

    `gradient` is drawn by cells of 8 x 8 of the encoder's pixels, as multiples of what a cell would add if all that is
    looked at added the same.

    Raises:
        ImageError, InputError: as for `difference_map`.
    """
    check_method(method)
    parts, size = of_one_size(a)
    x, y, pre = metric.preprocess(parts), metric.preprocess(b), metric.card.preprocessing
    if method != "gradient":
        found = compared(metric, x, y, method=method)
        values, squares = found.on_square(size, pre, squared=False).detach().cpu(), found.squares
    else:
        amounts, squares = gradients_with_squares(metric, x, y, steps=steps, squared=False)
        total, side = float(amounts.sum()), amounts.shape[1]
        cells = F.adaptive_avg_pool2d(amounts.cpu()[None], max(1, side // _CELL))[0]
        values = cells * (side**2 / total if total > 0 else 0.0)
    square, most = float(squares), float(values.abs().max())
    end = most if most > 0 else 1.0
    crops = pre.seen(3, 2) != (0, 0, 3, 2)
    title = _TITLES[method].format(distance=math.sqrt(square)) + ("; without colour: not looked at" if crops else "")
    return Overlay(values, end, method == "gradient", title, pre, square)


def draw_difference(
    metric: RobustSim,
    a: ImageInput,
    b: ImageInput,
    *,
    method: MapMethod = METHOD,
    steps: int = STEPS,
    names: tuple[str, str] = ("a", "b"),
) -> "Image.Image":
    """Two pictures with the map of their difference over them: one scale of colours for both, with its numbers.

    The pictures are drawn grey, and below the colours; without colours where the model does not look. The scale ends at
    the largest value of this map, so that two drawings are compared by their numbers. It reads without colours too.

    Args:
        metric: whose encoder looks.
        a: one picture.
        b: another, of any size.
        method: as for [`difference_map`][robustsim.explain.difference_map].
        steps: likewise.
        names: written below the pictures.

    Returns:
        RGB; a panel has at most 768 x 512 pixels, and those of small pictures are enlarged by a whole factor.

    Raises:
        ImageError: a file that cannot be read.
        InputError: as for `difference_map`, or more than one picture on a side.
    """
    sides = [_one(side) for side in (a, b)]
    return draw_overlay(overlay(metric, *sides, method=method, steps=steps), *sides, names=names)


def draw_overlay(found: Overlay, a: ImageInput, b: ImageInput, *, names: tuple[str, str] = ("a", "b")) -> "Image.Image":
    """As `draw_difference`, of a map that was made before, over the pair that it was made of."""
    from PIL import Image

    pictures = [_shown(_one(side)) for side in (a, b)]
    panels = [sized(picture, Image.Resampling.LANCZOS) for picture in pictures]
    widest = max(max(panel.width for panel in panels), 200)
    captions = [shortened(name, widest) for name in names]
    drawn = row([(found.over(panel), words) for panel, words in zip(panels, captions, strict=True)])
    legend = found.legend(drawn.width - 2 * MARGIN)
    canvas = Image.new("RGB", (drawn.width, drawn.height + legend.height + MARGIN), PAPER)
    canvas.paste(drawn, (0, 0))
    canvas.paste(legend, (MARGIN, drawn.height))
    return canvas


def _one(images: ImageInput) -> Any:
    """The one picture that was passed: a tensor as it is, anything else decoded."""
    parts = split_images(images)
    if count_images(parts) != 1:
        raise InputError(f"{count_images(parts)} pictures on one side: a drawing shows one pair")
    return parts[0] if isinstance(parts[0], Tensor) else read_image(parts[0])


def _shown(side: Any) -> "Image.Image":
    """As a PIL image, which rounds a tensor to 8 bits."""
    from PIL import Image

    if not isinstance(side, Tensor):
        return side  # type: ignore[no-any-return]
    pixels = unit_range(side, (0, 1))[0].permute(1, 2, 0).detach()
    return Image.fromarray(pixels.mul(255).round().to(torch.uint8).cpu().numpy())


def _wrapped(text: str, width: float) -> list[str]:
    """Lines no wider than so many pixels, a word at least in each."""
    measure, lines = font().getlength, [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

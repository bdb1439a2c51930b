"""How a picture of any size becomes the square an encoder looks at.

The file path goes through Pillow, so that it gives the pixels of the reference pipelines (torchvision's `Resize`
and `CenterCrop`, as open_clip and timm compose them) bit for bit. The tensor path is differentiable.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from robustsim.errors import CardError, ImageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Mode = Literal["squash", "shortest", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

#: How far outside [0, 1] a value may lie by rounding.
RANGE_TOLERANCE = 1e-3
# What is no share of a picture.
_ROUNDING = 1e-9

# A line of 1 x 10,000 pixels would be blown up to 224 x 2,240,000 before the crop.
_MOST_PIXELS = 2**27


def clip(pixels: "Tensor") -> "Tensor":
    """`clamp(0, 1)` whose gradient passes at the bounds, and as far beyond as rounding goes.

    That of `torch.clamp` may be 0 there: black and white pixels would not move, and a saturated picture would look
    as if no attack could change it.
    """
    import torch

    inside = pixels.detach().clamp(0, 1)
    near = (pixels >= -RANGE_TOLERANCE) & (pixels <= 1 + RANGE_TOLERANCE)
    passed = torch.where(near, pixels, inside)
    return passed + (inside - passed).detach()


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, then crop or pad to `size` x `size`.

    Attributes:
        size: side of the square that the encoder sees, in pixels.
        mode: `squash` resizes to a square whatever the aspect ratio; `shortest` resizes the short side to
            `resize` and crops the centre; `longest` resizes the long side to `size` and pads with `fill`.
        resize: the side (`squash`) or short side (`shortest`) before the centre of `size` is cropped, in
            pixels; `size` if not given, so that `squash` leaves nothing out.
        interpolation: `bicubic` or `bilinear`, both antialiased.
        fill: grey level of the padding of `longest`, 0..255.
    """

    size: int = 224
    mode: Mode = "squash"
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise CardError(f"preprocessing mode {self.mode!r} is none of {', '.join(get_args(Mode))}")
        if self.interpolation not in get_args(Interpolation):
            raise CardError(f"interpolation {self.interpolation!r} is none of {', '.join(get_args(Interpolation))}")
        if self.size < 1:
            raise CardError(f"preprocessing size must be at least 1, not {self.size}")
        if self.resize is not None and (self.mode == "longest" or self.resize < self.size):
            raise CardError(f"resize={self.resize} needs mode 'shortest' or 'squash' and at least the size {self.size}")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize and before the crop or padding."""
        short = self.resize or self.size
        if self.mode == "squash":
            return short, short
        if self.mode == "longest":
            ratio = max(width, height) / self.size
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        side = min(width, height)  # no branch: for a compiler each would be a graph of its own
        return int(short * width / side), int(short * height / side)

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What the encoder looks at of a `width` x `height` picture: (left, top, right, bottom), in its pixels."""
        left, top, right, bottom = self.square(width, height)
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))

    def share_unseen(self, width: int, height: int) -> float:
        """Which share of a `width` x `height` picture the encoder does not look at, in [0, 1)."""
        left, top, right, bottom = self.seen(width, height)
        share = 1 - (right - left) * (bottom - top) / (width * height)
        return share if share > _ROUNDING else 0.0

    def square(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Where the encoder's square lies on a `width` x `height` picture: (left, top, right, bottom), in its pixels.

        As [`seen`][robustsim.images.Preprocessing.seen], but with the padding of `longest`, which lies beyond the
        picture.
        """
        new_width, new_height = self.resized(width, height)
        left, top = self._offset(new_width), self._offset(new_height)
        # Divided last, so that an edge of the picture is exactly that.
        horizontal = (place * width / new_width for place in (left, left + self.size))
        vertical = (place * height / new_height for place in (top, top + self.size))
        (x0, x1), (y0, y1) = horizontal, vertical
        return x0, y0, x1, y1

    def _offset(self, length: int) -> int:
        """Where the square begins on a line of the resized picture; negative where it begins before it."""
        if self.mode == "longest":
            return -((self.size - length) // 2)
        return int(round((length - self.size) / 2.0))  # noqa: RUF046 - torchvision's formula, kept to the letter

    def _check(self, width: int, height: int) -> tuple[int, int]:
        new_width, new_height = self.resized(width, height)
        if new_width * new_height > _MOST_PIXELS:
            raise ImageError(
                f"a picture of {width} x {height} pixels would become {new_width} x {new_height} before its centre "
                "is cropped: too elongated; crop it first, or use a model that squashes, such as 'lite'"
            )
        return new_width, new_height

    def window(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) after the resize, and (left, top) of the square in it, negative where it begins before.

        Raises:
            ImageError: as for [`apply`][robustsim.images.Preprocessing.apply].
        """
        new_width, new_height = self._check(width, height)
        return (new_width, new_height), (self._offset(new_width), self._offset(new_height))

    def apply(self, image: "Image.Image") -> "Image.Image":
        """An RGB PIL image as the `size` x `size` RGB image of the reference pipeline.

        Raises:
            ImageError: the picture is so elongated that its resized form would not fit into memory.
        """
        from PIL import Image

        width, height = self._check(*image.size)
        if image.size != (width, height):
            resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
            image = image.resize((width, height), resample)
        if self.mode == "longest" and (width, height) != (self.size, self.size):
            square = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
            square.paste(image, (-self._offset(width), -self._offset(height)))
            return square
        if self.mode != "longest" and (width, height) != (self.size, self.size):
            left, top = self._offset(width), self._offset(height)
            return image.crop((left, top, left + self.size, top + self.size))
        return image

    def apply_tensor(self, pixels: "Tensor") -> "Tensor":
        """(N, 3, H, W) floating point in [0, 1] as (N, 3, size, size) in [0, 1]; differentiable.

        Antialiased interpolation, clamped; within 2e-3 of [`apply`][robustsim.images.Preprocessing.apply] on average,
        which rounds to 8 bits. Pixels that need no resize, crop or padding come back as they are, without a copy.

        Raises:
            ImageError: as for [`apply`][robustsim.images.Preprocessing.apply].
        """
        import torch

        from robustsim.images.resize import resize_window

        (width, height), (left, top) = self.window(pixels.shape[-1], pixels.shape[-2])
        if not torch.compiler.is_compiling() and pixels.shape[-2:] == (self.size, self.size) == (height, width):
            return pixels
        return clip(resize_window(pixels, (height, width), (top, left), self.size, self.interpolation, self.fill / 255))

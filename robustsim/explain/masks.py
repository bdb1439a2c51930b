"""How well text-guided attention finds objects whose masks are known (CTGA paper, appendix A, Table A1)."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustsim.encoders.attention import AttentionForm, complementary_attention
from robustsim.errors import ImageError, InputError
from robustsim.explain.attention import attention_of_pixels, soft_iou
from robustsim.images.decode import opened, read_image
from robustsim.images.files import find_images
from robustsim.metric import RobustSim


@dataclass(frozen=True)
class MaskScore:
    """What the attention of one picture is worth.

    Attributes:
        image: its file, relative to the folder.
        label: the class that its texts name.
        tga: soft IoU of text-guided attention with the mask, in [0, 1].
        comp_tga: that of complementary attention.
    """

    image: str
    label: str
    tga: float
    comp_tga: float


@dataclass(frozen=True)
class MaskScores:
    """What the attention of a folder is worth.

    Attributes:
        rows: a score for each picture.
        skipped: what was wrong with the pictures that have none: a file that cannot be read, a mask that is not there
            or empty.
    """

    rows: list[MaskScore]
    skipped: list[str]


def mask_scores(
    metric: RobustSim,
    images: "str | os.PathLike[str]",
    masks: "str | os.PathLike[str]",
    *,
    prompt: str = "This is a photo of a {}",
    against: str = "This is not a photo of a {}",
    form: AttentionForm = "paper",
    tell: Callable[[str], object] = lambda image: None,
) -> MaskScores:
    """Soft IoU of the attention to each picture's class with the picture's mask.

    Args:
        metric: of a CLIP model loaded with `text=True`.
        images: folder with a folder for each class, named as the class is called; underscores become spaces.
        masks: folder with `class/name.png` for each `class/name.*` of the images, of the same size: 0 where the object
            is not, anything else where it is (of a palette, the numbers count; of colours, any channel but alpha).
        prompt: what is looked for, with `{}` for the class.
        against: what is not, for the complementary attention.
        form: as for `attention_map`.
        tell: called with each picture before it is read.

    Raises:
        InputError: no text tower, a prompt without one place for the class, a picture outside of the classes' folders,
            a mask of another size than its picture, or nothing to score.
        ImageError: one of the folders is none.
    """
    patterns = check_prompts(prompt, against)
    texts: dict[str, list[Tensor]] = {}
    rows, skipped = [], []
    for path in masked_files(images, masks):
        tell(str(path))
        label = label_of(path)
        if label not in texts:
            texts[label] = texts_of(metric, label, patterns)
        try:
            picture, mask = read_masked(images, masks, path)
        except ImageError as error:
            skipped.append(str(error))
            continue
        pixels = metric.preprocess([picture])
        tga, comp_tga = score_square(metric, pixels, mask, texts[label], form=form)
        rows.append(MaskScore(path.as_posix(), label, tga, comp_tga))
    if not rows:
        why = f" ({skipped[0]})" if skipped else ""
        raise InputError(f"no picture of {os.fspath(images)!r} has a mask in {os.fspath(masks)!r}{why}")
    return MaskScores(rows, skipped)


def check_prompts(prompt: str, against: str) -> tuple[str, str]:
    """Both prompts, if each has one place for the class.

    Raises:
        InputError: one has not.
    """
    for pattern in (prompt, against):
        if pattern.count("{}") != 1:
            raise InputError(f"the prompt {pattern!r} must hold {{}} once, where the name of the class goes")
    return prompt, against


def masked_files(images: "str | os.PathLike[str]", masks: "str | os.PathLike[str]") -> list[Path]:
    """The pictures of classes' folders, relative to the folder of them all.

    Raises:
        InputError: a picture outside of the classes' folders.
        ImageError: one of the folders is none.
    """
    if not os.path.isdir(masks):
        raise ImageError(f"{os.fspath(masks)!r} is not a folder")
    files = list(find_images(images))
    for path in files:
        if len(path.parts) < 2:
            raise InputError(f"{str(path)!r} lies in no folder of a class: put it into one that names what it shows")
    return files


def label_of(path: Path) -> str:
    """The class of a picture, as texts name it."""
    return path.parts[0].replace("_", " ")


def texts_of(metric: RobustSim, label: str, patterns: Sequence[str]) -> list[Tensor]:
    """The embeddings of the prompts for a class, (1, D) each."""
    # Not by format, to which other brackets would mean something.
    return [metric.embed_text(pattern.replace("{}", label)) for pattern in patterns]


def mask_of(masks: "str | os.PathLike[str]", path: Path) -> Path:
    """Where the mask of a picture is."""
    return (Path(masks) / path).with_suffix(".png")


def read_masked(
    images: "str | os.PathLike[str]", masks: "str | os.PathLike[str]", path: Path
) -> tuple[Image.Image, Tensor]:
    """A picture and its mask, (1, H, W) bool.

    Raises:
        ImageError: one of them cannot be read, or the mask is empty.
        InputError: they differ in size.
    """
    picture = read_image(Path(images) / path)
    return picture, _read_mask(mask_of(masks, path), picture.size)


def score_square(
    metric: RobustSim, pixels: Tensor, mask: Tensor, texts: list[Tensor], *, form: AttentionForm
) -> tuple[float, float]:
    """Soft IoU of the attention to a class, and of the complementary one, with the mask of the picture.

    Args:
        metric: as for `mask_scores`.
        pixels: (1, 3, S, S), the picture as the encoder sees it.
        mask: (1, H, W), as large as the picture itself.
        texts: the embeddings of both prompts.
        form: as for `mask_scores`.
    """
    with torch.no_grad():
        size = (mask.shape[1], mask.shape[2])
        of_class, of_rest = attention_of_pixels(metric, pixels, size, texts, form=form)
        both = torch.cat((of_class, complementary_attention(of_class, of_rest)))
        tga, comp_tga = soft_iou(both, mask.expand_as(both)).tolist()
    return tga, comp_tga


def _read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """(1, H, W) bool.

    Args:
        path: of the file.
        size: (width, height) of the picture.
    """
    with opened(path) as (image, what):
        image.load()
        upright = ImageOps.exif_transpose(image)  # as its picture is
        values = np.asarray(upright)
        if image.mode in ("LA", "PA", "RGBA"):
            values = values[..., :-1]
        seen = upright.size
    if seen != size:
        raise InputError(
            f"the mask {what} has {seen[0]} x {seen[1]} pixels, its picture {size[0]} x {size[1]}: bring masks to the "
            "size of their pictures first, without interpolating"
        )
    mask = values.reshape(*values.shape[:2], -1).astype(bool).any(axis=2)
    if not mask.any():
        raise ImageError(f"the mask {what} is empty")
    return torch.from_numpy(mask)[None]

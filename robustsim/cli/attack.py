"""``robustsim attack``: change an image a little, so that a model sees another one."""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustsim.cli import output
from robustsim.errors import ImageError, InputError, OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from robustsim.attacks import AttackResult
    from robustsim.metric import RobustSim

Norm = Literal["linf", "l2", "l1"]
_USUAL = {"linf": "4/255", "l2": "3"}

# In grey levels: what a radius may lack by its own rounding. 4/255 means 4 levels.
_SLACK = 1e-6
# How much a change may grow to make up for what rounding takes, and how closely that is solved for.
_MOST_SCALE, _CLOSE = 8.0, 1e-7
# By how much distances must differ before and after rounding to be mentioned.
_NOTABLE = 0.01


def attack(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The file to start from.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG to write.")],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE", help="Move towards this image, or several; away from IMAGE if not given."),
    ] = None,
    norm: Annotated[Norm, typer.Option(help="How the size of the change is measured.")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="RADIUS", help="The largest change, of pixels in [0, 1]; 4/255 in linf, 3 in l2 if not given."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the attack.")] = 100,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the original, the change and the result into this PNG.")
    ] = None,
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the random start.")] = 0,
    as_json: output.JsonOption = False,
) -> None:
    """Change an image a little, so that a model sees another one."""
    targets = target or []
    _check_output(out, "--output", [image, *targets])
    if plot is not None:
        _check_output(plot, "--plot", [image, *targets, str(out)])
    radius = _radius(eps, norm)

    import numpy as np

    from robustsim.images import read_image

    original = np.array(read_image(image))
    metric = output.load_metric(model, device)
    anchors = _embed(metric, targets) if targets else None
    result, reached = _attacked(metric, original, anchors, norm=norm, eps=radius, steps=steps, seed=seed)
    pixels = result.images[0].permute(1, 2, 0).double().cpu().numpy()
    _write(to_8_bits(original, pixels, norm, radius), out)

    # From here on all is measured on the file.
    written = np.array(read_image(str(out)))
    size = change_size(original, written, norm)
    rows = _rows(metric, image, str(out), targets, reached)
    if plot is not None:
        from robustsim.cli.drawing import three_panels

        _write(three_panels(original, written, f"distance {rows[0]['after']:.4f} from the original"), plot)
    parts = output.unseen(metric.card, dict.fromkeys([image, *targets]))
    if as_json:
        facts = {"model": metric.card.name, "image": image, "output": str(out), "norm": norm, "eps": radius}
        costs = {"queries": int(result.queries[0]), "gradients": int(result.gradients[0])}
        found = {"size": size, "distances": rows, **costs, "not_looked_at": parts}
        output.print_json({**facts, "steps": steps, "seed": seed, **found})
        return
    cells = [(row["to"], f"{row['before']:.4f}", f"{row['after']:.4f}") for row in rows]
    output.print_table(("distance to", "before", "after"), cells, numbers=(1, 2))
    typer.echo(f"{out}: changed by {norm} {_text(size, norm)}; the budget is {_text(radius, norm)}.")
    if size == 0:
        typer.echo("Rounding to 8 bits left no change at all.")
    for row in rows:
        if abs(row["after"] - row["before_rounding"]) > _NOTABLE:
            typer.echo(f"Before rounding to 8 bits the distance to {row['to']} was {row['before_rounding']:.4f}.")
    typer.echo(output.explain(metric.card, squared=False))
    output.tell_unseen(parts, aside=False)


def to_8_bits(original: "NDArray[Any]", attacked: "NDArray[Any]", norm: Norm, eps: float) -> "NDArray[Any]":
    """Attacked pixels as those of an 8-bit file, within the budget whatever rounding does.

    In linf each change is rounded to the nearest grey level and clamped. In l2 and l1 the change is scaled by the
    largest factor in [0, 8] for which, rounded, it is within the budget and not larger than it was: where the attack
    stopped short of the budget, it had found its best point there.

    Args:
        original: uint8, of any shape.
        attacked: floating point in [0, 1], of the same shape.
        norm: of the budget.
        eps: the radius for pixels in [0, 1].

    Returns:
        uint8. A change that is in whole levels and within the budget stays as it is.
    """
    import numpy as np

    base = original.astype(np.int16)
    change = 255 * attacked.astype(np.float64) - base

    def levels(factor: float) -> "NDArray[Any]":
        return np.rint(base + factor * change).clip(0, 255).astype(np.int16) - base

    if norm == "linf":
        kept = levels(1).clip(-_levels(eps), _levels(eps))
    else:
        budget = min(255 * eps + _SLACK, max(_length(change, norm), _length(levels(1), norm)))
        kept = levels(_largest_scale(lambda factor: _length(levels(factor), norm) <= budget))
    pixels: NDArray[Any] = (base + kept).astype(np.uint8)
    return pixels


def _largest_scale(fits: Callable[[float], bool]) -> float:
    """The largest factor that fits, of a change that grows with it; 0 always does."""
    low, high = (1.0, _MOST_SCALE) if fits(1) else (0.0, 1.0)
    if fits(high):
        return high
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def change_size(original: "NDArray[Any]", changed: "NDArray[Any]", norm: Norm) -> float:
    """The norm of the difference of two 8-bit pictures, for pixels in [0, 1]."""
    import numpy as np

    return _length(changed.astype(np.int16) - original, norm) / 255


def _length(change: "NDArray[Any]", norm: Norm) -> float:
    import numpy as np

    if norm == "linf":
        return float(np.abs(change).max())
    exact = change.astype(np.float64)  # whole numbers have whole sums
    return float(np.abs(exact).sum()) if norm == "l1" else math.sqrt(float(np.square(exact).sum()))


def _levels(eps: float) -> int:
    """How many grey levels of 8 bits a radius is."""
    return math.floor(min(255.0, 255 * eps + _SLACK))


def _text(size: float, norm: Norm) -> str:
    return f"{255 * size:.6g}/255" if norm == "linf" else f"{size:.6g}"


def _radius(text: str | None, norm: Norm) -> float:
    from robustsim.attacks import parse_eps

    if text is None and norm not in _USUAL:
        raise typer.BadParameter(f"{norm} has no usual radius: give one", param_hint="--eps")
    try:
        radius = parse_eps(_USUAL[norm] if text is None else text, norm)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--eps") from None
    if _levels(radius) < 1:
        raise typer.BadParameter(
            f"{text} is less than 1/255, the smallest change that an 8-bit file can hold", param_hint="--eps"
        )
    return radius


def _check_output(path: Path, option: str, others: list[str]) -> None:
    """Say now what could not be written later, and replace no file that is read."""
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{path.name!r} does not end in .png, which keeps every pixel", param_hint=option)
    folder = path.parent
    for wrong, why in (
        (not folder.is_dir(), f"there is no folder {str(folder)!r}"),
        (not os.access(folder, os.W_OK), f"nothing may be written into {str(folder)!r}"),
        (path.is_dir(), "it is a folder"),
    ):
        if wrong:
            raise OutputError(f"cannot write {str(path)!r}: {why}")
    for other in others:
        both = path.exists() and os.path.exists(other)
        if path.samefile(other) if both else path.resolve() == Path(other).resolve():
            raise typer.BadParameter(f"{str(path)!r} is {other!r} and would be overwritten", param_hint=option)


def _embed(metric: "RobustSim", paths: list[str]) -> "Tensor":
    """Embeddings of the targets, (M, D); the error names all that are bad."""
    from robustsim.images import read_image

    bad = []
    for path in dict.fromkeys(paths):
        try:
            read_image(path)
        except ImageError as error:
            bad.append(str(error))
    if bad:
        raise ImageError("\nrobustsim: ".join(bad))
    return metric.embed(paths)


def _attacked(
    metric: "RobustSim",
    original: "NDArray[Any]",
    anchors: "Tensor | None",
    *,
    norm: Norm,
    eps: float,
    steps: int,
    seed: int,
) -> "tuple[AttackResult, list[float]]":
    """What the attack finds, in floating point, and its distances to the original and to the targets."""
    from dataclasses import replace

    import torch

    from robustsim.attacks import APGD, Targeted, Untargeted

    preprocessing = metric.card.preprocessing

    def embed(images: "Tensor") -> "Tensor":
        return metric.embed_pixels(preprocessing.apply_tensor(images))

    images = torch.from_numpy(original).permute(2, 0, 1)[None].to(metric.device).float().div(255)
    objective = Untargeted(embed, images) if anchors is None else Targeted(embed, anchors)
    reachable = min(eps, _levels(eps) / 255) if norm == "linf" else eps
    generator = torch.Generator().manual_seed(seed)
    apgd = APGD(norm=norm, eps=reachable, steps=steps, generator=generator, progress=sys.stderr.isatty())
    result = apgd(objective, images)
    # The random start has changed what the model does not look at, too. A grey picture tells: nothing is clipped there.
    grey = torch.full_like(images, 0.5, requires_grad=True)
    slope = torch.autograd.grad(preprocessing.apply_tensor(grey).sum(), grey)[0]
    result = replace(result, images=torch.where(slope != 0, result.images, images))
    with torch.no_grad():
        known = embed(images) if anchors is None else torch.cat((embed(images), anchors))
        return result, metric.distance(embed(result.images), known).tolist()


def _rows(metric: "RobustSim", image: str, out: str, targets: list[str], reached: list[float]) -> list[dict[str, Any]]:
    """Distances of both files to the image and to each target, and those that the attack had reached."""

    def distance(a: str, b: str) -> float:
        return float(metric.distance(a, [b], squared=True).sqrt())  # as `robustsim compare` has it, to the last bit

    return [
        {"to": path, "before": distance(image, path), "after": distance(out, path), "before_rounding": value}
        for path, value in zip([image, *targets], reached, strict=True)
    ]


def _write(picture: "NDArray[Any] | Image.Image", path: Path) -> None:
    from PIL import Image

    from robustsim.encoders.weights import whole_file

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")

"""`robustsim attack`: change an image a little, so that a model sees another one."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.attacks.rounding import Norm, change_size, to_8_bits, whole_levels
from robustsim.cli import output, pictures
from robustsim.cli.drawing import check_png, three_panels, write_png
from robustsim.errors import ImageError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from robustsim.attacks import AttackResult, AttackStep
    from robustsim.cli.pictures import Picture
    from robustsim.metric import RobustSim

_USUAL = {"linf": "4/255", "l2": "3"}

# From how many pixels on it is said what they will take, and the bytes that each takes, as measured with APGD: images,
# gradients and steps of the attack, and those of the resize. A model's own memory does not depend on them.
_LARGE = 2_000_000
_BYTES = {"linf": 210, "l2": 210, "l1": 250}
_SHORT = 20  # seconds of which nothing is said
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
    max_side: Annotated[
        int | None,
        typer.Option(
            "--max-side",
            min=1,
            metavar="PIXELS",
            help="Attack a copy whose longer side is no more than this, and write it at that size.",
        ),
    ] = None,
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
    check_png(out, "--output", [image, *targets])
    if plot is not None:
        check_png(plot, "--plot", [image, *targets, str(out)])
    radius = radius_of(eps, norm)

    import numpy as np

    from robustsim.explain.report.tampering import downsized
    from robustsim.images import read_image

    opened = pictures.open_pictures([image, *targets])
    whole = read_image(opened[image])
    start = downsized(whole, max_side)
    original = np.array(start)
    _tell_memory(image, start.size, norm)
    metric = output.load_metric(model, device)
    anchors = _embed(metric, [opened[one] for one in targets]) if targets else None
    origin = None if start is whole else metric.embed([opened[image]])
    result, reached = _attacked(metric, original, anchors, origin=origin, norm=norm, eps=radius, steps=steps, seed=seed)
    pixels = result.images[0].permute(1, 2, 0).double().cpu().numpy()
    write_png(to_8_bits(original, pixels, norm, radius), out)

    # From here on all is measured on the file.
    written = np.array(read_image(str(out)))
    size = change_size(original, written, norm)
    rows = _rows(metric, opened[image] if start is whole else start, str(out), opened, [image, *targets], reached)
    if plot is not None:
        write_png(three_panels(original, written, f"distance {rows[0]['after']:.4f} from the original"), plot)
    parts = output.unseen(metric.card, dict.fromkeys([image, *targets]), opened)
    if as_json:
        facts = {"model": metric.card.name, "image": image, "output": str(out), "norm": norm, "eps": radius}
        costs = {"queries": int(result.queries[0]), "gradients": int(result.gradients[0])}
        found = {"size": size, "distances": rows, **costs, "not_looked_at": parts}
        sizes = {"image_size": list(whole.size), "attacked_size": list(start.size)}
        output.print_json({**facts, "steps": steps, "seed": seed, **sizes, **found})
        return
    cells = [(row["to"], f"{row['before']:.4f}", f"{row['after']:.4f}") for row in rows]
    output.print_table(("distance to", "before", "after"), cells, numbers=(1, 2))
    typer.echo(f"{out}: changed by {norm} {_text(size, norm)}; the budget is {_text(radius, norm)}.")
    if start is not whole:
        typer.echo(
            f"{image} has {_by(whole.size)} pixels; its copy of {_by(start.size)} was attacked, and written. What the "
            "smaller size alone has changed is told as the distance before."
        )
    if size == 0:
        typer.echo("Rounding to 8 bits left no change at all.")
    for row in rows:
        if abs(row["after"] - row["before_rounding"]) > _NOTABLE:
            typer.echo(f"Before rounding to 8 bits the distance to {row['to']} was {row['before_rounding']:.4f}.")
    typer.echo(output.explain(metric.card, squared=False))
    output.tell_unseen(parts, aside=False)


def _text(size: float, norm: Norm) -> str:
    return f"{255 * size:.6g}/255" if norm == "linf" else f"{size:.6g}"


def radius_of(text: str | None, norm: Norm) -> float:
    """The number that `--eps` says; the usual one of the norm if it is not given.

    Raises:
        BadParameter: it is none, or less than 8 bits can hold.
    """
    from robustsim.attacks import parse_eps

    if text is None and norm not in _USUAL:
        raise typer.BadParameter(f"{norm} has no usual radius: give one", param_hint="--eps")
    try:
        radius = parse_eps(_USUAL[norm] if text is None else text, norm)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--eps") from None
    if whole_levels(radius) < 1:
        raise typer.BadParameter(
            f"{text} is less than 1/255, the smallest change that an 8-bit file can hold", param_hint="--eps"
        )
    return radius


def _embed(metric: "RobustSim", targets: "list[Picture]") -> "Tensor":
    """Embeddings of the targets, (M, D); the error names all that are bad."""
    from robustsim.images import read_image

    bad: dict[str, None] = {}
    for target in targets:
        try:
            read_image(target)
        except ImageError as error:
            bad[str(error)] = None
    if bad:
        raise ImageError("\nrobustsim: ".join(bad))
    return metric.embed(targets)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _tell_memory(name: str, size: tuple[int, int], norm: Norm) -> None:
    """What a large picture will take, before it is attacked."""
    count = size[0] * size[1]
    if count >= _LARGE:
        output.note(
            f"{name}: {_by(size)} is {count / 1e6:.1f} megapixels; attacking them takes about "
            f"{count * _BYTES[norm] / 2**30:.1f} GiB of memory besides the model's own. --max-side 1024 attacks a "
            "smaller copy."
        )


class _Clock:
    """Tells how long an attack will take, from what its second step took; the first has more to do."""

    def __init__(self, steps: int) -> None:
        self._steps, self._began = steps, 0.0

    def __call__(self, done: "AttackStep") -> bool:
        if done.step == 1:
            self._began = time.monotonic()
        elif done.step == 2:
            took = time.monotonic() - self._began
            if (rest := took * (self._steps - 2)) >= _SHORT:
                from tqdm import tqdm

                tqdm.write(f"a step takes {took:.1f} s: the attack goes on for about {_duration(rest)}", sys.stderr)
        return False


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _attacked(
    metric: "RobustSim",
    original: "NDArray[Any]",
    anchors: "Tensor | None",
    *,
    origin: "Tensor | None",
    norm: Norm,
    eps: float,
    steps: int,
    seed: int,
) -> "tuple[AttackResult, list[float]]":
    """What the attack finds, in floating point, and its distances to the original and to the targets.

    Args:
        metric: attacked.
        original: uint8 (H, W, 3), to start from.
        anchors: embeddings of the targets, if any.
        origin: embedding (1, D) of what distances to the original are from, if that is not `original`.
        norm: of the budget.
        eps: the budget.
        steps: of the attack.
        seed: of its start.
    """
    import torch

    from robustsim.attacks import Targeted, Untargeted
    from robustsim.explain.report.tampering import embedder, tamper, to_pixels

    embed, images = embedder(metric), to_pixels(metric, original)
    objective = Untargeted(embed, images) if anchors is None else Targeted(embed, anchors)
    options: dict[str, Any] = {"norm": norm, "eps": eps, "steps": steps, "seed": seed}
    clock = _Clock(steps) if images[0, 0].numel() >= _LARGE else None
    result = tamper(metric, objective, images, **options, progress=sys.stderr.isatty(), callback=clock)
    with torch.no_grad():
        known = embed(images) if origin is None else origin
        known = known if anchors is None else torch.cat((known, anchors))
        return result, metric.distance(embed(result.images), known).tolist()


def _rows(
    metric: "RobustSim",
    start: "Picture",
    out: str,
    opened: "dict[str, Picture]",
    names: list[str],
    reached: list[float],
) -> list[dict[str, Any]]:
    """Distances of the start and of the file to the image and each target, and those that the attack had reached."""

    def distance(a: "Picture", b: str) -> float:
        # As `robustsim compare` has it, to the last bit.
        return float(metric.distance(a, [opened[b]], squared=True).sqrt())

    return [
        {"to": name, "before": distance(start, name), "after": distance(out, name), "before_rounding": value}
        for name, value in zip(names, reached, strict=True)
    ]

"""What the embeddings of a robust model and of its clean origin hold: a picture and a table for docs/explain.md.

The picture shows the photographs of examples/ beside what `lite` and `lite-clean` hold of them. The table asks judges
that are neither of them, LPIPS-Alex and SSIM, how near what was made is to the original, over photographs drawn at
random; with --lpips, the file of LPIPS's weights. Beside it are what any grey picture gets, and what another
photograph's picture gets, made from the same model's embedding: only what is nearer than these was held.

python scripts/inversions.py --picture docs/assets/inversions.jpg
python scripts/inversions.py --data DIR --lpips FILE --docs docs/explain.md

Each picture is kept in the folder of --work, and the same command goes on from there; --only MODEL makes those of one
model, so that two processes may share the work.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import write_between
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from robustsim import RobustSim
from robustsim.encoders.load import image_sha256
from robustsim.encoders.weights import whole_file
from robustsim.evaluation.calibration import draw_photographs
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.statistics import mean_interval, paired_difference
from robustsim.explain import invert
from robustsim.images.inputs import to_picture

ROOT = Path(__file__).parents[1]
EXAMPLES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
MODELS = ("lite", "lite-clean")
TITLES = ("original", "from what lite holds", "from what lite-clean holds")
GAP, TEXT, LABEL = 8, 26, 18


def to_pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def made(
    files: dict[str, Path], models: tuple[str, ...], options: argparse.Namespace, work: Path
) -> dict[tuple[int, str], dict[str, Any]]:
    """Make what is missing of the pictures of these files; what each reached, by number and model."""
    metrics = {name: RobustSim.from_pretrained(name, device="cpu") for name in MODELS}
    identity = {
        "files": list(files),
        "steps": options.steps,
        "seed": options.seed,
        "weights": {name: image_sha256(metric.encoder) for name, metric in metrics.items()},
    }
    worker = MODELS.index(models[0]) if len(models) == 1 else len(MODELS)
    with Journal(work, identity, worker=worker) as journal:
        for index, (name, file) in enumerate(files.items()):
            for model in models:
                if (index, model) in journal.done:
                    continue
                found = invert(metrics[model], file, steps=options.steps, seeds=[options.seed])
                with whole_file(picture_of(work, index, model)) as temporary:
                    to_picture(found.images[0, 0]).save(temporary, format="PNG")
                journal.add(index, model, {"similarity": float(found.similarity)})
                print(f"{name}, {model}: similarity {float(found.similarity):.4f}", flush=True)
        return dict(journal.done)


def picture_of(work: Path, index: int, model: str) -> Path:
    return work / f"{index:03d}.{model}.png"


def draw(options: argparse.Namespace) -> None:
    work = options.work / "examples"
    files = {name: ROOT / "examples" / name for name in EXAMPLES}
    reached = made(files, MODELS, options, work)
    metric = RobustSim.from_pretrained(MODELS[0], device="cpu")
    side = metric.card.preprocessing.size
    canvas = Image.new("RGB", (3 * (side + GAP) + GAP, TEXT + len(files) * (side + LABEL + GAP) + GAP), "white")
    pen, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for column, title in enumerate(TITLES):
        pen.text((GAP + column * (side + GAP) + side / 2, TEXT / 2), title, fill="black", font=font, anchor="mm")
    for index, file in enumerate(files.values()):
        top = TEXT + index * (side + LABEL + GAP)
        canvas.paste(to_picture(metric.preprocess([file])[0]), (GAP, top))
        for column, model in enumerate(MODELS, 1):
            left = GAP + column * (side + GAP)
            canvas.paste(Image.open(picture_of(work, index, model)), (left, top))
            text = f"similarity to the original: {reached[index, model]['similarity']:.3f}"
            pen.text((left + side / 2, top + side + LABEL / 2), text, fill="black", font=small, anchor="mm")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(options.picture) as temporary:
        canvas.save(temporary, format="JPEG", quality=80, subsampling=0)  # noise as PNG takes megabytes
    print(options.picture)


def judge(options: argparse.Namespace) -> None:
    import piq

    from robustsim.baselines import LPIPS

    root = options.data.expanduser()
    drawn = draw_photographs(root, options.photographs, options.seed)
    files = {path.as_posix(): root / path for path in drawn}
    models = (options.only,) if options.only else MODELS
    work = options.work / root.name
    reached = made(files, models, options, work)
    if missing := [key for key in ((i, m) for i in range(len(files)) for m in MODELS) if key not in reached]:
        print(f"{len(missing)} pictures are still to be made")
        return
    lpips = LPIPS("alex", weights=options.lpips, complete=True)
    metric = RobustSim.from_pretrained(MODELS[0], device="cpu")
    originals = torch.cat([metric.preprocess([file]) for file in files.values()])
    rebuilt = {m: torch.cat([to_pixels(picture_of(work, i, m)) for i in range(len(files))]) for m in MODELS}

    def lpips_of(pictures: Tensor) -> Any:
        with torch.no_grad():
            return lpips.distance(pictures, originals).numpy()

    def ssim_of(pictures: Tensor) -> Any:
        return piq.ssim(pictures, originals, data_range=1.0, reduction="none").numpy()

    judges = {"LPIPS-Alex, smaller is nearer": lpips_of, "SSIM, larger is nearer": ssim_of}
    rows = {
        **{f"from what `{m}` holds": rebuilt[m] for m in MODELS},
        **{f"from what `{m}` holds of another photograph": rebuilt[m].roll(1, 0) for m in MODELS},
        "grey": torch.full_like(originals, 0.5),
    }
    lines = [f"| | {' | '.join(judges)} |", f"|---|{'---|' * len(judges)}"]
    scores = {(row, name): of(pictures) for row, pictures in rows.items() for name, of in judges.items()}
    for row in rows:
        means = (mean_interval(scores[row, name]) for name in judges)
        cells = " | ".join(f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in means)
        lines.append(f"| {row} | {cells} |")
    first, second, other, *_ = rows
    for said, against in (("`lite` less `lite-clean`", second), ("`lite`'s own less that of another", other)):
        gaps = [paired_difference(scores[first, name], scores[against, name]) for name in judges]
        cells = " | ".join(
            f"{g.interval.value:+.3f} [{g.interval.low:+.3f}, {g.interval.high:+.3f}], p = {g.p:.2g}" for g in gaps
        )
        lines.append(f"| {said} | {cells} |")
    nearer = [int((scores[first, name] < scores[second, name]).sum()) for name in judges]
    similar = (np.array([reached[i, m]["similarity"] for i in range(len(files))]).mean() for m in MODELS)
    text = "\n".join(
        (
            f"{len(files)} photographs of `{root.name}`, {options.steps} steps, one seed; means with 95 % intervals.",
            "",
            *lines,
            "",
            f"`lite`'s is the nearer one by LPIPS-Alex for {nearer[0]} of {len(files)} photographs, by SSIM for "
            f"{len(files) - nearer[1]}. By its own measure each model is satisfied: the mean similarity that was "
            f"reached is {next(similar):.3f} for `lite` and {next(similar):.3f} for `lite-clean`.",
        )
    )
    print(text)
    if options.docs:
        write_between(options.docs, "inversions", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--lpips", type=Path, metavar="FILE")
    parser.add_argument("--docs", type=Path, metavar="PAGE")
    parser.add_argument("--photographs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--work", type=Path, default=Path("measured/inversions"))
    options = parser.parse_args()
    if options.picture is None and options.data is None:
        parser.error("nothing to do: pass --picture, --data or both")
    if options.data is not None and options.lpips is None:
        parser.error("--data needs --lpips: the weights of the judge")
    if options.picture is not None:
        draw(options)
    if options.data is not None:
        judge(options)


if __name__ == "__main__":
    main()

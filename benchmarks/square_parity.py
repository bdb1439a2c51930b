"""Square Attack beside the reference implementation: how many of the same images each breaks with as many queries.

The pictures are crops of the example photographs, the task is which tile one comes from, and the classifier is trained
in seconds, and attacked on images that it gets right. With --data, a folder of tar shards of small pictures with
classes (Tiny ImageNet as WebDataset), it learns to tell the first ten apart, and its decisions on the val pictures are
attacked, right or wrong. Both attacks see the same images. The reference draws one place and colour for all images of a
call, which share its luck: it is called with few at a time, each time with another seed. It spends one query more.
Differences are taken seed by seed, and image by image over all seeds.

    python benchmarks/square_parity.py [--norm linf] [--eps 4/255] [--queries 300 1000] [--seeds 4] [--images 500]
        [--robust] [--data FOLDER]

Needs torchattacks: pip install 'robustsim[parity]'.
"""

import argparse
import io
import statistics
import sys
import tarfile
import time
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from robustsim.attacks import PGD, Classification, SquareAttack, parse_eps
from tests.classifiers import crops, network, trained

THEIRS = {"linf": "Linf", "l2": "L2"}
CLASSES = 10
TOGETHER = 20  # images that share the luck of the reference


def shards(folder: Path, name: str, *, classes: int, most: int = 10**6) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, S, S) in [0, 1] of the first classes, and which; from NAME-*.tar with .jpg and .cls files."""
    images, labels = [], []
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as shard:
            files = {member.name: member for member in shard.getmembers()}
            for key in sorted(one[:-4] for one in files if one.endswith(".cls")):
                label = int(shard.extractfile(files[key + ".cls"]).read())  # type: ignore[union-attr]
                if label >= classes or len(images) == most:
                    continue
                with Image.open(io.BytesIO(shard.extractfile(files[key + ".jpg"]).read())) as image:  # type: ignore[union-attr]
                    side = image.width
                    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                images.append(pixels.view(side, side, 3).permute(2, 0, 1).float() / 255)
                labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def fitted(images: Tensor, labels: Tensor, *, robust: bool, epochs: int = 12) -> nn.Module:
    """The small network, trained on pictures; `robust`: on PGD's images at linf 4/255."""
    torch.manual_seed(0)
    model = network(CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attack = PGD(norm="linf", eps=4 / 255, steps=3, step_size=2 / 255, keep="last")
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(96):
            batch = images[rows]
            if robust:
                batch = attack(Classification(model, labels[rows]), batch).images
            model.train()
            loss = nn.functional.cross_entropy(model(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def broken_by_theirs(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: str, eps: float, queries: int, seed: int
) -> Tensor:
    """Which images torchattacks' Square breaks, (N,) bool."""
    import torchattacks

    broken = []
    for place, rows in enumerate(torch.arange(len(images)).split(TOGETHER)):
        attack = torchattacks.Square(model, norm=THEIRS[norm], eps=eps, n_queries=queries, seed=1000 * seed + place)
        found = attack(images[rows], labels[rows])
        with torch.no_grad():
            broken.append(model(found).argmax(1) != labels[rows])
    return torch.cat(broken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=list(THEIRS), default="linf")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--queries", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--images", type=int, default=500, help="how many are attacked")
    parser.add_argument("--robust", action="store_true", help="an adversarially trained classifier")
    parser.add_argument("--data", type=Path, help="a folder with train-*.tar and val-*.tar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torchattacks' dependencies
    if options.data is None:
        model = trained(robust=options.robust)
        images, labels = crops(3 * options.images, seed=10**6)
    else:
        model = fitted(*shards(options.data, "train", classes=CLASSES), robust=options.robust)
        images, _ = shards(options.data, "val", classes=10**6, most=options.images)
        with torch.no_grad():
            labels = model(images).argmax(1)
    with torch.no_grad():
        right = torch.nonzero(model(images).argmax(1) == labels).squeeze(1)[: options.images]
    images, labels, eps = images[right], labels[right], parse_eps(options.eps, options.norm)
    print(f"{len(images)} images {tuple(images.shape[1:])}, {options.norm} {options.eps}, {options.seeds} seeds")
    for queries in options.queries:
        ours, theirs, began = [], [], time.perf_counter()
        for seed in range(options.seeds):
            attack = SquareAttack(
                norm=options.norm,
                eps=eps,
                queries=queries,
                stop_on_success=True,
                generator=torch.Generator().manual_seed(seed),
            )
            ours.append(attack(Classification(model, labels), images).success)
            theirs.append(
                broken_by_theirs(model, images, labels, norm=options.norm, eps=eps, queries=queries, seed=seed)
            )
        gap = torch.stack(ours).float() - torch.stack(theirs).float()
        print(f"{queries} queries, {time.perf_counter() - began:.0f} s")
        for name, won in (("ours", ours), ("theirs", theirs)):
            counts = [int(one.sum()) for one in won]
            print(f"  {name:6} {statistics.mean(counts):6.1f}  {counts}")
        error = float(gap.sum(1).std()) / options.seeds**0.5
        spread = float(gap.mean(0).std()) * len(images) ** 0.5
        print(
            f"  difference {float(gap.sum(1).mean()):+.1f}, standard error {error:.1f} (seeds), {spread:.1f} (images)"
        )


if __name__ == "__main__":
    main()

"""Make robustsim/encoders/bundled/lite from what training has made, and write its measured scores.

The first half makes lite-2026.11, on 1,000 photographs:

robustsim train fare-lite --data nips17/images -o runs/1
python scripts/build_lite.py runs/1 -o runs/after-1                                # float16 weights, card, notice
robustsim train fare4-lite --data nips17/images -o runs/2
python scripts/build_lite.py runs/2 -o runs/after-2
robustsim train fare4-lite-224 --data nips17/images -o runs/3
python scripts/build_lite.py runs/3 --grid 2 -o runs/after-3
python scripts/build_lite.py runs/3 --grid 2 --share 0.5 -o runs/half-3
robustsim train rank5-lite --data nips17/images -o runs/4
python scripts/build_lite.py runs/4 -o robustsim/encoders/bundled/lite-2026.11

The second goes on from there, on 6,173 (BOTH is --data nips17/images --data caltech101); several runs are averaged:

python scripts/build_lite.py lite-clean --grid 2 -o runs/clean-grid     # lite-clean with the embedding of lite-2026.11
robustsim train keep4-lite BOTH -o runs/5
robustsim train keep5-lite BOTH -o runs/6
python scripts/build_lite.py lite-2026.11 runs/5 runs/6 -o runs/three
robustsim train soup5-lite BOTH -o runs/7
robustsim train soup5-lite BOTH -o runs/8 --set seed=1
python scripts/build_lite.py runs/7 runs/8 --grid 2 --no-head -o runs/soup
python scripts/readout.py runs/soup --data nips17/images -o runs/read
python scripts/build_lite.py runs/read                                           # into the package
python scripts/build_lite.py --scores reports             # from `robustsim evaluate` or scripts/benchmarks.py
"""

import argparse
import dataclasses
import json
from pathlib import Path

import robustsim
from robustsim.encoders import load_encoder, save_encoder
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.encoders.lite_plan import HEAD, LAST
from robustsim.evaluation import load_report
from robustsim.training import interpolate_encoders

BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled" / "lite"
FIRST = ("fare-lite", "fare4-lite", "fare4-lite-224", "rank5-lite")
BEGAN = {
    **{recipe: " of ".join([*reversed(FIRST[:number]), "lite-clean"]) for number, recipe in enumerate(FIRST)},
    "keep4-lite": "lite-2026.11",
    "keep5-lite": "lite-2026.11",
    "soup5-lite": "the mean of lite-2026.11, keep4-lite and keep5-lite",
}
NIPS17 = "1,000 photographs of the NIPS 2017 adversarial competition's development set, CC BY 2.0"
CALTECH101 = "5,173 pictures of Caltech-101 (Caltech, CC BY 4.0)"
NOTICE = """{name}: the weights in model.safetensors

EfficientNet-Lite0 as in lite-clean (see its NOTICE), Apache License 2.0, fine-tuned adversarially with robustsim
({how})
on the 1,000 photographs of the development set of the NIPS 2017 competition on adversarial attacks and defences
(Kurakin et al. 2018), each published under CC BY 2.0 by the author named in the set's own list{also}. No photograph is
contained in this package.

Changes: all weights fine-tuned, values rounded to float16. docs/training.md names the commands that make them.
config.json names the file's SHA-256.

The Apache License 2.0 is the LICENSE file that comes with robustsim.
"""
ALSO = """, and on the
5,173 pictures of Caltech-101 (Fei-Fei, Fergus and Perona 2004; Li, Andreeto, Ranzato and Perona, CaltechDATA 2022),
published under CC BY 4.0 by Caltech"""


def with_grid(encoder: Encoder, grid: int, *, head: bool = True) -> Encoder:
    """The same weights, and the mean of each cell of a grid over the picture beside one another as the embedding.

    Args:
        encoder: in the bundled architecture.
        grid: cells on a side.
        head: False to embed the map before the last convolution, which is left away.
    """
    card = encoder.card
    options: dict[str, object] = {"grid": grid} if head else {"grid": grid, "head": False}
    weights = {name: value for name, value in encoder.state_dict().items() if head or "trunk.head." not in name}
    result = build_encoder(
        dataclasses.replace(
            card,
            architecture=dataclasses.replace(card.architecture, options=options),
            embedding_dim=(HEAD if head else LAST) * grid**2,
            parameters=sum(value.numel() for value in weights.values()),
            weights_sha256=None,
        )
    )
    result.load_state_dict(weights)
    return result


def mean_of(encoders: list[Encoder]) -> Encoder:
    """The mean of the weights (a uniform soup; Wortsman et al. 2022), with the card of the last."""
    result = encoders[0]
    for number, other in enumerate(encoders[1:], 2):
        result = interpolate_encoders(result, other, 1 / number)
    return result


def build(runs: list[str], output: Path, share: float, grid: int | None, head: bool) -> None:
    """Weights, card and notice.

    Args:
        runs: results of trainings, or encoders' names; their mean is taken.
        output: where to.
        share: how much of the way from lite-clean to it.
        grid: cells on a side of the embedding; as in the run if not given.
        head: whether the embedding is made of the last convolution's map; of the one before, if not.
    """
    encoders = [load_encoder(run).float() for run in runs]
    training = dict(encoders[-1].card.training)
    encoder = mean_of(encoders)
    if grid is not None:
        encoder = with_grid(encoder, grid, head=head)
    if share < 1:  # which has the same weights, whatever becomes of its last map
        encoder = interpolate_encoders(load_encoder("lite-clean").float(), encoder, share)
        training |= {"interpolated_with": "lite-clean", "share": share}
    encoder = encoder.half()
    card = encoder.card
    first = training.get("recipe") in FIRST
    if training:
        recipe = training.get("recipe")
        if recipe not in BEGAN:
            raise SystemExit(f"{runs[-1]} was trained by {recipe!r}, which is none of {', '.join(BEGAN)}")
        training["began_as"] = BEGAN[recipe]
        if len(encoders) > 1:
            told = (one.card.training for one in encoders)
            training |= {"mean_of": [f"{one['recipe']}, seed {one.get('seed')}" for one in told if "recipe" in one]}
            training.pop("seed", None)
        seen = NIPS17 if first else f"{NIPS17}, and {CALTECH101}"
        card = dataclasses.replace(
            card,
            data=f"{seen}, without labels; began as lite-clean (ImageNet-1k)",
            origin=f"lite-clean, fine-tuned with robustsim {robustsim.__version__}",
        )
    encoder.card = dataclasses.replace(card, name=output.name, license="Apache-2.0", scores={}, training=training)
    save_encoder(encoder, output)
    if training:
        how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in training.items() if key != "mean_of")
        how += "".join(f"; {one}" for one in training.get("mean_of", ()))
        (output / "NOTICE").write_text(NOTICE.format(name=output.name, how=how, also="" if first else ALSO))


def score(reports: Path) -> None:
    """Scores in per cent, by task and threat, from every report on this very file."""
    encoder = load_encoder(BUNDLED).half()
    checksum = json.loads((BUNDLED / "config.json").read_text())["weights_sha256"]
    scores: dict[str, float] = {}
    for path in sorted(reports.glob("*.json")):
        report = load_report(path)
        if report.content["metric"].get("card", {}).get("weights_sha256") != checksum:
            continue
        name, _, part = report.content["data"]["name"].partition("/")
        # Agreement on training triplets, which chooses the share, is no score, and correlations are told as questions.
        if part not in ("", "test") or "accuracy" not in report.results:
            continue
        kind = "ladder" if report.task == "ladder" else name.replace("-", "_")
        scores[f"{kind}_clean"] = round(100 * report.results["accuracy"]["value"], 1)
        for threat in report.threats:
            size = threat["eps"].replace("/255", "")
            scores[f"{kind}_{threat['norm']}_{size}"] = round(100 * threat["accuracy"]["value"], 1)
    if not scores:
        raise SystemExit(f"no report in {reports} is on the weights {checksum[:12]}...")
    encoder.card = dataclasses.replace(encoder.card, scores=scores)
    save_encoder(encoder, BUNDLED)
    print(json.dumps(scores, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("-o", "--output", type=Path, default=BUNDLED)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--grid", type=int)
    parser.add_argument("--no-head", dest="head", action="store_false", help="with --grid")
    parser.add_argument("--scores", type=Path)
    options = parser.parse_args()
    if options.runs:
        build(options.runs, options.output, options.share, options.grid, options.head)
    if options.scores:
        score(options.scores)


if __name__ == "__main__":
    main()

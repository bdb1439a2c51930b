"""Make robustsim/encoders/bundled/lite from what four recipes have trained, and write its measured scores.

robustsim train fare-lite --data nips17/images -o runs/1
python scripts/build_lite.py runs/1 -o runs/after-1                                # float16 weights, card, notice
robustsim train fare4-lite --data nips17/images -o runs/2
python scripts/build_lite.py runs/2 -o runs/after-2
robustsim train fare4-lite-224 --data nips17/images -o runs/3
python scripts/build_lite.py runs/3 --grid 2 -o runs/after-3
python scripts/build_lite.py runs/3 --grid 2 --share 0.5 -o runs/half-3
robustsim train rank5-lite --data nips17/images -o runs/4
python scripts/build_lite.py runs/4                                                # the same into the package
python scripts/build_lite.py --scores reports                   # scores from `robustsim evaluate`, see docs/training.md
python scripts/build_lite.py lite-clean --grid 2 -o runs/clean-grid     # lite-clean with the embedding of lite
"""

import argparse
import dataclasses
import json
from pathlib import Path

import robustsim
from robustsim.encoders import load_encoder, save_encoder
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.evaluation import load_report
from robustsim.training import interpolate_encoders

BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled" / "lite"
STAGES = ("fare-lite", "fare4-lite", "fare4-lite-224", "rank5-lite")
CHANNELS = 1280
DATA = (
    "1,000 photographs of the NIPS 2017 adversarial competition's development set, CC BY 2.0, without labels; began as "
    "lite-clean (ImageNet-1k)"
)
NOTICE = """lite: the weights in model.safetensors

EfficientNet-Lite0 as in lite-clean (see its NOTICE), Apache License 2.0, fine-tuned adversarially with robustsim
({how})
on the 1,000 photographs of the development set of the NIPS 2017 competition on adversarial attacks and defences
(Kurakin et al. 2018), each published under CC BY 2.0 by the author named in the set's own list. No photograph is
contained in this package.

Changes: all weights fine-tuned, values rounded to float16. docs/training.md names the commands that make them.
config.json names the file's SHA-256.

The Apache License 2.0 is the LICENSE file that comes with robustsim.
"""


def with_grid(encoder: Encoder, grid: int) -> Encoder:
    """The same weights, and the mean of each cell of a grid over the picture beside one another as the embedding."""
    card = encoder.card
    architecture = dataclasses.replace(card.architecture, options={"grid": grid})
    result = build_encoder(
        dataclasses.replace(card, architecture=architecture, embedding_dim=CHANNELS * grid**2, weights_sha256=None)
    )
    result.load_state_dict(encoder.state_dict())
    return result


def build(run: str, output: Path, share: float, grid: int | None) -> None:
    """Weights, card and notice.

    Args:
        run: a training's result, or an encoder's name.
        output: where to.
        share: how much of the way from lite-clean to it.
        grid: cells on a side of the embedding; as in the run if not given.
    """
    encoder = load_encoder(run).float()
    if grid is not None:
        encoder = with_grid(encoder, grid)
    if share < 1:  # which has the same weights, whatever becomes of its last map
        encoder = interpolate_encoders(load_encoder("lite-clean").float(), encoder, share)
    encoder = encoder.half()
    card, training = encoder.card, dict(encoder.card.training)
    if training:
        if training.get("recipe") not in STAGES:
            raise SystemExit(f"{run} was trained by {training.get('recipe')!r}, which is none of {', '.join(STAGES)}")
        before = STAGES[: STAGES.index(training["recipe"])]
        training |= {"began_as": " of ".join([*reversed(before), "lite-clean"])}
        card = dataclasses.replace(
            card, data=DATA, origin=f"lite-clean, fine-tuned with robustsim {robustsim.__version__}"
        )
    name = "lite" if output == BUNDLED else output.name
    encoder.card = dataclasses.replace(card, name=name, license="Apache-2.0", scores={}, training=training)
    save_encoder(encoder, output)
    if training:
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in training.items())
        (output / "NOTICE").write_text(NOTICE.format(how=told))


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
        if part not in ("", "test"):  # agreement on training triplets, which chooses the share, is no score
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
    parser.add_argument("run", nargs="?")
    parser.add_argument("-o", "--output", type=Path, default=BUNDLED)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--grid", type=int)
    parser.add_argument("--scores", type=Path)
    options = parser.parse_args()
    if options.run:
        build(options.run, options.output, options.share, options.grid)
    if options.scores:
        score(options.scores)


if __name__ == "__main__":
    main()

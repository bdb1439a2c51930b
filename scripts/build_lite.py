"""Make robustsim/encoders/bundled/lite from what two recipes have trained, and write its measured scores.

robustsim train fare-lite --data nips17/images -o runs/first
python scripts/build_lite.py runs/first -o runs/start           # float16 weights, card, notice
robustsim train fare4-lite --data nips17/images -o runs/last --set encoder=runs/start
python scripts/build_lite.py runs/last --share 0.85             # the same into the package, 85 % of the way
python scripts/build_lite.py --scores reports                   # scores from `robustsim evaluate`, see docs/training.md
"""

import argparse
import dataclasses
import json
from pathlib import Path

import robustsim
from robustsim.encoders import load_encoder, save_encoder
from robustsim.evaluation import load_report
from robustsim.training import interpolate_encoders

BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled" / "lite"
DATA = (
    "1,000 photographs of the NIPS 2017 adversarial competition's development set, CC BY 2.0, without labels; began as "
    "lite-clean (ImageNet-1k)"
)
NOTICE = """lite: the weights in model.safetensors

EfficientNet-Lite0 as in lite-clean (see its NOTICE), Apache License 2.0, fine-tuned adversarially with robustsim
(FARE; {how})
on the 1,000 photographs of the development set of the NIPS 2017 competition on adversarial attacks and defences
(Kurakin et al. 2018), each published under CC BY 2.0 by the author named in the set's own list. No photograph is
contained in this package.

Changes: all weights fine-tuned, values rounded to float16. docs/training.md names the commands that make them.
config.json names the file's SHA-256.

The Apache License 2.0 is the LICENSE file that comes with robustsim.
"""


def build(run: Path, output: Path, share: float) -> None:
    """Weights, card and notice.

    Args:
        run: a training's result.
        output: where to.
        share: how much of the way from lite-clean to it.
    """
    encoder = load_encoder(run)
    if share < 1:
        encoder = interpolate_encoders(load_encoder("lite-clean").float(), encoder, share)
    encoder = encoder.half()
    training = dict(encoder.card.training)
    if training["recipe"] != "fare-lite":
        training["began_as"] = "fare-lite of lite-clean"
    encoder.card = dataclasses.replace(
        encoder.card,
        name="lite" if output == BUNDLED else output.name,
        data=DATA,
        license="Apache-2.0",
        origin=f"lite-clean, fine-tuned with robustsim {robustsim.__version__}",
        scores={},
        training=training,
    )
    save_encoder(encoder, output)
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
        name = report.content["data"]["name"].split("/")[0].replace("-", "_")
        kind = "ladder" if report.task == "ladder" else name
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
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path, default=BUNDLED)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--scores", type=Path)
    options = parser.parse_args()
    if options.run:
        build(options.run, options.output, options.share)
    if options.scores:
        score(options.scores)


if __name__ == "__main__":
    main()

"""Make robustsim/encoders/bundled/lite from the result of `robustsim train fare-lite`, and write its measured scores.

robustsim train fare-lite --data nips17/images -o runs/lite
python scripts/build_lite.py runs/lite                          # float16 weights, card, notice
python scripts/build_lite.py --scores reports                   # scores from `robustsim evaluate`, see docs/training.md
"""

import argparse
import dataclasses
import json
from pathlib import Path

from robustsim.encoders import load_encoder, save_encoder
from robustsim.evaluation import load_report

BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled" / "lite"
DATA = (
    "1,000 photographs of the NIPS 2017 adversarial competition's development set, CC BY 2.0, without labels; began as "
    "lite-clean (ImageNet-1k)"
)
NOTICE = """lite: the weights in model.safetensors

EfficientNet-Lite0 as in lite-clean (see its NOTICE), Apache License 2.0, fine-tuned adversarially with robustsim
(FARE, recipe {recipe}, seed {seed}, {steps} steps) on the 1,000 photographs of the development set of the NIPS 2017
competition on adversarial attacks and defences (Kurakin et al. 2018), each published under CC BY 2.0 by the author
named in the set's own list. No photograph is contained in this package.

Changes: all weights fine-tuned, values rounded to float16. docs/training.md names the commands that make them.
config.json names the file's SHA-256.

The Apache License 2.0 is the LICENSE file that comes with robustsim.
"""


def build(run: Path) -> None:
    encoder = load_encoder(run).half()
    card = encoder.card
    encoder.card = dataclasses.replace(card, name="lite", data=DATA, license="Apache-2.0", scores={})
    save_encoder(encoder, BUNDLED)
    (BUNDLED / "NOTICE").write_text(NOTICE.format(**card.training))


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
    parser.add_argument("--scores", type=Path)
    options = parser.parse_args()
    if options.run:
        build(options.run)
    if options.scores:
        score(options.scores)


if __name__ == "__main__":
    main()

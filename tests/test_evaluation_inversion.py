"""What models rebuild of photographs, judged by all of them: the matrix, its resumption, and what is no sign."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.errors import ImageError, InputError, ObjectiveError
from robustsim.evaluation import compare_reports, evaluate_inversion, inversion, load_report, report_table
from robustsim.explain import invert
from robustsim.images import Preprocessing
from robustsim.images.inputs import load_square, stack_squares
from tests import trainings
from tests.conftest import EXAMPLES
from tests.judges import pairs, pictures, small

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3


@pytest.fixture(scope="module")
def models():
    return [RobustSim(trainings.encoder(seed=seed)) for seed in (0, 1)]


@pytest.fixture
def folder(tmp_path):
    return pictures(tmp_path / "photographs", 6, size=20)


@pytest.fixture
def calls(monkeypatch):
    """How often a picture was made; `calls.fail_at` is the call that is interrupted."""

    class Calls:
        made = 0
        fail_at = None

        def __call__(self, *arguments, **options):
            if self.made == self.fail_at:
                self.fail_at = None
                raise KeyboardInterrupt
            self.made += 1
            return invert(*arguments, **options)

    counting = Calls()
    monkeypatch.setattr(inversion, "invert", counting)
    return counting


def judge(metrics, folder, output, **options):
    return evaluate_inversion(metrics, folder, output=output, **{"steps": STEPS, **options})


def everything(report):
    """A report but for its times, its columns, and the bytes of its pictures."""
    content = {name: value for name, value in report.content.items() if name != "times"}
    columns = {name: column.tolist() for name, column in report.items.items()}
    files = [report.path.parent / name for name in columns["picture"] if name is not None]
    return json.dumps([content, columns]), [file.read_bytes() for file in files]


def test_the_matrix_word_by_word(models, folder, tmp_path):
    """Each photograph rebuilt, rounded, and looked at by each judge in its own size."""
    large = pairs(name="large")
    large.preprocessing = Preprocessing(size=24)
    report = judge(models, folder, tmp_path / "r", judges=[small(), large], seed=4)
    files = sorted(folder.iterdir())
    names = list(report.results["matrix"])
    assert list(report.results["judges"].values()) == ["similarity", "similarity", "distance", "distance"]
    items = report.items
    for own, metric in zip(names, models, strict=True):
        originals = stack_squares([load_square(file, metric.card.preprocessing) for file in files], metric.device)
        made = [invert(metric, file, steps=STEPS, seeds=[4]) for file in files]
        rebuilt = torch.cat([(one.images[0] * 255).round() / 255 for one in made])
        rows = items["group"] == own
        others = [files.index(folder / name) for name in items["other"][rows]]
        assert sorted(others) == list(range(6))
        assert all(place != other for place, other in enumerate(others))
        reached = torch.cat([one.similarity[0] for one in made])
        np.testing.assert_allclose(items["reached"][rows].astype(float), reached, atol=1e-6)
        assert report.results["reached"][own]["value"] == pytest.approx(float(reached.mean()), abs=1e-6)
        grey = torch.full_like(originals, 128 / 255)
        for part, shown in (("matrix", rebuilt), ("another", rebuilt[others]), ("grey", grey)):
            wanted = [F.cosine_similarity(one.embed_pixels(originals), one.embed_pixels(shown)) for one in models]
            wanted.append(small().distance(originals, shown))
            sizes = [Preprocessing(size=24)] * 2
            bigger = [
                torch.stack(
                    [
                        torch.from_numpy(np.array(size.apply(Image.fromarray(np.uint8(np.rint(one * 255))))))
                        for one in side.permute(0, 2, 3, 1).numpy()
                    ]
                ).permute(0, 3, 1, 2)
                / 255
                for side, size in zip((originals, shown), sizes, strict=True)
            ]
            wanted.append((bigger[0] - bigger[1]).square().mean((1, 2, 3)))
            for name, values in zip(report.results["judges"], wanted, strict=True):
                found = items[f"{part} {name}"][rows].astype(float)
                np.testing.assert_allclose(found, values, atol=1e-5)
                figure = report.results[part][own][name]
                assert figure["value"] == pytest.approx(float(values.mean()), abs=1e-5)
                assert figure["low"] <= figure["value"] <= figure["high"]
                assert figure["n"] == 6


def test_an_interrupted_run_ends_with_the_same_report_and_makes_nothing_twice(
    models, folder, tmp_path, calls, monkeypatch
):
    (folder / "02.png").write_bytes(b"nothing")
    undisturbed = judge(models, folder, tmp_path / "whole")
    assert calls.made == 10
    for fail_at in (0, 7, None):
        calls.made, calls.fail_at, output = 0, fail_at, tmp_path / f"cut-{fail_at}"
        with monkeypatch.context() as patch:
            if fail_at is None:  # all is made, and nothing is written

                def stop(*arguments):
                    raise KeyboardInterrupt

                patch.setattr(inversion, "write_report", stop)
            with pytest.raises(KeyboardInterrupt):
                judge(models, folder, output)
        assert calls.made == (10 if fail_at is None else fail_at)
        assert not list(output.glob("*.json"))
        again = judge(models, folder, output)
        assert calls.made == 10
        assert everything(again) == everything(undisturbed)
        assert [one["id"] for one in again.content["skipped"]] == ["02.png"]
    calls.made = 0
    assert everything(judge(models, folder, tmp_path / "whole")) == everything(undisturbed)
    assert calls.made == 0


def test_a_picture_that_was_half_kept_is_made_again(models, folder, tmp_path, calls):
    undisturbed = judge(models[0], folder, tmp_path / "r")
    undisturbed.path.unlink()
    (pictures_of,) = (tmp_path / "r").glob("*.pictures")
    (pictures_of / "rebuilt-00003.png").unlink()
    journal = pictures_of / "journal-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])  # the line of the last one
    calls.made = 0
    again = judge(models[0], folder, tmp_path / "r")
    assert calls.made == 2
    assert everything(again) == everything(undisturbed)


def test_what_is_there_serves_other_judges_and_other_runs_make_their_own(models, folder, tmp_path, calls):
    first = judge(models[:1], folder, tmp_path)
    both = judge(models, folder, tmp_path, judges=[pairs()])
    assert calls.made == 12  # six of each, those of the first once
    (name,) = first.results["matrix"]
    one, *_ = both.results["matrix"].values()
    assert one[next(iter(both.results["judges"]))] == first.results["matrix"][name][name]
    for options in ({"steps": STEPS + 1}, {"seed": 1}, {"radius": 2.0}, {"photographs": 4}):
        calls.made = 0
        other = judge(models[0], folder, tmp_path, **options)
        assert calls.made == options.get("photographs", 6), options
        assert other.path != first.path
    calls.made = 0
    judge(RobustSim(trainings.encoder(seed=5)), folder, tmp_path)
    assert calls.made == 6
    judge(models[0], folder, tmp_path, restart=True)
    assert calls.made == 12


def test_namesakes_and_twins(models, folder, tmp_path):
    report = judge(models, folder, tmp_path, photographs=1)
    assert len(set(report.results["matrix"])) == 2
    assert all(name.startswith("small (") for name in report.results["matrix"])
    with pytest.raises(InputError, match="is there twice among the models and judges"):
        judge(models[0], folder, tmp_path, judges=[RobustSim(trainings.encoder(seed=0))])


def test_one_photograph_of_one_model(models, folder, tmp_path):
    report = judge(models[0], folder, tmp_path, photographs=1)
    assert report.results["another"] == {"small": {"small": None}}
    (table,) = report_table([report])
    assert table.header == ("generated with", "small")
    assert [row[0] for row in table.rows] == ["small", "small, of another photograph", "grey"]
    assert table.rows[1][1] == "-"
    assert table.rows[0][1] == f"{report.results['matrix']['small']['small']['value']:.3f}"


def test_refused(models, folder, tmp_path):
    with pytest.raises(InputError, match="at least one RobustSim"):
        judge([], folder, tmp_path)
    with pytest.raises(InputError, match="nothing else among the metrics"):
        judge([small()], folder, tmp_path)
    with pytest.raises(InputError, match="must be at least 1, not 32 and 0"):
        judge(models, folder, tmp_path, photographs=0)
    with pytest.raises(InputError, match="steps"):
        judge(models, folder, tmp_path, steps=0)
    with pytest.raises(InputError, match="radius"):
        judge(models, folder, tmp_path, radius=-1.0)
    with pytest.raises(ImageError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        judge(models, tmp_path / "empty", tmp_path)
    bad = pairs(lambda a, b: (a - b).mean((1, 2, 3)) * float("nan"), name="bad")
    with pytest.raises(ObjectiveError, match="bad gives NaN or infinity"):
        judge(models[0], folder, tmp_path, judges=[bad])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"not a single photograph could be read; the first: .*a\.png"):
        judge(models[0], tmp_path / "broken", tmp_path)


def test_in_the_terminal(run, tmp_path):
    words = ("--data", EXAMPLES, "--steps", 1, "--photographs", 1, "-o", tmp_path)
    code, out, _ = run("evaluate", "inversion", *words, "-m", "lite", "--judge", "l2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "inversion, examples: 1 photographs"
    assert any(line.split()[:3] == ["generated", "with", "lite"] and "l2, distance" in line for line in lines)
    (file,) = tmp_path.glob("*.json")
    report = load_report(file)
    code, out, _ = run("evaluate", "inversion", *words, "-m", "lite", "--judge", "l2", "--json")
    assert json.loads(out) == {"report": str(file), **report.content}
    code, out, _ = run("evaluate", "table", file, "--format", "markdown")
    assert code == 0
    assert "| generated with | lite | l2, distance |" in out
    code, _, err = run("evaluate", "compare", file, file)
    assert code == 1
    assert "is on inversion, a matrix" in err
    with pytest.raises(InputError, match="is on inversion, a matrix"):
        compare_reports([report, report])
    code, _, err = run("evaluate", "inversion", *words, "-m", "ssim")
    assert code == 2
    assert "name it with --judge" in err


def test_what_could_not_be_read_is_tried_again_and_left_out_for_all_models(models, folder, tmp_path, monkeypatch):
    """Read by one model and not by another, in either order; and read by all once the fault has gone."""
    real = inversion.load_square
    for number, metrics in enumerate((models, models[::-1])):
        broken, output = {"left": 1}, tmp_path / f"out{number}"

        def load(path, preprocessing, broken=broken, **options):
            asked = broken.setdefault("asked", 0)
            broken["asked"] += 1
            # The second model's first reading alone.
            if broken["left"] and asked == 6:
                broken["left"] = 0
                raise ImageError("the network is away")
            return real(path, preprocessing, **options)

        monkeypatch.setattr(inversion, "load_square", load)
        report = judge(metrics, folder, output)
        assert [one["error"] for one in report.content["skipped"]] == ["the network is away"]
        monkeypatch.setattr(inversion, "load_square", real)
        again = judge(metrics, folder, output)
        assert again.content["skipped"] == report.content["skipped"]  # a report that is there is the answer
        report.path.unlink()
        assert judge(metrics, folder, output).content["skipped"] == []

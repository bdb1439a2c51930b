"""Detection as an evaluation: shares by class, attacks of Eq. 5, a detector beside, parts apart, resumption."""

import json
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.attacks import APGD, Targeted
from robustsim.data import detection_folders, read_detection
from robustsim.errors import DataError, InputError
from robustsim.evaluation import compare_reports, detection, evaluate_detection, report_table
from robustsim.evaluation.running.evasion import Evasion, Second
from robustsim.evaluation.subjects import subject
from robustsim.images import read_image
from robustsim.search import LaionHead, ScoreDetector
from tests import trainings
from tests.judges import pairs, pictures, small

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("safe", "buffer", "unsafe")
OPTIONS = {"eps": ("8/255",), "steps": 4, "targets": 2, "batch_size": 4}


@pytest.fixture
def folders(tmp_path):
    sizes = {"bank": 6, "queries": 5, "targets": 3}
    return {
        part: {
            kind: pictures(tmp_path / part / kind, count, size=40, seed=10 * place + row)
            for row, kind in enumerate(CLASSES)
            if part == "bank" or kind != "buffer"
        }
        for place, (part, count) in enumerate(sizes.items())
    }


@pytest.fixture
def data(folders):
    return detection_folders(folders["bank"], folders["queries"], folders["targets"])


@pytest.fixture(scope="module")
def robust():
    return RobustSim(trainings.encoder())


def judge(metric, data, tmp_path, output="r", **options):
    return evaluate_detection(metric, data, output=tmp_path / output, **{**OPTIONS, **options})


def everything(report):
    content = {name: value for name, value in report.content.items() if name != "times"}
    return json.dumps([content, {name: column.tolist() for name, column in report.items.items()}])


def looked_at(one, files):
    squares = [np.array(one.preprocessing.apply(read_image(file))) for file in files]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def nearest(one, codes, banks, votes):
    """The class of each row, word by word: of most of the nearest."""
    found = []
    for code in codes:
        far = [(float(one.distance(code[None], row[None])), kind) for kind, rows in banks.items() for row in rows]
        kinds = [kind for _, kind in sorted(far)[:votes]]
        most = max(kinds.count(kind) for kind in kinds)
        leading = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) == most]
        found.append(next((kind for kind in leading if kind != "safe"), leading[0]))
    return found


@pytest.mark.parametrize(("kind", "votes"), [("cosine", 1), ("cosine", 3), ("own", 1)])
def test_shares_word_by_word(kind, votes, robust, data, tmp_path):
    metric = robust if kind == "cosine" else small()
    report = judge(metric, data, tmp_path, votes=votes, batch_size=32)
    one = subject(metric)
    with torch.no_grad():
        banks = {kind: one.embed(looked_at(one, files)) for kind, files in data.bank.items()}
    for number, (own, other) in enumerate((("safe", "unsafe"), ("unsafe", "safe"))):
        pixels = looked_at(one, data.queries[own])
        with torch.no_grad():
            given = nearest(one, one.embed(pixels), banks, votes)
        figures = report.results["clean"][own]["classes"]
        assert {name: one["value"] for name, one in figures.items()} == {
            bank: pytest.approx(given.count(bank) / 5) for bank in CLASSES
        }
        assert report.items["class"][report.items["group"] == own].tolist() == given
        drawn = report.content["detection"]["targets"]
        assert drawn == {"unsafe": 2, "safe": 2}
        part = next(part for part in report.results["adversarial"][0]["pairs"] if part["query"] == own)
        assert part["target"] == other
        assert {name: one["value"] for name, one in part["before"].items()} == {
            name: one["value"] for name, one in figures.items()
        }
        # Which two of three are drawn is the seed's; the attack is the paper's on one of these.
        options = []
        for left_out in range(3):
            aims = [file for place, file in enumerate(data.targets[other]) if place != left_out]
            with torch.no_grad():
                y = one.embed(looked_at(one, aims))
            goal = Targeted(one.embed, y) if kind == "cosine" else Sum(one, y)
            images = attacked(goal, pixels, number)
            with torch.no_grad():
                options.append(nearest(one, one.embed(images), banks, votes))
        column = report.items[f"class {own} to {other} 8/255"][report.items["group"] == own].tolist()
        assert column in options
        assert {name: one["value"] for name, one in part["classes"].items()} == {
            bank: pytest.approx(column.count(bank) / 5) for bank in CLASSES
        }


class Sum:
    """Minus the sum of a metric's own distances."""

    def __init__(self, one, y):
        self.one, self.y = one, y

    def __call__(self, x):
        return -sum(self.one.distance(self.one.embed(x), row.expand(len(x), -1)) for row in self.y)


def attacked(goal, pixels, number):
    generator = torch.Generator().manual_seed(zlib.crc32(f"{number} escape linf 8/255".encode()))
    return APGD(norm="linf", eps=8 / 255, steps=OPTIONS["steps"], generator=generator)(goal, pixels).images


class Dark(nn.Module):
    """Flags dark pictures."""

    takes = "pixels"

    def forward(self, pixels):
        return torch.sigmoid(self.logits(pixels))

    def logits(self, pixels):
        return 30 * (0.5 - pixels.mean((1, 2, 3)))


def test_a_detector_beside(robust, data, tmp_path):
    detector = ScoreDetector(Dark(), 0.5)
    report = judge(robust, data, tmp_path, detector=detector, steps=8, eps=("16/255",))
    one = subject(robust)
    for kind in ("safe", "unsafe"):
        means = looked_at(one, data.queries[kind]).mean((1, 2, 3))
        clean = report.results["clean"][kind]
        assert clean["detector"]["value"] == pytest.approx(float((means <= 0.5).float().mean()))
        flags = {
            "detector": means.numpy() <= 0.5,
            "rule": report.items["class"][report.items["group"] == kind] != "safe",
        }
        assert clean["either"]["value"] == pytest.approx((flags["detector"] | flags["rule"]).mean())
    found = {part["query"]: part for part in report.results["adversarial"][0]["pairs"]}
    for kind, target in (("safe", "unsafe"), ("unsafe", "safe")):
        part = found[kind]
        assert list(part["detector"]) == ["white"]
        pixels = looked_at(one, data.queries[kind])
        best = (pixels + (16 if target == "safe" else -16) / 255).clamp(0, 1).mean((1, 2, 3))
        assert part["detector"]["white"]["value"] == pytest.approx(float((best <= 0.5).float().mean()))
        assert list(part["either"]) == ["independent white", "joint", "single"]
        ways = {name: one["value"] for name, one in part["either"].items()}
        if kind == "unsafe":  # one picture has to pass both
            assert ways["single"] <= ways["joint"]
        else:
            assert ways["single"] >= max(ways["joint"], ways["independent white"])
    names = [name for name in report.items if name.startswith("either ") and "unsafe to safe" in name]
    assert len(names) == 3


def test_a_head_that_shares_the_embeddings(robust, data, tmp_path):
    class Head(nn.Module):
        embedding_dim, takes = trainings.DIM, "embeddings"

        def __init__(self):
            super().__init__()
            self.line = nn.Linear(trainings.DIM, 1)

        def forward(self, embeddings):
            return torch.sigmoid(self.line(embeddings)).squeeze(1)

    torch.manual_seed(0)
    head = Head()
    report = judge(robust, data, tmp_path, detector=ScoreDetector(head, 0.5), pairs=[("unsafe", "safe")])
    (part,) = report.results["adversarial"][0]["pairs"]
    assert list(part["either"]) == ["independent", "independent white", "joint", "single"]
    assert all(weight.requires_grad for weight in head.parameters())
    second = Second(ScoreDetector(head, 0.5), subject(robust))
    images = looked_at(subject(robust), data.queries["unsafe"]).requires_grad_()
    y = torch.randn(3, trainings.DIM)
    goal = Evasion(subject(robust), y, second)
    u = robust.embed_pixels(images)
    by_hand = -(u[:, None] - F.normalize(y, dim=1)).square().sum(2).mean(1) + (0.5 - head(u)).clamp(max=0.05)
    torch.testing.assert_close(goal(images), by_hand, atol=1e-5, rtol=1e-5)
    own = judge(
        robust, data, tmp_path, "own", detector=ScoreDetector(head, 0.5, metric=robust), pairs=[("unsafe", "safe")]
    )
    assert list(own.results["adversarial"][0]["pairs"][0]["detector"]) == ["grey", "white"]
    assert own.items["class unsafe to safe 8/255"].tolist() == report.items["class unsafe to safe 8/255"].tolist()
    with pytest.raises(InputError, match=r"and not those of 'small', .* give it a metric of its own"):
        judge(robust, data, tmp_path, detector=ScoreDetector(LaionHead(), 0.5))
    with pytest.raises(InputError, match="small is no encoder: give it a metric"):
        judge(small(), data, tmp_path, detector=ScoreDetector(head, 0.5))


def test_each_picture_is_encoded_once(data, tmp_path):
    one = small()
    model = next(module for module in one.modules() if hasattr(module, "images"))
    judge(one, data, tmp_path, attacked=3, pairs=[("unsafe", "safe")])
    known = 18 + 10 + 2  # banks, queries, targets
    attack = 3 * (OPTIONS["steps"] + 1) + 3  # and once to be judged
    assert model.images == known + attack + 2 * 4  # what tells metrics apart asks for four, twice


def test_an_interrupted_run_ends_with_the_same_report(data, tmp_path, monkeypatch):
    (data.queries["safe"][1]).write_bytes(b"nothing" * 50)
    (data.bank["safe"][0]).write_bytes(b"nothing" * 51)
    undisturbed = judge(small(), data, tmp_path, "whole")
    assert [one["id"] for one in undisturbed.content["skipped"]] == ["queries/safe/01.png"]
    assert [one["id"] for one in undisturbed.content["unread"]] == ["bank/safe/00.png"]
    add = detection.Journal.add
    for fail_at in (2, 7, 10):
        calls = []

        def failing(*arguments, calls=calls, fail_at=fail_at):
            calls.append(1)
            if len(calls) == fail_at + 1:
                raise KeyboardInterrupt
            return add(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(detection.Journal, "add", failing)
            with pytest.raises(KeyboardInterrupt):
                judge(small(), data, tmp_path, f"cut-{fail_at}")
        again = judge(small(), data, tmp_path, f"cut-{fail_at}")
        assert everything(again) == everything(undisturbed)
        assert {path.suffix for path in (tmp_path / f"cut-{fail_at}").iterdir()} == {".json", ".parquet"}


def test_parts_must_be_apart(robust, folders, data, tmp_path):
    seen = (folders["bank"]["safe"] / "02.png").read_bytes()
    copy = folders["targets"]["safe"] / "known.png"
    copy.write_bytes(seen)
    again = detection_folders(folders["bank"], folders["queries"], folders["targets"])
    told = r"'bank/safe/02\.png' of the bank 'safe' and 'targets/safe/known\.png' of the targets 'safe' are the same"
    with pytest.raises(InputError, match=told):
        judge(robust, again, tmp_path)
    copy.unlink()
    with pytest.raises(InputError, match="no query can be led from 'safe' to 'buffer'"):
        judge(robust, data, tmp_path, pairs=[("safe", "buffer")])
    with pytest.raises(InputError, match="so that every picture would be"):
        judge(robust, data, tmp_path, safe=CLASSES)
    with pytest.raises(InputError, match="compares pairs of pictures"):
        judge(pairs(), data, tmp_path)


def test_a_table_is_divided_by_the_seed(tmp_path):
    names = [f"{kind}/{number:02}.png" for kind in CLASSES for number in range(20)]
    for kind in CLASSES:
        pictures(tmp_path / kind, 20)
    table = tmp_path / "classes.csv"
    table.write_text("file,class\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in names))
    first = read_detection(table, bank_only=["buffer"])
    assert {kind: len(files) for kind, files in first.bank.items()} == {"safe": 8, "buffer": 20, "unsafe": 8}
    assert {kind: len(files) for kind, files in first.queries.items()} == {"safe": 7, "unsafe": 7}
    assert {kind: len(files) for kind, files in first.targets.items()} == {"safe": 5, "unsafe": 5}
    every = [path for part in (first.bank, first.queries, first.targets) for files in part.values() for path in files]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in every) == sorted(names)
    assert read_detection(table, bank_only=["buffer"]) == first
    assert read_detection(table, seed=1, bank_only=["buffer"]).bank["safe"] != first.bank["safe"]
    table.write_text("file,class,part\nsafe/00.png,safe,bank\nsafe/01.png,safe,query\nunsafe/00.png,unsafe,target\n")
    with pytest.raises(DataError, match="the class 'unsafe' has no bank"):
        read_detection(table)
    table.write_text("file,class,part\nsafe/00.png,safe,bank\nsafe/00.png,safe,query\n")
    with pytest.raises(DataError, match=r"row 3: 'safe/00.png' is in row 2 already"):
        read_detection(table)


def test_comparison_tables_and_the_terminal(run, robust, folders, data, tmp_path):
    a, b = (judge(one, data, tmp_path) for one in (robust, small()))
    found = {one.measure: one for one in compare_reports([a, b])}
    assert list(found) == ["right safe", "right unsafe", "right safe to unsafe 8/255", "right unsafe to safe 8/255"]
    assert found["right safe"].value_a == pytest.approx(a.results["clean"]["safe"]["classes"]["safe"]["value"])
    (table,) = report_table([a, b], groups=True)
    assert "unsafe to safe, linf 8/255 = buffer" in table.header
    assert len(table.rows) == 2
    words = ["evaluate", "detection", "-m", "ssim", "-o", tmp_path / "t"]
    for option, part in (("--bank", "bank"), ("--queries", "queries"), ("--targets", "targets")):
        for kind, folder in folders[part].items():
            words += [option, f"{kind}={folder}"]
    code, _, err = run(*words)
    assert (code, "has no embeddings" in " ".join(err.split())) == (1, True)
    words[3] = "phash"
    code, out, err = run(*words, "--steps", 2, "--attacked", 1, "--pair", "unsafe=safe")
    assert code == 0, err
    assert "unsafe to safe, linf 8/255 = unsafe" in out
    code, _, err = run("evaluate", "detection", "--bank", "safe")
    assert code == 2
    assert "give --bank and --queries for each class, or --classes" in " ".join(err.split())

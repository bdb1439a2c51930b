"""Retrieval as an evaluation: rankings, attacked queries, resumption, comparison, tables and the sheet."""

import json
import os
import pickle
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.attacks import APGD, Untargeted
from robustsim.data import read_retrieval
from robustsim.errors import ImageError, InputError, ObjectiveError, OutputError
from robustsim.evaluation import (
    compare_reports,
    draw_neighbours,
    evaluate_retrieval,
    load_report,
    report_table,
    retrieval,
)
from robustsim.evaluation.running import database
from robustsim.evaluation.subjects import subject
from robustsim.images import read_image
from tests import trainings
from tests.judges import SIZE, pairs, pictures, small
from tests.processes import GATE, killed
from tests.test_evaluation_ranking import published

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES, DATABASE = 5, 13


@pytest.fixture
def folder(tmp_path):
    """A small ground truth, with boxes, a query without easy pictures and one without any."""
    pictures(tmp_path / "jpg", DATABASE + QUERIES, size=24)
    names = []
    for path in sorted((tmp_path / "jpg").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
        names.append(path.stem)
    random = np.random.default_rng(1)
    truths = []
    for place in range(QUERIES):
        chosen = random.permutation(DATABASE)
        easy, hard, junk = chosen[:3], chosen[3:5], chosen[5:8]
        if place == 1:
            easy = np.array([], dtype=int)
        if place == 2:
            easy = hard = np.array([], dtype=int)
        truths.append({"easy": easy, "hard": hard.tolist(), "junk": junk, "bbx": [1.6, 2, 20 + place, 22.0]})
    content = {"imlist": names[:DATABASE], "qimlist": names[DATABASE:], "gnd": truths}
    (tmp_path / "gnd_small.pkl").write_bytes(pickle.dumps(content))
    return tmp_path


@pytest.fixture
def data(folder):
    return read_retrieval(folder / "gnd_small.pkl")


@pytest.fixture(scope="module")
def robust():
    return RobustSim(trainings.encoder())


def judge(metric, data, folder, **options):
    return evaluate_retrieval(metric, data, output=folder, **{"batch_size": 3, **options})


def everything(report):
    content = {name: value for name, value in report.content.items() if name != "times"}
    return json.dumps([content, {name: column.tolist() for name, column in report.items.items()}])


def embeddings(metric, files, boxes=None):
    """Unit embeddings of files, one by one."""
    one, rows = subject(metric), []
    for place, file in enumerate(files):
        image = read_image(file)
        if boxes is not None:
            left, top, right, bottom = (round(value) for value in boxes[place])
            image = image.crop((left, top, right, bottom))
        pixels = torch.from_numpy(np.array(one.preprocessing.apply(image))).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            rows.append(one.embed(pixels)[0])
    return torch.stack(rows)


def test_figures_are_those_of_the_published_protocol(robust, data, tmp_path):
    report = judge(robust, data, tmp_path / "r")
    rows = embeddings(robust, data.database)
    queries = embeddings(robust, [query.path for query in data.queries], [query.box for query in data.queries])
    ranks = (1 - F.normalize(queries, dim=1) @ F.normalize(rows, dim=1).T).argsort(1).numpy()
    for protocol, wanted_n in (("easy", 3), ("medium", 4), ("hard", 4)):
        wanted = {}
        for place, query in enumerate(data.queries):
            positives, junk = ([one for name in part for one in query.lists[name]] for part in data.protocols[protocol])
            if positives:
                wanted[place] = published(ranks[place], positives, junk, (1, 5, 10))
        aps = report.items[f"ap {protocol}"]
        assert {place for place, ap in enumerate(aps) if ap is not None} == wanted.keys()
        for place, (ap, precisions) in wanted.items():
            assert aps[place] == pytest.approx(ap, abs=1e-9)
            found = [report.items[f"p@{k} {protocol}"][place] for k in (1, 5, 10)]
            assert found == pytest.approx(precisions)
        figure = report.results["clean"][protocol]["map"]
        assert figure["value"] == pytest.approx(np.mean([ap for ap, _ in wanted.values()]))
        assert figure["n"] == len(wanted) == wanted_n
    near = json.loads(report.items["nearest"][0])
    assert [name for name, _ in near] == [data.database[place].name for place in ranks[0][:10]]
    kinds = {place: name for name, places in data.queries[0].lists.items() for place in places}
    assert [kind for _, kind in near] == [kinds.get(place) for place in ranks[0][:10]]
    assert report.results["adversarial"] == []


def test_a_metric_with_a_distance_of_its_own(data, tmp_path):
    one = small()
    report = judge(one, data, tmp_path / "r", eps=("8/255",), steps=4)
    rows = embeddings(one, data.database)
    queries = embeddings(one, [query.path for query in data.queries], [query.box for query in data.queries])
    for place, query in enumerate(data.queries):
        far = one.compare(queries[place].expand_as(rows), rows)
        if query.lists["hard"]:
            over = [*query.lists["junk"], *query.lists["easy"]]
            ap, _ = published(far.argsort().numpy(), query.lists["hard"], over, ())
            assert report.items["ap hard"][place] == pytest.approx(ap)
    assert (report.items["moved 8/255"] > 0).all()


def test_attacked_queries_word_by_word(robust, data, tmp_path):
    report = judge(robust, data, tmp_path / "r", eps=("4/255", "16/255"), steps=5, seed=3)
    one, files = subject(robust), [query.path for query in data.queries]
    boxes = [query.box for query in data.queries]
    clean, rows = embeddings(robust, files, boxes), F.normalize(embeddings(robust, data.database), dim=1)
    moved = report.items["moved 16/255"].astype(float)
    for place in range(QUERIES):
        assert 0 < report.items["moved 4/255"][place] < moved[place]
    assert report.results["adversarial"][1]["moved"]["value"] == pytest.approx(moved.mean())
    # The first batch, by hand.
    squares = [one.preprocessing.apply(read_image(f).crop(tuple(map(round, b)))) for f, b in zip(files, boxes)]  # noqa: B905
    pixels = torch.stack([torch.from_numpy(np.array(square)) for square in squares[:3]]).permute(0, 3, 1, 2) / 255
    generator = torch.Generator().manual_seed(crc32(f"{3 * 1_000_003} escape linf 16/255".encode()))
    attack = APGD(norm="linf", eps=16 / 255, steps=5, generator=generator)
    images = attack(Untargeted(one.embed, clean[:3]), pixels).images
    with torch.no_grad():
        seen = F.normalize(one.embed(images), dim=1)
    for place in range(3):
        query = data.queries[place]
        assert moved[place] == pytest.approx(
            float((1 - (seen[place] * F.normalize(clean[place], dim=0)).sum()).sqrt()), abs=1e-4
        )
        if positives := [*query.lists["easy"], *query.lists["hard"]]:
            ap, _ = published((1 - seen[place] @ rows.T).argsort().numpy(), positives, query.lists["junk"], ())
            assert report.items["ap medium 16/255"][place] == pytest.approx(ap)
    part = report.results["adversarial"][1]
    assert (part["norm"], part["eps"]) == ("linf", "16/255")
    known = [ap for ap in report.items["ap medium 16/255"] if ap is not None]
    assert part["medium"]["map"]["value"] == pytest.approx(np.mean(known))


def test_the_database_is_embedded_once_and_ranked_in_parts(data, tmp_path, monkeypatch):
    one = small()
    model = next(module for module in one.modules() if hasattr(module, "images"))
    whole = judge(one, data, tmp_path / "whole")
    before = model.images
    monkeypatch.setattr(database, "_MOST_NUMBERS", 4 * 12)  # one picture of the database, and three queries, at a time
    parts = judge(one, data, tmp_path / "parts")
    assert model.images - before == DATABASE + QUERIES + 2 * 4  # what tells metrics apart asks for four, twice
    assert everything(parts) == everything(whole)


def test_an_interrupted_run_ends_with_the_same_report(robust, data, tmp_path, monkeypatch):
    options = {"eps": ("4/255",), "steps": 2}
    undisturbed = judge(robust, data, tmp_path / "whole", **options)
    add = retrieval.Journal.add
    for fail_at in (0, 2, 5, 6, 8):
        calls = []

        def failing(*arguments, calls=calls, fail_at=fail_at):
            calls.append(arguments)
            if len(calls) == fail_at + 1:
                raise KeyboardInterrupt
            return add(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(retrieval.Journal, "add", failing)
            with pytest.raises(KeyboardInterrupt):
                judge(robust, data, tmp_path / f"cut-{fail_at}", **options)
            again = judge(robust, data, tmp_path / f"cut-{fail_at}", **options)
        assert len(calls) == 5 + 4 + 1  # five batches of the database, two of queries twice, and the interrupted one
        assert everything(again) == everything(undisturbed)
        assert {path.suffix for path in (tmp_path / f"cut-{fail_at}").iterdir()} == {".json", ".parquet"}


@pytest.mark.slow  # an interruption of the same kind, in one process, is above
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_at_random_moments_it_ends_with_the_same_report(data, folder, tmp_path, server):
    options = {"eps": ("4/255",), "steps": 20, "batch_size": 2}
    undisturbed = evaluate_retrieval(small(), data, output=tmp_path / "whole", **options)
    job = f"""
import torch
from robustsim.data import read_retrieval
from robustsim.evaluation import evaluate_retrieval, retrieval
from tests.judges import small
torch.set_num_threads(1)
retrieval.write_report = lambda *arguments: gate({str(tmp_path / "gate")!r})
data = read_retrieval({str(folder / "gnd_small.pkl")!r})
evaluate_retrieval(small(pause=0.003), data, output={str(tmp_path / "cut")!r}, **{options!r})
"""
    for moment in (0.05, 0.3):
        begun = lambda: any((tmp_path / "cut").rglob("journal-0.jsonl"))  # noqa: E731
        killed(server, GATE + job, begun, tmp_path / "gate", moment)
    again = evaluate_retrieval(small(), data, output=tmp_path / "cut", **options)
    assert everything(again) == everything(undisturbed)


def test_rows_that_are_gone_are_not_taken_for_embeddings(robust, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retrieval._Work, "ask", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        judge(robust, data, tmp_path / "r")
    (rows,) = (tmp_path / "r").rglob("database.f32")
    rows.unlink()
    with pytest.raises(OutputError, match="is not what it was: pass restart"):
        judge(robust, data, tmp_path / "r")
    judge(robust, data, tmp_path / "r", restart=True)


def test_unreadable_pictures_are_told_and_tried_again(robust, data, tmp_path, monkeypatch):
    broken, lost = data.database[data.queries[0].lists["easy"][0]], data.queries[3].path
    for path in (broken, lost):
        path.write_bytes(b"nothing" * 100)
    report = judge(robust, data, tmp_path / "r", eps=("4/255",), steps=1)
    assert [one["id"] for one in report.content["skipped"]] == [data.queries[3].name]
    assert [one["id"] for one in report.content["unread"]] == [broken.name]
    assert report.items["ap medium"][3] is None
    assert broken.name not in report.items["nearest"][0]
    # As if it came after all others.
    good, place = [path for path in data.database if path != broken], data.database.index(broken)
    rows = embeddings(robust, good)
    query = data.queries[0]
    row = embeddings(robust, [query.path], [query.box])
    order = (1 - F.normalize(row, dim=1) @ F.normalize(rows, dim=1).T).argsort(1)[0].numpy()
    ranks = [*(data.database.index(good[one]) for one in order), place]
    positives = [one for name in ("easy", "hard") for one in query.lists[name]]
    # Its own share of the area below precision over recall is none.
    ap, precisions = published(np.array(ranks), positives, query.lists["junk"], (1, 5))
    last = len(positives) - 1, len(ranks) - len(query.lists["junk"]) - 1
    ap -= (last[0] / last[1] + (last[0] + 1) / (last[1] + 1)) / 2 / len(positives)
    assert report.items["ap medium"][0] == pytest.approx(ap)
    assert [report.items[f"p@{k} medium"][0] for k in (1, 5)] == pytest.approx(precisions)
    assert "1 pictures of the database could not be read" in " ".join(report_table([report])[0].notes)


def test_refused(robust, data, tmp_path):
    with pytest.raises(InputError, match="pairs compares pairs of pictures and has no embeddings"):
        judge(pairs(), data, tmp_path)
    with pytest.raises(InputError, match="steps"):
        judge(robust, data, tmp_path, steps=0)
    with pytest.raises(InputError, match="a radius is named twice in 4/255, 4/255"):
        judge(robust, data, tmp_path, eps=("4/255", "4 / 255"))
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        judge(robust, data, tmp_path, batch_size=0)
    blind = small()
    torch.nn.init.constant_(next(blind.parameters()), float("nan"))
    with pytest.raises(ObjectiveError, match="gives NaN or infinity"):
        judge(blind, data, tmp_path)
    for path in data.database:
        path.unlink()
    with pytest.raises(ImageError, match="not a single picture of the database could be read; the first: "):
        judge(robust, data, tmp_path / "empty")


def test_comparison_and_tables(robust, data, tmp_path):
    options = {"eps": ("4/255",), "steps": 1}
    a, b = (judge(one, data, tmp_path / "r", **options) for one in (robust, small()))
    found = {one.measure: one for one in compare_reports([a, b])}
    assert list(found) == [f"ap {name}{aside}" for aside in ("", " 4/255") for name in ("easy", "medium", "hard")]
    assert found["ap easy"].value_a == pytest.approx(a.results["clean"]["easy"]["map"]["value"])
    other = judge(small(), data, tmp_path / "r", eps=("4/255",), steps=2)
    assert [one.measure for one in compare_reports([a, other])] == ["ap easy", "ap medium", "ap hard"]
    (table,) = report_table([a, b], groups=True)
    assert table.header[1:5] == ("mAP easy", "mP@1 easy", "mP@5 easy", "mP@10 easy")
    assert "mAP hard, linf 4/255" in table.header
    assert "queries that have something to be found: 3 easy, 4 medium, 4 hard" in " ".join(table.notes)


def test_a_table_of_queries_and_the_sheet(run, tmp_path, monkeypatch):
    """In the terminal, with pictures that are in the database themselves."""
    pictures(tmp_path / "set", 8, size=SIZE)
    (tmp_path / "set" / "pairs.csv").write_text(
        "query,relevant\n00.png,01.png\n00.png,02.png\n03.png,04.png\n05.png,\n"
    )
    words = ("evaluate", "retrieval", "--data", tmp_path / "set" / "pairs.csv", "-m", "judged_here:metric")
    words = (*words, "-o", tmp_path / "r", "--eps", "8/255", "--steps", 2)
    (tmp_path / "judged_here.py").write_text("from tests.judges import small\nmetric = small()\n")
    monkeypatch.syspath_prepend(tmp_path)
    sheet = tmp_path / "sheet.png"
    code, out, err = run(*words, "--sheet", sheet, "--sheet-queries", 2)
    assert code == 0, err
    assert "mAP relevant" in out
    (file,) = (tmp_path / "r").glob("*.json")
    report = load_report(file)
    assert report.results["clean"]["relevant"]["map"]["n"] == 2
    for place, name in enumerate(("00.png", "03.png", "05.png")):
        assert name not in [found for found, _ in json.loads(report.items["nearest"][place])]
    with Image.open(sheet) as drawn:
        assert drawn.height == 32 + 2 * 2 * (160 + 56)  # two queries, as they are and attacked
        assert drawn.width == 6 * 172 + 12
    # The report is there, its pictures are not: they are made once more, to the bit.
    folder = file.with_suffix(".pictures")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(kept) == ["attacked-00000-linf-8_255.png", "attacked-00002-linf-8_255.png"]
    with pytest.raises(InputError, match=r"pictures=3\) of the same run keeps it"):
        draw_neighbours(report, queries=3)
    for path in folder.iterdir():
        path.unlink()
    code, out, err = run(*words, "--sheet", sheet, "--sheet-queries", 3, "--json")
    assert code == 0, err
    assert json.loads(out) == [{"report": str(file), **report.content}]
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert len(list(folder.iterdir())) == 3
    square = subject(small()).preprocessing.apply(read_image(tmp_path / "set" / "00.png"))
    attacked = np.asarray(Image.open(folder / "attacked-00000-linf-8_255.png")).astype(int)
    assert 0 < np.abs(attacked - np.asarray(square).astype(int)).max() <= 8
    (tmp_path / "set" / "01.png").write_bytes(b"nothing" * 100)
    for strict in (False, True):
        code, _, err = run(*words, *(["--strict"] if strict else []))
        assert code == strict
        assert "cannot read 01.png of the database" in err
        assert "1 of 8 pictures of the database count as not found" in err
    code, _, err = run(*words[:4], "-m", "lite", "-o", tmp_path / "r", "--sheet", tmp_path / "sheet.jpg")
    assert code == 2
    assert "does not end in .png" in err
    code, _, err = run("evaluate", "retrieval", "--data", tmp_path / "set" / "pairs.csv", "-m", "ssim")
    assert code == 1
    assert "has no embeddings" in err


def test_the_sheet_is_of_retrieval(tmp_path, data, robust):
    report = judge(robust, data, tmp_path / "r")
    assert draw_neighbours(report, queries=2, neighbours=3).size == (4 * 172 + 12, 32 + 2 * 216)
    with pytest.raises(InputError, match="neighbours 1 to 10"):
        draw_neighbours(report, neighbours=11)
    with pytest.raises(InputError, match="at least one"):
        draw_neighbours([])

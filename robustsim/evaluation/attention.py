"""How well text-guided attention finds objects whose masks are known, clean and under attack (CTGA paper, Table A1)."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsim.attacks import PGD, Classification, parse_eps
from robustsim.attacks.engine.base import alone
from robustsim.attacks.engine.options import whole
from robustsim.encoders.attention import AttentionForm
from robustsim.errors import ImageError, InputError
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.identity import device_kind, file_hashes, stem, versions
from robustsim.evaluation.running.journal import Journal, discard
from robustsim.evaluation.statistics import Array, mean_interval, mean_of_numbers
from robustsim.evaluation.subjects import subject
from robustsim.explain.masks import (
    check_prompts,
    label_of,
    mask_of,
    masked_files,
    read_masked,
    score_square,
    texts_of,
)
from robustsim.images.files import printable
from robustsim.metric import RobustSim

CLEAN = "clean"
# The inverse temperature of CLIP's own softmax.
_SCALE = 100.0
_SCORES = ("tga", "comp_tga")


def evaluate_attention(
    metric: RobustSim,
    images: "str | os.PathLike[str]",
    masks: "str | os.PathLike[str]",
    *,
    output: "str | os.PathLike[str]",
    eps: "Sequence[str]" = (),
    steps: int = 20,
    prompt: str = "This is a photo of a {}",
    against: str = "This is not a photo of a {}",
    form: AttentionForm = "paper",
    seed: int = 0,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """Soft IoU of the attention to each picture's class with the picture's mask, and write a report.

    Each picture is kept when it is done, in a folder beside the report, its name ending in `.partial`: the same call
    continues from there.

    The paper does not say how the adversarial examples of Table A1 were made. Here it is PGD in linf on the
    cross-entropy of the zero-shot classification among the classes of the folder, the attack of its main tables: all
    steps, whether the class is right or not.

    Args:
        metric: of a CLIP model loaded with `text=True`.
        images: folder with a folder for each class, named as the class is called; underscores become spaces.
        masks: folder with `class/name.png` for each `class/name.*`, of the same size, as for
            [`mask_scores`][robustsim.explain.mask_scores].
        output: a folder for reports, made if it is not there.
        eps: radii in linf such as `4/255`, for a figure on adversarial examples each.
        steps: of PGD.
        prompt: what is looked for, with `{}` for the class; also what the attack leads away from.
        against: what is not looked for, for the complementary attention.
        form: as for [`attention_map`][robustsim.explain.attention_map].
        seed: of the attacks and of the resampling.
        restart: forget what an earlier run has done.
        progress: show progress on standard error.

    Returns:
        The report: `results["clean"]` and each of `results["adversarial"]` hold the means `tga` and `comp_tga` with
        their 95 % intervals, for which all pictures of a class are drawn together, and the means of each class.

    Raises:
        InputError: no text tower, a prompt without one place for the class, a picture outside of the classes' folders,
            a mask of another size than its picture, an attack with a single class, options that do not fit.
        ImageError: one of the folders is none, or not a single picture has a mask.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()
    patterns, steps = check_prompts(prompt, against), whole("steps", steps)
    radii = {text.replace(" ", ""): parse_eps(text, "linf") for text in eps}
    root, one = Path(images), subject(metric)
    files = masked_files(root, masks)
    if not files:
        raise ImageError(f"the folder {os.fspath(images)!r} holds no images")
    labels = list(dict.fromkeys(map(label_of, files)))
    if radii and len(labels) < 2:
        raise InputError(f"{labels[0]!r} is the only class: an attack needs another one that a picture is taken for")
    names = [printable(file) for file in files]
    attack = {"attack": "pgd", "norm": "linf", "eps": list(radii), "steps": steps} if radii else None
    hashes = file_hashes(root, [root / file for file in files])
    covered = {f"masks_{name}": value for name, value in file_hashes(masks, [mask_of(masks, f) for f in files]).items()}
    identity = {
        "task": "attention",
        "metric": {"name": one.name, **one.about},
        "data": {
            "name": root.resolve().name,
            "root": os.path.abspath(root),
            "masks": os.path.abspath(masks),
            "description": f"{len(files)} pictures of {len(labels)} classes",
            "items": len(files),
            "items_sha256": hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest(),
            **hashes,
            **covered,
        },
        "attack": None,  # no decision is judged
        "adversarial": attack,
        "attention": {"prompt": prompt, "against": against, "form": form},
        "seed": seed,
        "versions": versions(),
        "device": device_kind(metric.device),
    }
    path = Path(output) / f"{stem(identity)}.json"
    folder = path.with_suffix(".partial")
    if restart:
        path.unlink(missing_ok=True)
        discard(folder)
    if path.exists() and path.with_suffix(".parquet").exists():
        discard(folder)
        return load_report(path)
    texts = {label: texts_of(metric, label, patterns) for label in labels}
    with Journal(folder, identity) as journal, alone(metric):
        _do(journal, metric, root, Path(masks), files, texts, radii, steps, form, seed, progress)
        content, columns = _summary(journal, files, names, list(radii), seed)
        write_report(path, {**identity, **content}, columns)
        journal.remove()
    return load_report(path)


def _do(
    journal: Journal,
    metric: RobustSim,
    root: Path,
    masks: Path,
    files: Sequence[Path],
    texts: "dict[str, list[Tensor]]",
    radii: dict[str, float],
    steps: int,
    form: AttentionForm,
    seed: int,
    progress: bool,
) -> None:
    """What is left of the pictures, each in a part without attack and one for each radius."""
    from tqdm import tqdm

    parts = [CLEAN, *radii]

    left = [place for place in range(len(files)) if not all(journal.is_settled(place, part) for part in parts)]
    classes = torch.cat([of_class for of_class, _ in texts.values()])
    order = list(texts)

    def logits(x: Tensor) -> Tensor:
        return _SCALE * metric.embed_pixels(x) @ classes.T

    for place in tqdm(left, desc=metric.card.name, unit="picture", disable=not progress):
        label = label_of(files[place])
        try:
            picture, mask = read_masked(root, masks, files[place])
            pixels = metric.preprocess([picture])
        except ImageError as error:
            for part in parts:
                journal.add(place, part, {"error": str(error)})
            continue
        for part in parts:
            if journal.is_settled(place, part):
                continue
            shown, found = pixels, {}
            if part != CLEAN:
                goal = Classification(logits, [order.index(label)])
                generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
                shown = PGD(norm="linf", eps=radii[part], steps=steps, generator=generator)(goal, pixels).images
            with torch.no_grad():
                found["right"] = float(int(logits(shown).argmax()) == order.index(label))
            scores = score_square(metric, shown, mask, texts[label], form=form)
            journal.add(place, part, {**found, **dict(zip(_SCORES, scores, strict=True))})


def _summary(
    journal: Journal, files: Sequence[Path], names: Sequence[str], radii: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The results and what was skipped for the report, and its columns."""
    errors = [journal.done[place, CLEAN].get("error") for place in range(len(files))]
    read = [place for place, error in enumerate(errors) if error is None]
    if not read:
        raise ImageError(f"not a single picture has a mask; the first: {errors[0]}")
    labels = [label_of(file) for file in files]
    columns: dict[str, list[Any]] = {
        "id": list(names),
        "group": labels,
        "cluster": labels,
        "answer": [0.0] * len(files),
        "error": errors,
    }
    groups = np.array([labels[place] for place in read])
    figures: dict[str, dict[str, Any]] = {}
    for part in (CLEAN, *radii):
        aside = "" if part == CLEAN else f" {part}"
        for name in (*_SCORES, "right"):
            columns[f"{name}{aside}"] = [journal.done[place, part].get(name) for place in range(len(files))]
        own = {name: np.array([journal.done[place, part][name] for place in read]) for name in (*_SCORES, "right")}
        figures[part] = {
            **{name: _by_class(own[name], groups, seed) for name in _SCORES},
            "accuracy": mean_interval(own["right"], clusters=groups, seed=seed).to_dict(),
        }
    results = {
        CLEAN: figures[CLEAN],
        "adversarial": [{"norm": "linf", "eps": eps, **figures[eps]} for eps in radii],
    }
    skipped = [{"id": names[place], "error": error} for place, error in enumerate(errors) if error is not None]
    written = {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return {"results": results, "skipped": skipped, "times": written}, columns


def _by_class(values: Array, labels: Array, seed: int) -> dict[str, Any]:
    """The mean of all, whose interval draws classes, and that of each class, whose interval draws pictures."""
    return {
        **mean_of_numbers(values, clusters=labels, seed=seed).to_dict(),
        "groups": {
            str(label): mean_of_numbers(values[labels == label], seed=seed).to_dict() for label in dict.fromkeys(labels)
        },
    }

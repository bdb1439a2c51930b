"""Thresholds and tables of scripts/copies.py."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, Any]
_CONFIDENCE = 0.95
_SHOWN = 3  # of the nearest pairs of each line
_BITS = 128  # squared distance 1
_VIEWS = " + views"
_TWELVE = 12  # edits; those beyond are harder


def thresholds_of(
    sets: Mapping[str, Arrays], lines: Sequence[str], rate: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """The largest distance by line within which lie no more than `rate` of all pairs of different pictures."""
    count = sum(len(known["names"]) for known in sets.values())
    pairs = count * (count - 1) // 2
    allowed = int(rate * pairs * (1 + 1e-9))
    if allowed < 1:
        raise SystemExit(f"{pairs:,} pairs say nothing about a rate of {rate:g}")
    names = [f"{name}/{file}" for name, known in sets.items() for file in known["names"]]
    told: dict[str, Any] = {"pairs": pairs, "found": {}, "nearest": {}}
    thresholds, whole, viewed = {}, set(), set()
    for line in lines:
        everything = np.concatenate([known[line] for known in sets.values()])
        near = _near(everything, everything, allowed, symmetric=True)
        # Rounded down to what distances are kept with; a step below the first pair that is too many.
        limit = np.floor(near["next"] * 1e6 - 0.5) / 1e6
        thresholds[line] = float(limit)
        found = [(i, j) for i, j, far in near["pairs"] if far <= limit]
        told["found"][line] = len(found)
        told["nearest"][line] = [(names[i], names[j], float(far)) for i, j, far in near["pairs"][:_SHOWN]]
        whole |= set(found)
        views = np.concatenate([known[f"views of {line}"] for known in sets.values()])
        offsets = np.cumsum([0, *(len(known["names"]) for known in sets.values())])
        of = np.concatenate([known["view_of"] + first for known, first in zip(sets.values(), offsets, strict=False)])
        viewed |= {(int(of[i]), j) for i, j in _within(views, everything, float(limit)) if of[i] != j}
        told.setdefault("views", {})[line] = len(views)
    # A query and a stored picture: either of a pair may be the query.
    told["union"] = len(whole)
    told["union of views"] = len(viewed | whole | {(j, i) for i, j in whole})
    return thresholds, told


def alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether thresholds are the same but for what another machine's sums may do to them."""
    return one.keys() == other.keys() and all(abs(one[line] - other[line]) < 1e-5 for line in one)


def _near(a: Any, b: Any, allowed: int, *, symmetric: bool) -> dict[str, Any]:
    """The nearest pairs, in order, all that are as near as the first that is too many."""
    squares = 1 - a @ b.T
    left, right = np.triu_indices(len(a), 1)
    values = squares[left, right]
    bound = np.partition(values, allowed)[allowed]
    taken = np.flatnonzero(values <= bound)
    taken = taken[np.argsort(values[taken], kind="stable")]
    far = np.sqrt(np.maximum(values[taken], 0))
    return {
        "next": float(np.sqrt(max(bound, 0))),
        "pairs": [(int(left[n]), int(right[n]), float(d)) for n, d in zip(taken, far, strict=True)],
    }


def _within(a: Any, b: Any, limit: float) -> list[tuple[int, int]]:
    left, right = np.nonzero(1 - a @ b.T <= limit**2)
    return list(zip(left.tolist(), right.tolist(), strict=True))


def interval(found: int, of: int) -> tuple[float, float]:
    """Of a share, by Clopper and Pearson."""
    from scipy.stats import beta

    rest = (1 - _CONFIDENCE) / 2
    low = 0.0 if found == 0 else float(beta.ppf(rest, found, of - found + 1))
    high = 1.0 if found == of else float(beta.ppf(1 - rest, found + 1, of - found))
    return low, high


def upper(found: int, of: int) -> float:
    """One-sided."""
    from scipy.stats import beta

    return 1.0 if found == of else float(beta.ppf(_CONFIDENCE, found + 1, of - found))


def page(
    done: Mapping[tuple[int, str], dict[str, Any]],
    sets: Mapping[str, Arrays],
    thresholds: Mapping[str, float],
    told: Mapping[str, Any],
    options: argparse.Namespace,
    plan: tuple[Any, ...],
    stated: Mapping[str, float] | None = None,
) -> str:
    """All tables, Markdown.

    Args:
        done: the journal.
        sets: the photographs.
        thresholds: by line, as measured on these photographs.
        told: how.
        options: of the command line.
        plan: edits, those with views, attacks, radii.
        stated: other thresholds by line, those of the models' cards.
    """
    edits, viewed, attacks, radii = plan
    kinds = [thresholds, *([stated] if stated else [])]
    parts = [_command(options), _worst(done, sets, kinds, edits, attacks, radii), _thresholds(thresholds, told, stated)]
    parts += [_edits(done, name, kinds, edits, viewed) for name in sets]
    parts += [_attacks(done, name, kinds, attacks, radii) for name in sets]
    return "\n\n".join(part for part in parts if part)


def _command(options: argparse.Namespace) -> str:
    data = " ".join(f"{one.partition('=')[0]}=DIR" for one in options.data)
    numbers = " ".join(
        f"--{name} {getattr(options, name):g}"
        for name in ("photographs", "edited", "attacked", "steps", "rate", "seed")
    )
    return f"`python scripts/copies.py --data {data} --work WORK {numbers} --docs docs/search.md`"


def _shown(line: str, limit: float) -> str:
    return f"{int(limit**2 * _BITS + 1e-6)} of {2 * _BITS} bits ({limit:.4f})" if line == "phash" else f"{limit:.4f}"


def _thresholds(thresholds: Mapping[str, float], told: Mapping[str, Any], stated: Mapping[str, float] | None) -> str:
    pairs = told["pairs"]
    rows = [
        f"| line | threshold | pairs of different pictures within it, of {pairs:,} | share | at most (95 %) "
        f"|{' threshold by the card |' if stated else ''}",
        f"|---|---:|---:|---:|---:|{'---:|' if stated else ''}",
    ]
    for line, limit in thresholds.items():
        found = told["found"][line]
        last = f" {_shown(line, stated[line])} |" if stated else ""
        share = f"{found / pairs:.1e} | {upper(found, pairs):.1e}"
        rows.append(f"| {line} | {_shown(line, limit)} | {found} | {share} |{last}")
    for words, found, of in (
        ("any of the three", told["union"], pairs),
        ("any, the query's mirrored and trimmed views too", told["union of views"], 2 * pairs),
    ):
        counted = f"{found}" if of == pairs else f"{found} of {of:,}"
        share = f"{found / of:.1e} | {upper(found, of):.1e}"
        rows.append(f"| {words} | | {counted} | {share} |{' |' if stated else ''}")
    return "\n".join(rows)


def _share(found: Any) -> str:
    return f"{100 * np.mean(found):.1f}"


def _gathered(done: Mapping[tuple[int, str], dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [done[key] for key in sorted(key for key in done if key[1] == part)]


def _found(chunks: Sequence[dict[str, Any]], words: str, thresholds: Mapping[str, float]) -> list[Any]:
    """Which photographs' copies each line finds, (N,) bool."""
    edit, views, _ = words.partition(_VIEWS)
    return _by_lines([{"distances": chunk["distances"][edit]} for chunk in chunks], thresholds, views)


def _by_lines(parts: Sequence[dict[str, Any]], thresholds: Mapping[str, float], views: str = "") -> list[Any]:
    return [
        np.concatenate([part["distances"][line + views] for part in parts]) <= limit
        for line, limit in thresholds.items()
    ]


def _edits(done: Any, name: str, kinds: Sequence[Mapping[str, float]], edits: Any, viewed: Any) -> str:
    chunks = _gathered(done, f"edits {name}")
    if not chunks:
        return ""
    count = sum(len(chunk["names"]) for chunk in chunks)
    heads = [*kinds[0], "any", *(f"{line}, card" for kind in kinds[1:] for line in (*kind, "any"))]
    rows = [
        f"**{name}**, {count:,} photographs: copies that are found, in %",
        "",
        f"| edit | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for words, kind, _ in edits:
        for suffix in ("", _VIEWS) if kind in viewed else ("",):
            cells = []
            for thresholds in kinds:
                found = _found(chunks, words + suffix, thresholds)
                cells += [_share(one) for one in (*found, np.any(found, axis=0))]
            label = words if not suffix else f"{words}; the query's views too"
            rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(found: Any) -> str:
    low, high = interval(int(found.sum()), len(found))
    return f"{int(found.sum())} ({100 * low:.0f}-{100 * high:.0f} %)"


def _kept(
    done: Any, name: str, thresholds: Mapping[str, float], attacks: Any, radii: Any
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What was found by attack and radius, of the photographs that all attacks have done; empty if there are none."""
    wanted = [("none", 0), *((aim, radius) for radius in radii for aim in attacks if aim != "none")]
    kept = {
        (aim, radius): {
            key[0]: one
            for key, one in done.items()
            if key[1] == f"{name} {aim} {radius}" and alike(one["thresholds"], thresholds)
        }
        for aim, radius in wanted
    }
    chunks = sorted(set.intersection(*(set(one) for one in kept.values())))
    return {key: [one[chunk] for chunk in chunks] for key, one in kept.items()} if chunks else {}


def _worst(
    done: Any, sets: Mapping[str, Arrays], kinds: Sequence[Mapping[str, float]], edits: Any, attacks: Any, radii: Any
) -> str:
    """What the tables say at their worst."""
    hidden, least = [], []
    for name in sets:
        kept = _kept(done, name, kinds[0], attacks, radii)
        for radius in radii if kept else ():
            fused = [np.any(_by_lines(kept[aim, own], kinds[0]), axis=0) for aim, own in kept if own == radius]
            lost = ~np.all(fused, axis=0)
            hidden.append(f"{_with_interval(lost)} of {len(lost)} of {name} at {radius}/255")
        chunks = _gathered(done, f"edits {name}")
        for words, thresholds in zip(("", ", by the cards' thresholds"), kinds, strict=False):
            if chunks:
                shares = [np.any(_found(chunks, edit, thresholds), axis=0).mean() for edit, *_ in edits[:_TWELVE]]
                worst = int(np.argmin(shares))
                least.append(f"{100 * shares[worst]:.1f} % of {name} ({edits[worst][0]}{words})")
    told = [
        ("Hidden from all three lines at once, by the best of the attacks", hidden),
        (f"Found by any of the three at the worst of the first {_TWELVE} edits", least),
    ]
    return "\n".join(f"- {words}: {'; '.join(found)}." for words, found in told if found)


def _attacks(done: Any, name: str, kinds: Sequence[Mapping[str, float]], attacks: Any, radii: Any) -> str:
    lines, kept = tuple(kinds[0]), _kept(done, name, kinds[0], attacks, radii)
    if not kept:
        return ""
    count = sum(len(part["names"]) for part in kept["none", 0])
    heads = [*lines, "any", *(f"{line}, card" for _ in kinds[1:] for line in (lines[0], "any"))]
    heads += [f"nearest by {line}" for line in lines]
    rows = [
        f"**{name}**, {count} photographs: how many are still found by their attacked copy, and of how many it is "
        "nearer to the picture than to all others",
        "",
        f"| attacked | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for radius in (0, *radii):
        fused: list[list[Any]] = []
        for aim in (one for one, own in kept if own == radius):
            parts = kept[aim, radius]
            found = [_by_lines(parts, thresholds) for thresholds in kinds]
            fused.append([np.any(one, axis=0) for one in found])
            cells = [_with_interval(one) for one in (*found[0], fused[-1][0])]
            for kind, whole in zip(found[1:], fused[-1][1:], strict=True):
                cells += [_with_interval(kind[0]), _with_interval(whole)]
            cells += [_with_interval(np.concatenate([part["first"][line] for part in parts])) for line in lines]
            label = "nothing" if aim == "none" else f"{_aim(aim)}, {radius}/255"
            rows.append(f"| {label} | {' | '.join(cells)} |")
        if radius:
            # Whoever may choose takes, for each picture, an attack that it is not found after.
            least = [_with_interval(np.all([one[place] for one in fused], axis=0)) for place in range(len(kinds))]
            cells = ["" for _ in lines] + [least[0]] + [cell for one in least[1:] for cell in ("", one)]
            rows.append(f"| the best of these, {radius}/255 | {' | '.join([*cells, *('' for _ in lines)])} |")
    return "\n".join(rows)


def _aim(aim: str) -> str:
    return "all three at once" if aim == "joint" else aim

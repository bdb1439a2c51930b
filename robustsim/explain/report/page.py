"""A page about a pair: one file with everything in it, for a browser or to send.

It has no script and loads nothing from anywhere; its own policy forbids both. Names are of strangers, and stay text.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsim.encoders.meaning import explain, without_calibration
from robustsim.encoders.weights import whole_file
from robustsim.explain.report.explanation import Explanation, Reach, Side
from robustsim.explain.report.scale import scale, unrelated_band
from robustsim.images.files import printable
from robustsim.pages import data_uri, in_bytes, named, text

if TYPE_CHECKING:
    from PIL import Image

    from robustsim.explain.drawing import Overlay

# Pixels of the longer side of a picture that is shown for its looks; those of an attack are there pixel by pixel.
_SIDE, _QUALITY = 640, 88
_SMALL = 256  # smaller ones are enlarged by a whole factor
_HARD_TO_SEE = 8 / 255
_METHODS = {
    "layers": "Where several layers of the encoder find a difference, the last one included, gets a share of the "
    "distance. Places beside a change are not 0: each has seen some of what surrounds it.",
    "features": "Features of the encoder’s last layer, place by place. They are coarse: read the map as “about here”.",
    "gradient": "Integrated gradients from B to A: what the pixels that differ add to the distance. Brown drives the "
    "pictures apart, blue brings them together. Of two unrelated photographs this is grain.",
}


def page(explanation: Explanation, *, command: str = "", date: str = "") -> str:
    """The page, as a document of HTML.

    Args:
        explanation: what it shows.
        command: that makes it again; nothing is said of one if it is empty.
        date: of the page, likewise.
    """
    one, style = explanation, _own("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    names = [text(printable(_base(side.name))) for side in (one.a, one.b)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{" and ".join(names)}: distance {one.distance:.4f}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="over">A pair of pictures, as {text(one.card.name)} sees it</p>
<h1><bdi>{names[0]}</bdi> <span>and</span> <bdi>{names[1]}</bdi></h1>
</header>
<main>
{_distance(one)}{_map(one)}{_reach(one)}{_seen(one)}{_made(one, command, date)}</main>
</body>
</html>
"""


def write_page(explanation: Explanation, path: "str | os.PathLike[str]", *, command: str = "", date: str = "") -> None:
    """Write a page about a pair: one file of HTML with everything in it; it is there as a whole, or not at all.

    Args:
        explanation: what [`explain_pair`][robustsim.explain.explain_pair] gave.
        path: of the file.
        command: that makes it again, to be told on the page.
        date: likewise.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    document = page(explanation, command=command, date=date)
    with whole_file(Path(path)) as temporary:
        temporary.write_text(document, encoding="utf-8", newline="\n")


def _distance(one: Explanation) -> str:
    band = unrelated_band(one.card.calibration)
    if one.meaning is None:
        meaning = f"<p>{text(without_calibration(one.card))}</p>"
    else:
        meaning = f'<p class="said">To this model the two are <strong>{text(one.meaning)}</strong>.</p>'
    shaded = "" if band is None else _shaded(band)
    words = "".join(f"<p>{text(line)}</p>" for line in explain(one.card, squared=False).splitlines())
    pictures = "".join(
        _figure(
            _shown(side.picture, f"Picture {letter}: {_base(side.name)}"),
            f"<b>{letter}</b> {named(printable(_base(side.name)))}",
            _facts(side),
        )
        for letter, side in (("A", one.a), ("B", one.b))
    )
    return _section(
        "distance",
        "Distance",
        f'<p class="number">{one.distance:.4f}</p>'
        f"<p>Similarity {_signed(one.similarity)}, from −1 to 1: the cosine of the two embeddings.</p>{words}",
        f'<div class="pair wells">{pictures}</div>{meaning}'
        f"{scale(one.distance, band=band)}"
        f'<p class="soft">Distances from 0 to 1.414, and this pair among them. {shaded}</p>',
    )


def _map(one: Explanation) -> str:
    pictures = "".join(
        _figure(
            _shown(
                one.map.over(_reduced(side.picture)), f"Picture {letter} in grey under the map of where they differ"
            ),
            f"<b>{letter}</b>",
        )
        for letter, side in (("A", one.a), ("B", one.b))
    )
    return _section(
        "map",
        "Where they differ",
        f"<p>Method <code>{text(one.method)}</code>; what its numbers are stands below the scale. "
        f"{_METHODS[one.method]}</p>"
        f"<p>Lightness tells {'how large a value is' if one.map.signed else 'the value'}, so that the map reads "
        "without colours too. The scale ends at the largest value of this map: compare two maps by their numbers.</p>",
        f'<div class="pair wells">{pictures}</div>{_legend(one.map)}',
    )


def _reach(one: Explanation) -> str:
    levels = f"{255 * one.eps:.4g}"
    low, high = one.nearest.distance, one.farthest.distance
    band = unrelated_band(one.card.calibration)
    width, height = one.attacked.size
    copy, what = "", "The pair"
    if one.is_copy:
        what = "The copy of A with B"
        copy = (
            f"<p>Attacked was a copy of A of {width} × {height} pixels, whose own distance to B is {one.start:.4f}.</p>"
        )
    cards = _direction(one, one.nearest, "near", "As near to B as it got") + _direction(
        one, one.farthest, "far", "As far from B as it got"
    )
    return _section(
        "reach",
        "Within reach of tampering",
        f"<p>Suppose somebody may change A, each channel of each pixel by at most {levels}/255 of its range"
        f"{', which is hard to see' if one.eps <= _HARD_TO_SEE else ''}. How low, and how high, can "
        "the distance be made?</p>"
        f"<p>An attack with the model’s own gradients (APGD, {one.steps:,} {_plural(one.steps, 'step')} for each "
        f"direction) found distances from {low:.4f} to {high:.4f}.</p>"
        "<p>That is what this attack found, and no proof: the smallest distance within reach is this one <em>or "
        "less</em>, the largest this one <em>or more</em>. More steps may find more.</p>" + copy,
        f"{scale(one.start, what=what, band=band, reach=(low, high))}"
        f'<p class="soft">The dot is {what[0].lower()}{what[1:]} as it is, the line between the marks what the '
        "attack has reached. "
        f"{'' if band is None else _shaded(band)}</p>"
        f'<div class="cards">{cards}</div>',
    )


def _direction(one: Explanation, reach: Reach, kind: str, title: str) -> str:
    if reach.changed:
        told = f"The largest change is {255 * reach.size:.4g}/255 of the range of a channel."
        change = f"The change, × {reach.factor:g}; grey is none"
    else:
        told = "No change that was tried did better than none."
        change = "No change"
    meaning = ""
    if reach.meaning is not None:
        meaning = f" Of pictures that nobody tampered with it would mean: {text(reach.meaning)}."
    name = _base(one.a.name)
    pictures = _figure(
        _exact(reach.picture, f"{name}, changed by the attack"),
        "A, changed. Saved from here it has this distance",
    ) + _figure(_exact(reach.change, f"What the attack changed in {name}, magnified"), change)
    return (
        f'<article class="{kind}"><h3>{title}</h3>'
        f'<p class="step">{one.start:.4f} <span>→</span> <b>{reach.distance:.4f}</b></p>'
        f'<p class="soft">{told}{meaning}</p><div class="pair">{pictures}</div></article>'
    )


def _seen(one: Explanation) -> str:
    size = one.card.preprocessing.size
    rows = []
    for letter, side in (("A", one.a), ("B", one.b)):
        figures = [
            _figure(
                _exact(side.square, f"Picture {letter} as the encoder got it"),
                f"<b>{letter}</b>, as the encoder got it",
            ),
            _figure(
                _shown(side.importance.over(_reduced(side.picture)), f"Picture {letter} under the map of importance"),
                "What the distance hangs on",
            ),
        ]
        if side.attention is not None:
            figures.append(
                _figure(
                    _shown(side.attention.over(_reduced(side.picture)), f"Picture {letter} under the map of the text"),
                    f"similarity to the text {_signed(side.text_similarity or 0.0)}",
                )
            )
        rows.append(
            f'<div class="seen wells n{len(figures)}">{"".join(figures)}</div><p class="soft">{_left_out(side)}</p>'
        )
    words = (
        f"<p>The encoder sees a square of {size} × {size} pixels, whatever the picture’s size; finer details than its "
        "pixels play no part.</p>"
        "<p>Importance is the slope of the distance: where, to first order, a small change of the pixels can move it "
        "most. That is where an attack works, and not what the picture shows. Of models that were not trained against "
        "tampering it tends to be grain.</p>"
    )
    legends = _legend(one.a.importance, f"A: {one.a.importance.title}") + _legend(
        one.b.importance, f"B: {one.b.importance.title}"
    )
    if one.text is not None and one.a.attention is not None:
        words += (
            f"<p>The third map says which places fit the text <q><bdi>{text(one.text)}</bdi></q> best within each "
            "picture, from 0 to 1, and not whether it fits. That is in the similarity, a cosine from −1 to 1.</p>"
        )
        legends += _legend(one.a.attention)
    return _section("seen", "What the model looked at", words, "".join(rows) + legends)


def _made(one: Explanation, command: str, date: str) -> str:
    facts = {
        "Model": text(one.card.name),
        "Weights and preprocessing, SHA-256": f"<code>{one.weights}</code>",
        "Encoder’s square": f"{one.card.preprocessing.size} × {one.card.preprocessing.size} pixels, "
        f"mode <code>{text(one.card.preprocessing.mode)}</code>",
        "Attack": f"APGD, linf, {255 * one.eps:.4g}/255, {one.steps:,} {_plural(one.steps, 'step')}, seed {one.seed}",
        "robustsim": text(one.version),
        "Made": text(date),
        "Command": f"<code>{text(printable(command))}</code>" if command else "",
    }
    told = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items() if value)
    return _section(
        "made",
        "How this was made",
        f"<p>{'On the same machine, the same command makes the same numbers and pictures. ' if command else ''}"
        "This page is one file; it has no script and loads nothing.</p>",
        f'<dl class="facts">{told}</dl>',
    )


def _section(name: str, title: str, words: str, content: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<div class="words"><h2 id="{name}-title">{title}</h2>'
        f'{words}</div>\n<div class="content">{content}</div>\n</section>\n'
    )


def _figure(picture: str, caption: str, more: str = "") -> str:
    return f'<figure><div class="well">{picture}</div><figcaption>{caption}{more}</figcaption></figure>'


def _facts(side: Side) -> str:
    width, height = side.picture.size
    size = "" if side.bytes is None else f", {in_bytes(side.bytes)}"
    digest = "" if side.sha256 is None else f'<span class="digest">SHA-256 <code>{side.sha256}</code></span>'
    return f'<span class="soft">{width:,} × {height:,} pixels{size}</span>{digest}'


def _left_out(side: Side) -> str:
    if side.share_unseen == 0:
        return f"Of {named(printable(_base(side.name)))} the whole picture was looked at."
    width, height = side.picture.size
    left, top, right, bottom = (f"{value:.1f}".removesuffix(".0") for value in side.seen)
    return (
        f"Of {named(printable(_base(side.name)))} {side.share_unseen:.0%} was not looked at, and is grey in the maps: "
        f"of {width} × {height} pixels the model saw columns {left} to {right} and rows {top} to {bottom}."
    )


def _legend(overlay: "Overlay", title: str = "") -> str:
    low = -overlay.end if overlay.signed else 0.0
    bar = data_uri(overlay.legend(256).crop((0, 0, 256, 1)), "PNG")
    middle = "<span>0</span>" if overlay.signed else ""
    return (
        f'<div class="legend"><img class="bar" src="{bar}" width="256" height="1" alt="">'
        f'<p class="ends"><span>{_signed(low, 3)}</span>{middle}<span>{overlay.end:.3g}</span></p>'
        f"<p>{text(title or overlay.title)}</p></div>"
    )


def _shaded(band: "tuple[float, float]") -> str:
    return f"Shaded: where 98 % of pairs of unrelated photographs lie, {band[0]:.2f} to {band[1]:.2f}."


def _shown(image: "Image.Image", words: str) -> str:
    """A picture for its looks: reduced, as JPEG."""
    return _img(_reduced(image), words, "JPEG", quality=_QUALITY, subsampling=0)


def _exact(image: "Image.Image", words: str) -> str:
    """Every pixel."""
    return _img(image, words, "PNG", optimize=True)


def _img(image: "Image.Image", words: str, kind: str, **options: Any) -> str:
    times = max(1, _SMALL // max(image.size))
    pixels = ' class="pixels"' if times > 1 else ""
    width, height = (times * side for side in image.size)
    source = data_uri(image, kind, **options)
    return f'<img{pixels} src="{source}" width="{width}" height="{height}" alt="{text(printable(words))}">'


def _reduced(image: "Image.Image") -> "Image.Image":
    copy = image.copy()
    copy.thumbnail((_SIDE, _SIDE))
    return copy


def _base(name: str) -> str:
    return name.replace(os.sep, "/").rstrip("/").rpartition("/")[2] or name


def _signed(value: float, digits: int = 4) -> str:
    """With a minus as wide as a plus."""
    shown = f"{value:.3g}" if digits == 3 else f"{value:.{digits}f}"
    return shown.replace("-", "−")


def _plural(count: int, what: str) -> str:
    return what if count == 1 else f"{what}s"


def _own(name: str) -> str:
    """A file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

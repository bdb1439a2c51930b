"""A page about duplicates: one file with everything in it, for a browser, and for nothing else.

It is written picture by picture, so that memory does not grow with it, and loads nothing from anywhere: its own policy
forbids that. What it shows can be read without its script, which lists the files that are not marked to be kept.
"""

import html
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from robustsim.encoders.weights import whole_file
from robustsim.errors import ImageError
from robustsim.images.files import from_printable, prefetch
from robustsim.pages import data_uri, in_bytes, named, text
from robustsim.search.duplicates.report import IDENTICAL, DuplicatesReport, Group, Like, Member

if TYPE_CHECKING:
    from PIL import Image

_SIDE, _QUALITY = 320, 70  # of a thumbnail: pixels, which are shown at half the size on most screens, and JPEG's
_MOST_LIKES = 20  # pictures outside of a group that are named; the others are counted
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

#: One picture: its thumbnail as a data URI with (width, height), or why there is none.
_Thumbnail = tuple[str, int, int] | str


def write_page(
    report: DuplicatesReport,
    path: "str | os.PathLike[str]",
    *,
    what: str = "",
    promises: Sequence[str] = (),
    progress: Callable[[int], object] = lambda groups: None,
) -> None:
    """Write the page; it is there as a whole, or not at all.

    Args:
        report: what it shows; the pictures are read for their thumbnails.
        path: of the HTML file.
        what: was looked through, for the heading.
        promises: the lines that were made to hold under attack.
        progress: called with the number of groups written since the last call.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_head(report, what, promises))
        thumbnails = prefetch(_thumbnail, (one for group in report.groups for one in group.members))
        for number, group in enumerate(report.groups, 1):
            file.write(_group_head(number, group))
            for member in group.members:
                file.write(_member(number, group, member, next(thumbnails)))
            file.write(_group_tail(report.also_like(group)))
            progress(1)
        file.write(_tail(report))


def _thumbnail(member: Member) -> _Thumbnail:
    from robustsim.images.decode import read_image

    if not member.path:
        return "It was added without a file."
    try:
        image = read_image(from_printable(member.path))
    except ImageError:
        return "The file cannot be read now."
    return _encoded(image)


def _encoded(image: "Image.Image") -> _Thumbnail:
    image.thumbnail((_SIDE, _SIDE))
    return data_uri(image, "JPEG", quality=_QUALITY, optimize=True), image.width, image.height


def _head(report: DuplicatesReport, what: str, promises: Sequence[str]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{text(line)}</th><td>{distance:.4f}</td><td>{_meaning(line, promises)}</td></tr>"
        for line, distance in report.thresholds.items()
    )
    count = len(report.groups)
    others = sum(len(group.others) for group in report.groups)
    summary = (
        f"{report.compared:,} pictures were compared{f' ({text(what)})' if what else ''}. "
        f"{_counted(count, 'group')} of pictures that are alike; {_counted(others, 'file')} beside those that are "
        f"kept, {in_bytes(report.freed)}. The {report.keep} of each group is marked to be kept, and distances are "
        "from it. Each two pictures of a group are alike by one of these lines at least, or have the same content. "
        "This page moves and deletes nothing."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Duplicates: {_counted(count, "group")}</title>
<style>
{_own("page.css")}</style>
</head>
<body>
<a class="skip" href="#groups">Skip to the groups</a>
<header>
<h1>Duplicates</h1>
<p>{summary}</p>
<table>
<caption>What counts as alike</caption>
<thead><tr><th scope=col>line</th><th scope=col>distance at most</th><th scope=col>under attack</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</header>
<div class="tools" id="tools" role="region" aria-label="What is not kept" hidden><div>
<button type="button" id="show">Show the list of the others</button>
<button type="button" id="copy">Copy it</button>
<button type="button" id="save">Save it</button>
<label><input type="checkbox" id="keys" checked> <kbd>j</kbd> and <kbd>k</kbd> go to the next group and back</label>
<p id="status" role="status"></p>
<textarea id="list" readonly hidden aria-label="Files that are not marked to be kept"></textarea>
</div></div>
<main id="groups" tabindex="-1">
"""


def _tail(report: DuplicatesReport) -> str:
    none = "" if report.groups else "<p>No two pictures are alike.</p>\n"
    return f"""{none}</main>
<footer><p>Made by robustsim dedup, of version {report.version} of the index.</p></footer>
<script>
{_own("page.js")}</script>
</body>
</html>
"""


def _group_head(number: int, group: Group) -> str:
    return f"""<section class="group" aria-labelledby="g{number}">
<h2 id="g{number}">Group {number} <small>{len(group)} pictures, {in_bytes(group.freed)} beside the kept one</small></h2>
<fieldset>
<legend class="hidden">Which of group {number} to keep</legend>
<ul class="members">
"""


def _group_tail(likes: list[Like]) -> str:
    return f"""</ul>
</fieldset>
{_also_like(likes)}</section>
"""


def _member(number: int, group: Group, member: Member, thumbnail: _Thumbnail) -> str:
    name = member.path.rpartition("/")[2] or f"picture {member.id[:12]}"
    checked = " checked" if member is group.keep else ""
    if isinstance(thumbnail, str):
        picture = text(thumbnail)
    else:
        source, width, height = thumbnail
        picture = f'<img src="{source}" width="{width}" height="{height}" loading="lazy" alt="{text(name)}">'
    facts = {
        "folder": named(member.path.rpartition("/")[0] or "/") if member.path else "",
        "found by": _found_by(member),
        "pixels": f"{member.width} × {member.height}" if member.width and member.height else "",
        "size": in_bytes(member.size) if member.size is not None else "",
        "changed": _date(member.mtime),
        "label": f"<bdi>{text(member.label)}</bdi>" if member.label else "",
    }
    told = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    return (
        f'<li class="member"><label><span class="picture">{picture}</span>'
        f'<span class="choice"><input type="radio" name="g{number}" aria-label="keep {text(name)}" '
        f'data-path="{_value(member.path)}"{checked}><span class="name"><bdi>{text(name)}</bdi></span></span></label>'
        f"<dl>{told}</dl></li>\n"
    )


def _found_by(member: Member) -> str:
    if IDENTICAL in member.found_by:
        return "identical content"
    return ", ".join(f"{text(line)} ({away:.4f})" for line, away in member.distances.items())


def _also_like(likes: list[Like]) -> str:
    if not likes:
        return ""
    items = [
        f"<li>{named(like.path or like.id)}, near {named(like.near)} ("
        f"{', '.join(f'{text(line)} {away:.4f}' for line, away in like.distances.items())})</li>"
        for like in likes[:_MOST_LIKES]
    ]
    if rest := len(likes) - len(items):
        items.append(f"<li>and {rest:,} more, which the file of <code>-o</code> names</li>")
    words = f"{_counted(len(likes), 'picture')} outside of the group, near one of it and not near all"
    return f"<details><summary>{words}</summary><ul>{''.join(items)}</ul></details>\n"


def _meaning(line: str, promises: Sequence[str]) -> str:
    return "made to hold" if line in promises else "no promise"


def _value(text: str) -> str:
    """Text in an attribute that a script reads: as it is."""
    return re.sub("[\x00-\x1f]", lambda found: f"&#{ord(found[0])};", html.escape(text))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _date(mtime: int | None) -> str:
    if mtime is None:
        return ""
    try:
        when = datetime.fromtimestamp(mtime / 1e9, tz=timezone.utc)
    except (OverflowError, ValueError, OSError):
        return ""
    return f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}">{when:%Y-%m-%d %H:%M} UTC</time>'


def _own(name: str) -> str:
    """A file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

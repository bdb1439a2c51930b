"""Look through the built pages for markup that was not rendered, and for signatures that were not wrapped.

A page tells raw markup by its text: `:meth:` before code, a `::` that should have introduced a block, a backtick, a
line of a table of another language, a reference in brackets that leads nowhere. Code may hold all of these in its own
right, such as `values[::2]`, and is only looked through for roles with their backticks.

python scripts/check_site.py site
"""

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# What text for people never holds.
_TEXT = {
    "role": re.compile(r"(?<![\w:]):[a-z]+:(?![\w/:])"),
    "literal block": re.compile(r"::"),
    "backtick": re.compile(r"`"),
    "table": re.compile(r"={4,}|-{4,}"),
    "reference": re.compile(r"\]\[[\w.]*\]"),
}
_CODE = {"role": re.compile(r":[a-z]+:`[^`\n]+`")}
_HIDDEN = frozenset({"head", "script", "style", "svg", "template"})
_CODES = frozenset({"code", "pre", "kbd", "samp"})
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_WIDTH = 80


class _Reader(HTMLParser):
    """Pieces of text for people, of code, and of signatures."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.code: list[str] = []
        self.signatures: list[str] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self._open.append((tag, "doc-signature" in (dict(attributes).get("class") or "").split()))
            if self._open[-1][1]:
                self.signatures.append("")

    def handle_endtag(self, tag: str) -> None:
        # Some elements need no end: what is still open inside ends with the one around it.
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place][0] == tag:
                del self._open[place:]
                break

    def handle_data(self, data: str) -> None:
        tags = {tag for tag, _ in self._open}
        if tags & _HIDDEN:
            return
        if any(signature for _, signature in self._open):
            self.signatures[-1] += data
        (self.code if tags & _CODES else self.text).append(data)


def raw_markup(page: str) -> list[str]:
    """What is wrong with a page of HTML, a line each."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    found = []
    for pieces, kinds in ((reader.text, _TEXT), (reader.code, _CODE)):
        for piece in pieces:
            for kind, pattern in kinds.items():
                for match in pattern.finditer(piece):
                    around = piece[max(0, match.start() - 40) : match.end() + 20]
                    found.append(f"{kind}: {' '.join(around.split())}")
    for signature in reader.signatures:
        # A name or a text alone cannot be wrapped.
        found += [
            f"signature of {len(line)} columns: {line.strip()}"
            for line in signature.splitlines()
            if len(line) > _WIDTH and " " in line.strip()
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that mkdocs built")
    site = parser.parse_args().site
    pages = sorted(site.rglob("*.html"))
    if not pages:
        print(f"{site} holds no pages")
        return 1
    found = [f"{page.relative_to(site)}: {what}" for page in pages for what in raw_markup(page.read_text())]
    print("\n".join(found) or f"{len(pages)} pages, no raw markup")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

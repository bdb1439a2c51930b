"""Put what a script has measured into a page."""

import re
from pathlib import Path


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what is between ``<!-- name -->`` and ``<!-- end of name -->``."""
    old = page.read_text()
    if f"<!-- {name} -->" not in old:
        raise SystemExit(f"{page} has no line <!-- {name} -->")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    page.write_text(re.sub(pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old, flags=re.S))

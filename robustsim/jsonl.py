"""Lines of JSON that a process may have been killed in the middle of writing."""

import json
from typing import Any


def parse_line(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry

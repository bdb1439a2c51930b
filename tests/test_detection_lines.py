"""Files of decisions that are damaged, or of somebody else."""

import json

import pytest

from robustsim.errors import DataError
from robustsim.search import apply_decisions, list_kept


@pytest.mark.parametrize(
    "wrong",
    [{"file": "a\0.png"}, {"folder": "\ud800"}, {"folder": "/x/.."},
     {"size": "1"}, {"mtime": []}, {"size": True}, {"folders": "x"},
     {"class": 1}, {"reasons": None}],
)  # fmt: skip
def test_lines_that_are_no_decisions(tmp_path, wrong):
    line = {"folder": str(tmp_path / "in"), "file": "a.png", "size": 1, "mtime": 1, "id": "x", "class": "safe",
            "flagged": False, "reasons": []}  # fmt: skip
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert list_kept(path, tmp_path / "list") == 1
    path.write_text(json.dumps({**line, **wrong}) + "\n")
    with pytest.raises(DataError, match=r"line 1 of .* is no decision"):
        apply_decisions(path, tmp_path / "to", move=False)
    with pytest.raises(DataError):
        list_kept(path, tmp_path / "other")

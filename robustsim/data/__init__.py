"""Readers of human judgements: who looks more alike, which one does not belong, who sees a difference.

Each reads one published layout, checks it row by row, and gives plain items with paths; nothing is decoded here.
Problems of single rows can be collected (`on_error`); what ends the reading, such as a missing file or column or no
row that is left, is raised in any case:

```python
triplets = read_nights("nights", split="test")
triplets = read_dataset("material-2afc/test.csv", "2afc")
```
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.data.bapps import read_bapps
    from robustsim.data.detection import DetectionSet, detection_folders, read_detection
    from robustsim.data.items import DataSet, OddOneOut, Pair, Rating, Triplet
    from robustsim.data.jnd import read_jnd
    from robustsim.data.layouts import find_layout, read_dataset
    from robustsim.data.margins import rating_triplets
    from robustsim.data.nights import read_nights
    from robustsim.data.odd_one_out import read_odd_one_out
    from robustsim.data.ratings import read_ratings
    from robustsim.data.retrieval import Query, RetrievalSet, read_retrieval
    from robustsim.data.things import read_things
    from robustsim.data.triplets import read_triplets

__all__ = [
    "DataSet",
    "DetectionSet",
    "OddOneOut",
    "Pair",
    "Query",
    "Rating",
    "RetrievalSet",
    "Triplet",
    "detection_folders",
    "find_layout",
    "rating_triplets",
    "read_bapps",
    "read_dataset",
    "read_detection",
    "read_jnd",
    "read_nights",
    "read_odd_one_out",
    "read_ratings",
    "read_retrieval",
    "read_things",
    "read_triplets",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DataSet": "items",
        "DetectionSet": "detection",
        "OddOneOut": "items",
        "Pair": "items",
        "Query": "retrieval",
        "Rating": "items",
        "RetrievalSet": "retrieval",
        "Triplet": "items",
        "detection_folders": "detection",
        "find_layout": "layouts",
        "rating_triplets": "margins",
        "read_bapps": "bapps",
        "read_dataset": "layouts",
        "read_detection": "detection",
        "read_jnd": "jnd",
        "read_nights": "nights",
        "read_odd_one_out": "odd_one_out",
        "read_ratings": "ratings",
        "read_retrieval": "retrieval",
        "read_things": "things",
        "read_triplets": "triplets",
    },
)

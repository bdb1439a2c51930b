"""An index of the pictures in a folder, embedded by Spark: `pip install "robustsim[search]" pyspark`.

python examples/index_spark.py examples photos.index
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pyspark.sql import SparkSession

from robustsim.images import find_images
from robustsim.search import Index
from robustsim.search.scale import commit_fragments, embed_batch, write_fragment


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    given = parser.parse_args(words)
    index = str(given.index.absolute())
    if not given.index.exists():
        Index.create(index)

    def embed(paths: Iterator[str]) -> Iterator[str]:
        if some := list(paths):
            rows = embed_batch({"path": some}, index=index, threads=1)
            yield from write_fragment(rows, index=index)["fragment"]

    paths = [str((given.folder / path).absolute()) for path in find_images(given.folder)]
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the workers' Python, which is this one
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        spark.sparkContext.parallelize(paths, given.parts).mapPartitions(embed).collect()
    finally:
        spark.stop()
    return commit_fragments(index).added


if __name__ == "__main__":
    print(main(), "added")

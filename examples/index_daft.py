"""An index of the pictures in a folder, embedded by Daft: `pip install "robustsim[search]" daft`.

python examples/index_daft.py examples photos.index
"""

import argparse
from pathlib import Path

import daft

from robustsim.images import find_images
from robustsim.search import Index
from robustsim.search.scale import commit_fragments, embed_batch, write_fragment


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("index", type=Path)
    given = parser.parse_args(words)
    index = str(given.index.absolute())
    if not given.index.exists():
        Index.create(index)

    @daft.func.batch(return_dtype=daft.DataType.string())
    def embed(path: daft.Series) -> list[str]:
        rows = embed_batch({"path": path.to_pylist()}, index=index, threads=1)
        fragment = write_fragment(rows, index=index)["fragment"][0]
        return [fragment] * len(path)

    paths = [str((given.folder / path).absolute()) for path in find_images(given.folder)]
    daft.from_pydict({"path": paths}).with_column("fragment", embed(daft.col("path"))).collect()
    return commit_fragments(index).added


if __name__ == "__main__":
    print(main(), "added")

"""Images in a folder, with labels where they lie as torchvision's ImageFolder has them."""

from array import array
from pathlib import Path

from PIL import Image

from robustsim.images.decode import read_image
from robustsim.images.files import find_images, picture_suffixes, printable, suffix_of
from robustsim.training.sources.base import Names, Source


class FolderSource(Source):
    """The images below a folder, at any depth, in the order of `robustsim.images.find_images`.

    Where every image lies in a subfolder of the folder, and there are two of those or more, they are the classes, in
    the order of their names. A subfolder without an image is no class.

    Args:
        root: the folder.
        name: see `Source`.
        follow_links: whether to walk folders that are linked.

    Raises:
        ImageError: there is no such folder, or it may not be read.
    """

    def __init__(self, root: Path, name: str, *, follow_links: bool = False) -> None:
        self._root, self._names = root, Names()
        classes: dict[str, int] = {}
        labels, problems = array("i"), []
        found, suffixes = find_images(root, follow_links=follow_links), picture_suffixes()
        for path in found:
            if suffix_of(path.name) not in suffixes:  # a folder that may not be listed stands for what it holds
                problems.append(f"cannot list the folder {printable(root / path)!r}")
                continue
            self._names.append(path.as_posix())
            # "" for an image in the root itself.
            labels.append(classes.setdefault(path.parts[0] if len(path.parts) > 1 else "", len(classes)))
        labelled = len(classes) > 1 and "" not in classes
        named = [printable(Path(one)) for one in classes] if labelled else None
        super().__init__(name, named, labels, problems, found.passed_over)

    def __len__(self) -> int:
        return len(self._names)

    def place(self, index: int) -> str:
        """The path of the file."""
        return printable(self._root / self._names[index])

    def _image(self, index: int) -> Image.Image:
        return read_image(self._root / self._names[index])

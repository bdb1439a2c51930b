"""Draw docs/assets/page.jpg: the first half of a page about two photographs, as Chromium shows it in light and in dark.

python scripts/page_picture.py

It needs `playwright` (extra `test`) and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from robustsim import RobustSim
from robustsim.encoders.weights import whole_file
from robustsim.explain import explain_pair, write_page

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP = 1240, 2110, 24  # pixels of the window, and what is between the two


def shown(path: Path, chromium: str) -> list[Image.Image]:
    found = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)  # type: ignore[arg-type]
            tab.goto(path.as_uri())
            found.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"), metavar="FILE")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "assets" / "page.jpg", metavar="FILE")
    options = parser.parse_args()
    metric = RobustSim.from_pretrained(device="cpu")
    names = ("chelsea.png", "coffee.png")
    found = explain_pair(metric, *(ROOT / "examples" / name for name in names), names=names)
    with TemporaryDirectory() as folder:
        write_page(found, Path(folder) / "page.html")
        pictures = shown(Path(folder) / "page.html", options.chromium)
    canvas = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), "white")
    for index, picture in enumerate(pictures):
        canvas.paste(picture, (index * (WIDTH + GAP), 0))
    canvas = canvas.resize((canvas.width // 2, canvas.height // 2), Image.Resampling.LANCZOS)
    with whole_file(options.picture) as temporary:
        canvas.save(temporary, format="JPEG", quality=82)
    print(options.picture)


if __name__ == "__main__":
    main()

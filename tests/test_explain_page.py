"""A page about a pair: what it says, what it must not do, and how a browser shows it."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.cli import output
from robustsim.encoders.meaning import explain as explain_distance
from robustsim.encoders.weights import sha256
from robustsim.errors import InputError, OutputError
from robustsim.explain import explain_pair, write_page
from robustsim.explain.report.page import page
from robustsim.explain.report.scale import scale
from robustsim.pages import text
from tests import layouts, trainings
from tests.conftest import EXAMPLES
from tests.test_explain_drawing import luminance

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
# Names as strangers give them: markup, quotes, a mark that turns what follows, a new line, and no place to break.
HOSTILE = "<script>alert(1)</script> & \"x' onerror=\u202egnp\n" + 60 * "w" + ".png"
POLICY = "default-src 'none'; img-src data:; style-src 'sha256-"


class Read(HTMLParser):
    """What stands in a page: tags with their attributes, text, and the pictures."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(document)
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len(attributes) == len(dict(attributes)), tag
        if tag not in ("meta", "img", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def picture(self, words):
        (source,) = [image["src"] for image in self.all("img") if words in image["alt"]]
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two small photographs, the first under a hostile name and too large to be attacked as it is."""
    root = tmp_path_factory.mktemp("pair")
    names = []
    for source, name, size in (
        ("chelsea.png", HOSTILE.replace("/", "\u2215"), (96, 64)),
        ("coffee.png", "b.png", (40, 60)),
    ):
        with Image.open(EXAMPLES / source) as image:
            image.convert("RGB").resize(size).save(root / name)
        names.append(str(root / name))
    return names


@pytest.fixture(scope="module")
def found(metric, pair):
    return explain_pair(metric, *pair, steps=2, max_side=64)


@pytest.fixture(scope="module")
def document(found):
    return page(found, command="robustsim explain a b", date="2026-01-02")


@pytest.fixture(scope="module")
def read(document):
    return Read(document)


def test_what_it_says(found, read, metric, pair):
    away = float(metric.distance(*pair))
    assert found.distance == pytest.approx(away, abs=1e-6)
    for words in (
        f"{away:.4f}",
        metric.calibration.describe(found.distance),
        *explain_distance(metric.card, False).splitlines(),
        f"Similarity {1 - away**2:.4f}",
        "96 × 64 pixels",
        *map(sha256, map(type(EXAMPLES), pair)),
        found.weights,
        "robustsim explain a b",
        "2026-01-02",
        found.map.title,
        "a copy of A of 64 × 43 pixels",
        f"from {found.nearest.distance:.4f} to {found.farthest.distance:.4f}",
        "no proof",
        "APGD, linf, 4/255, 2 steps, seed 0",
    ):
        assert words in read.text, words
    assert read.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in read.all("meta")
    assert all(image["alt"] or image["class"] == "bar" for image in read.all("img"))


def test_words_are_those_of_compare(run, found, pair):
    told = " ".join(run("compare", *pair)[1].split())
    assert " ".join(found.meaning.split()) in told


def test_pictures_saved_from_it_have_its_distances(found, read, metric, pair):
    assert found.nearest.distance < found.start < found.farthest.distance
    original = np.asarray(found.attacked).astype(int)
    for letter, reach in enumerate((found.nearest, found.farthest)):
        sources = [image["src"] for image in read.all("img") if "changed by the attack" in image["alt"]]
        saved = Image.open(io.BytesIO(base64.b64decode(sources[letter].partition(",")[2])))
        assert float(metric.distance(saved, pair[1])) == pytest.approx(reach.distance, abs=1e-6)
        change = np.asarray(saved).astype(int) - original
        assert 0 < abs(change).max() == round(255 * reach.size) <= 4
    for letter, path in zip("AB", pair, strict=True):
        square = np.asarray(read.picture(f"Picture {letter} as the encoder got it")).astype(np.float32) / 255
        assert abs(square - metric.preprocess(path)[0].permute(1, 2, 0).numpy()).max() < 1e-6


def test_nothing_comes_from_elsewhere(document, read):
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in read.tags}
    for _, attributes in read.tags:
        assert attributes.get("src", "data:").startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "data:"))
        assert not {name for name in attributes if name.startswith("on")} | (
            {"href", "srcset", "style"} & set(attributes)
        )
    assert not re.search(r"url\(|@import|https?://", document)
    (policy,) = [one["content"] for one in read.all("meta") if "http-equiv" in one]
    assert policy.startswith(POLICY)


def test_names_stay_text(document, read):
    assert "<script" not in document
    assert "\u202e" not in document
    assert "\\u202egnp\\n" in read.text
    assert "<script>alert(1)<" in read.text.replace("\u2215", "/")


def test_what_else_a_file_holds_stays_there(pair, tmp_path):
    """Comments, places and profiles of the file are not sent along; its name is, and its folders are not."""
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    with Image.open(pair[0]) as image:
        image.save(tmp_path / "a.jpg", comment=b"a secret", exif=exif, icc_profile=b"a secret profile")
    one = explain_pair(RobustSim(trainings.encoder()), tmp_path / "a.jpg", pair[1], map_method="gradient", steps=1)
    assert b"secret" in (tmp_path / "a.jpg").read_bytes()
    document = page(one)
    assert tmp_path.name not in document
    pictures = [base64.b64decode(image["src"].partition(",")[2]) for image in Read(document).all("img")]
    assert not [one for one in pictures if b"secret" in one or b"iCCP" in one]


def test_it_is_the_same_again_and_another_with_another_seed(pair):
    small = RobustSim(trainings.encoder())
    first, again, other = (explain_pair(small, *pair, map_method="gradient", steps=2, seed=s) for s in (0, 0, 1))
    assert page(again) == page(first)
    assert other.distance == first.distance
    assert other.nearest.distance != first.nearest.distance


def test_identical_pictures(metric, pair):
    one = explain_pair(metric, pair[1], pair[1], steps=1)
    assert (one.distance, one.meaning) == (0, "identical")
    assert (one.nearest.distance, one.nearest.changed) == (0, False)  # where it starts is the best there is
    assert one.farthest.distance > 0
    assert one.a.importance.values.abs().max() == 0
    told = Read(page(one)).text
    assert "No change that was tried did better than none." in told
    assert "Command" not in told


def test_a_model_that_crops_and_knows_texts_but_not_what_distances_mean(pair, tmp_path):
    layouts.write_open_clip(tmp_path / "vit", layouts.VIT_B_32)
    clip = RobustSim.from_pretrained(tmp_path / "vit", device="cpu", text=True)
    names = ("a" * 200, "b")
    one = explain_pair(clip, *pair, steps=1, names=names, text="a <b>cat</b>")
    read = Read(page(one))
    assert "33% was not looked at" in read.text
    assert "a <b>cat</b>" in read.text
    assert one.meaning is None
    assert "was not measured" in read.text
    assert one.b.text_similarity == pytest.approx(
        float(clip.embed(pair[1]) @ clip.embed_text("a <b>cat</b>").T), abs=1e-5
    )
    inside = np.asarray(one.a.importance.over(one.a.picture)).astype(int)
    assert (np.ptp(inside[:, :10], axis=2) == 0).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"eps": "1/512"}, "smallest change that an 8-bit"),
        ({"steps": 0}, "at least 1"),
        ({"map_method": "no"}, "none of"),
    ],
)
def test_refused(metric, pair, options, told):
    with pytest.raises(InputError, match=told):
        explain_pair(metric, *pair, **options)


def test_whole_or_not_at_all(found, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"):
        write_page(found, path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["page.html"]
    monkeypatch.undo()
    write_page(found, path)
    assert path.read_text(encoding="utf-8") == page(found)


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.01), (0.05, 0.02, 0.2), (0.7, 0.1, 1.3), (1.4142, 1.40, 1.4142)])
def test_the_scale_holds_its_labels(values):
    """No number is cut off or written over another, 358 pixels wide, at 8 pixels for a digit."""
    distance, low, high = values
    places = {}
    for at, top, anchor, words in re.findall(
        r'<text class="\w+" x="([\d.]+)%" y="(\d+)" text-anchor="(\w+)">([^<]+)<', scale(distance, reach=(low, high))
    ):
        width = 8 * len(words)
        left = 3.58 * float(at) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left >= -1
        assert left + width <= 359
        places.setdefault(top, []).append((left, left + width))
    for spans in places.values():
        assert all(a[1] <= b[0] or b[1] <= a[0] for i, a in enumerate(spans) for b in spans[i + 1 :])


# -- the command


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(output, "load_metric", lambda name, device, *, text=False: RobustSim(trainings.encoder()))


def test_the_command(run, small, pair, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    out = tmp_path / "it's.html"
    words = ("explain", *pair, "-o", out, "--steps", 1, "--max-side", 16, "--map-method", "gradient")
    code, told, _ = run(*words)
    assert code == 0
    assert str(out) in told
    read = Read(out.read_text(encoding="utf-8"))
    assert "1970-01-02" in read.text
    assert "--map-method gradient" in read.text
    code, told, _ = run(*words, "--json")
    assert code == 0
    known = json.loads(told)
    assert f"{known['distance']:.4f}" in read.text
    assert (known["map"], known["page"], known["attack"]["steps"]) == ("gradient", str(out), 1)
    assert known["attack"]["nearest"]["distance"] <= known["attack"]["start"] <= known["attack"]["farthest"]["distance"]


def test_what_the_command_refuses(run, small, pair, tmp_path):
    a, b = pair
    bad, page_of_them = tmp_path / "bad.png", tmp_path / "page.html"
    bad.write_bytes(b"no picture")
    picture = tmp_path / "picture.html"
    shutil.copy(b, picture)
    (tmp_path / "folder.html").mkdir()
    before = sorted(os.listdir(tmp_path))
    for words, code, told in (
        ((a, b, "-o", tmp_path / "page.pdf"), 2, "does not end in .html"),
        ((a, picture, "-o", picture), 2, "would be overwritten"),
        ((a, b, "-o", tmp_path / "none" / "page.html"), 1, "there is no folder"),
        ((a, b, "-o", tmp_path / "folder.html"), 1, "it is a folder"),
        ((a, bad, "-o", page_of_them), 1, "bad.png"),
        ((a, tmp_path / "missing.png", "-o", page_of_them), 1, "missing.png"),
        ((a, b, "-o", page_of_them, "--eps", "1/512"), 2, "smallest change"),
        ((a, b, "-o", page_of_them, "--text", " "), 2, "nothing in it"),
        ((a, b), 2, "--output"),
    ):
        got, _, err = run("explain", *words)
        assert got == code, err
        assert told in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    assert sorted(os.listdir(tmp_path)) == before


# -- a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip("Chromium is not installed")
    options = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


# What reaches beyond the window, pictures that are not there, and colours of text with what lies behind it.
LOOK = """() => {
  const wide = document.documentElement.clientWidth, beyond = [], texts = [];
  const solid = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
  };
  for (const node of document.body.querySelectorAll('*')) {
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) beyond.push(node.outerHTML.slice(0, 80));
    if ([...node.childNodes].some(part => part.nodeType === 3 && part.data.trim())) {
      const style = getComputedStyle(node);
      texts.push([node instanceof SVGElement ? style.fill : style.color, solid(node.parentElement), node.textContent]);
    }
  }
  return {wide, scroll: document.documentElement.scrollWidth, beyond, texts,
          lost: [...document.images].filter(one => !one.naturalWidth).length, images: document.images.length};
}"""


def rgb(colour):
    return np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser(browser, document, tmp_path, width, scheme):
    path = tmp_path / "page.html"
    path.write_text(document, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url[:200]))
    tab.goto(path.as_uri())
    seen = tab.evaluate(LOOK)
    shot = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert seen["scroll"] <= seen["wide"] == width
    assert seen["beyond"] == []
    assert (seen["lost"], seen["images"]) == (0, 15)
    assert shot.width == width
    assert (luminance(np.array(shot.getpixel((2, 2))[:3])) > 0.5) == (scheme == "light")  # the style was let through
    for ink, paper, words in seen["texts"]:
        low, high = sorted(float(luminance(rgb(colour))) for colour in (ink, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, words


# -- what a review found


def test_a_copy_is_told_from_the_picture(metric, run, tmp_path):
    """Of a large picture a copy is attacked, whose distance is another one: of a picture to itself it is not 0."""
    Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((300, 200)).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    code, out, _ = run("explain", path, path, "--max-side", 64, "--steps", 1, "-o", tmp_path / "p.html")
    written = (tmp_path / "p.html").read_text()
    assert code == 0
    assert "a copy of A of 64 x 43" in out
    assert "The dot is the copy of A with B as it is" in written
    assert 'aria-label="The copy of A with B is at' in written
    assert "The pair is at 0.0000" in written
    assert str(tmp_path) not in written


def test_it_needs_no_gradients_of_its_caller(metric):
    files = (str(EXAMPLES / "chelsea.png"), str(EXAMPLES / "coffee.png"))
    for around in (torch.no_grad, torch.inference_mode):
        with around():
            assert explain_pair(metric, *files, steps=1, max_side=32).nearest.changed


@pytest.mark.parametrize("given", ["99999999999999", "\u00b2", "soon"])
def test_a_date_that_is_none_is_told_before_the_work(run, tmp_path, monkeypatch, given):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    path = str(EXAMPLES / "chelsea.png")
    code, _, err = run("explain", path, path, "-o", tmp_path / "p.html")
    assert code != 0
    assert "SOURCE_DATE_EPOCH" in err
    assert not list(tmp_path.iterdir())


def test_bytes_that_are_no_text_and_blanks_of_no_width_are_written_out():
    assert text("a\u200bb\ufeff\udcff").encode() == b"a\\u200bb\\ufeff\\udcff"

"""Views: whatever a picture is hidden in, it is one of them; and none of them makes a readable file unreadable."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from robustsim.errors import ImageError, InputError
from robustsim.images import Preprocessing, check_views, load_views, picture_views, prefetch, read_image
from robustsim.images.inputs import load_square, split_images, stack_squares, stream_pixels
from robustsim.images.views import layers, parts
from robustsim.images.views.names import FRAMES, VIEWS

SQUASH = Preprocessing(size=32)
CPU = torch.device("cpu")


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def halved(size, colour):
    """Black, and its left half of a colour: not so plain that it is left out."""
    image = Image.new("RGB", size)
    image.paste(colour, (0, 0, size[0] // 2, size[1]))
    return image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated(images, kind, **options):
    return encoded(images[0], kind, save_all=True, append_images=images[1:], **options)


def shown(source, views="all", **options):
    held = list(picture_views(source, views, **{"least": 10_000, **options}))  # none changes when the next is made
    return {view.name: np.asarray(view.image) for view in held}


def exif(thumbnail, *, orientation=1, own=None, offset=None, length=None):
    """An EXIF block by hand: Pillow writes no thumbnails."""
    tags = [(0x0201, 4, offset), (0x0202, 4, len(thumbnail) if length is None else length)]
    tags += [] if own is None else [(0x0112, 3, own)]
    tags.sort()
    second = 8 + 2 + 12 + 4
    end = second + 2 + 12 * len(tags) + 4
    block = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, orientation) + struct.pack("<I", second)
    block += struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        block += struct.pack("<HHII", tag, kind, 1, end if value is None else value)
    return b"Exif\0\0" + block + struct.pack("<I", 0) + thumbnail


@pytest.fixture(scope="module")
def rgb(photo):
    return Image.fromarray(photo)


@pytest.fixture(scope="module")
def other():
    return noise(131, 87, seed=5)


def see_through(rgb, other):
    """One picture that is opaque, and another one below what is transparent."""
    rgba = np.dstack([np.asarray(other), np.zeros((87, 131), np.uint8)])
    rgba[:40] = np.dstack([np.asarray(rgb), np.full((87, 131), 255, np.uint8)])[:40]
    return Image.fromarray(rgba)


def files(rgb, other):
    """One of each kind, all of which have views of their own."""
    alpha = see_through(rgb, other)
    small = encoded(other.resize((64, 48)), "JPEG")
    return {
        "png": encoded(rgb, "PNG"),
        "rgba": encoded(alpha, "PNG"),
        "palette": encoded(alpha.quantize(16), "PNG"),
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey 16": encoded(Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257), "PNG"),
        "jpeg": encoded(rgb, "JPEG", exif=exif(small, orientation=6)),
        "webp": animated([alpha, other], "WEBP", lossless=True, exif=exif(small, orientation=8)),
        "gif": animated([rgb, other, ImageOps.invert(rgb)], "GIF"),
        "apng": animated([rgb, other, ImageOps.invert(rgb)], "PNG"),
        "tiff": animated([rgb, other.resize((40, 50)), rgb.convert("L")], "TIFF"),
    }


@pytest.mark.parametrize("kind", ["png", "rgba", "palette", "cmyk", "grey 16", "jpeg", "webp", "gif", "apng", "tiff"])
def test_the_first_view_is_the_picture_as_it_was(rgb, other, kind):
    data = files(rgb, other)[kind]
    for views in ("all", (), *VIEWS):
        first, *others = picture_views(data, views)
        assert first.name == ""
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(read_image(data)))
        assert bool(others) <= bool(views)
        torch.testing.assert_close(
            load_views(data, [SQUASH], views)[0].squares[0], load_square(data, SQUASH), rtol=0, atol=0
        )


# Names


def test_views_are_known_by_name():
    assert check_views("all") == check_views(["tiles", "all"]) == VIEWS
    assert check_views(("tiles", "mirror", "tiles")) == ("mirror", "tiles")
    assert check_views("trim") == ("trim",)
    assert check_views(()) == ()
    for call in (
        check_views,
        lambda name: next(picture_views(b"", name)),
        lambda name: load_views(b"", [SQUASH], name),
    ):
        with pytest.raises(InputError, match=r"'mirrored': there are mirror, trim, .*tiles, or 'all'"):
            call(["trim", "mirrored"])


def test_views_are_those_of_one_picture(rgb):
    for several in ([rgb, rgb], torch.zeros(2, 3, 8, 8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="of one picture, and 2 were passed"):
            next(picture_views(several, ()))


# Frames

MOVING = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


@pytest.mark.parametrize("kind", MOVING)
def test_each_frame_is_a_view_and_a_repeated_one_is_not(kind):
    colours = [(250, 0, 0), (0, 250, 0), (250, 0, 0), (0, 0, 250)]
    got = shown(animated([halved((30, 20), one) for one in colours], kind, **MOVING[kind]), "frames")
    assert list(got) == ["", "frame 1", "frame 3"]
    for name, colour in zip(got, [colours[0], colours[1], colours[3]], strict=True):
        assert got[name].shape == (20, 30, 3)
        np.testing.assert_array_equal(got[name], np.asarray(halved((30, 20), colour)))


def test_what_shows_nothing_is_no_view(rgb):
    """A tile of white paper is like that of any other page."""
    black, ramp = Image.new("RGB", rgb.size), Image.linear_gradient("L").resize(rgb.size).convert("RGB")
    assert list(shown(animated([rgb, black, ramp], "PNG"), "frames")) == ["", "frame 2"]
    assert list(shown(black)) == [""]  # the whole picture is looked at whatever it shows
    page = Image.new("RGB", (90, 90), "white")
    page.paste(rgb.resize((30, 30)), (0, 0))
    found = list(shown(page, "tiles", least=30))
    assert "tile 0 0" in found
    assert "tile 2 2" not in found
    clear = Image.new("RGBA", (30, 30))
    assert list(shown(encoded(clear, "PNG"), "alpha")) == [""]


def test_frames_go_by_the_rules_of_files(rgb, other):
    """Pages of other sizes and modes, alpha on white."""
    pages = [rgb, other.resize((40, 50)), ImageOps.invert(rgb).convert("CMYK"), see_through(rgb, other)]
    got = shown(animated(pages, "TIFF"), "frames")
    for name, page in zip(got, pages, strict=True):
        np.testing.assert_array_equal(got[name], np.asarray(read_image(encoded(page, "TIFF"))))


def test_a_picture_in_memory_stays_at_its_frame(rgb, other):
    with Image.open(io.BytesIO(animated([rgb, other, ImageOps.invert(rgb)], "PNG"))) as image:
        image.seek(1)
        got = shown(image, ("frames", "mirror"))
        assert list(got) == ["", "mirror"]
        np.testing.assert_array_equal(got[""], np.asarray(other))
        assert image.tell() == 1


@given(st.integers(1, 10_000), st.integers(2, 40))
def test_frames_are_sampled_evenly(count, most):
    got = layers.sampled(count, most)
    assert len(got) == min(count, most)
    assert (got[0], got[-1]) == (0, count - 1)
    gaps = np.diff(got)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize("kind", MOVING)
def test_of_many_frames_some_are_looked_at(kind):
    frames = [halved((16, 16), (number * 5, 100, 100)) for number in range(40)]
    data = animated(frames, kind, **MOVING[kind])
    got = shown(data, "frames")
    assert len(got) == FRAMES
    assert list(got)[1:] == [f"frame {number}" for number in layers.sampled(40, FRAMES)[1:]]
    assert list(shown(data, "frames", frames=2)) == ["", "frame 39"]
    with pytest.raises(InputError, match="at least 2"):
        next(picture_views(data, "frames", frames=1))


def test_frames_are_decoded_one_at_a_time(monkeypatch):
    data = animated([noise(20, 20, seed) for seed in range(10)], "PNG")
    decoded = []
    monkeypatch.setattr(layers, "decoded", lambda *args, **more: decoded.append(args) or read_image(data))
    views = picture_views(data, ("frames", "mirror"))
    next(views)
    assert len(decoded) == 1
    next(views)
    assert len(decoded) == 1


# Alpha


def test_what_lies_below_transparency_is_a_view(rgb, other):
    image = see_through(rgb, other)
    for source in (image, encoded(image, "PNG"), np.asarray(image)):
        got = shown(source, "alpha")
        assert list(got) == ["", "black", "opaque"]
        assert (got[""][40:] == 255).all()
        assert (got["black"][40:] == 0).all()
        np.testing.assert_array_equal(got["opaque"][40:], np.asarray(other)[40:])
        np.testing.assert_array_equal(got["black"][:40], np.asarray(rgb)[:40])


def test_what_shows_on_black_alone_is_a_view(rgb):
    """White of which alpha alone is the picture: on white there is nothing to be seen."""
    grey = np.asarray(rgb.convert("L"))
    hidden = Image.fromarray(np.dstack([np.full_like(grey, 255)] * 3 + [grey]))
    for mode in ("RGBA", "LA", "La", "RGBa"):
        image = hidden.convert("LA").convert("La") if mode == "La" else hidden.convert(mode)
        got = shown(image, "alpha")
        assert (got[""] == 255).all()
        assert abs(got["black"] - grey[..., None].astype(int)).max() <= 1


def test_transparent_colours_and_palettes_have_views_too(rgb, other):
    sixteen = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    sixteen[:40] = 300
    paletted = see_through(rgb, other).quantize(16)
    keyed = np.array(rgb)
    keyed[:40] = 10, 20, 30
    for data, below in (
        (encoded(Image.fromarray(sixteen), "PNG", transparency=300), (1, 1, 1)),
        (encoded(Image.fromarray(keyed), "PNG", transparency=(10, 20, 30)), (10, 20, 30)),
        (encoded(paletted, "PNG"), None),
    ):
        got = shown(data, "alpha")
        assert list(got) == ["", "black", "opaque"]
        clear = (got[""] == 255).all(-1) & (got["black"] == 0).all(-1)
        assert clear.mean() > 0.4
        assert below is None or (got["opaque"][:40] == below).all()
        np.testing.assert_array_equal(got["opaque"][~clear], got[""][~clear])


def test_a_transparent_colour_of_16_bits_is_that_of_every_frame():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    key = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    rows = [
        zlib.compress((b"\0" + struct.pack(">3H", *one) * 8 + key * 8) * 16) for one in ((65535, 0, 0), (0, 65535, 0))
    ]
    place = struct.pack(">IIIIHHBB", 16, 16, 0, 0, 1, 10, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"tRNS", key)
    data += chunk(b"fcTL", struct.pack(">I", 0) + place) + chunk(b"IDAT", rows[0])
    data += chunk(b"fcTL", struct.pack(">I", 1) + place) + chunk(b"fdAT", struct.pack(">I", 2) + rows[1])
    got = shown(data + chunk(b"IEND", b""), "frames")
    assert got["frame 1"][0, 0].tolist() == [0, 255, 0]
    assert got["frame 1"][0, 15].tolist() == [255, 255, 255]


def test_opaque_pictures_have_no_views_of_alpha(rgb):
    for image in (rgb, rgb.convert("RGBA"), rgb.convert("L"), rgb.convert("LA"), rgb.quantize(16)):
        assert list(shown(image, "alpha")) == [""]
        assert list(shown(encoded(image, "PNG"), "alpha")) == [""]


# The thumbnail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_thumbnail_is_a_view(rgb, other, kind):
    small = encoded(other.resize((64, 48)), "JPEG", quality=95)
    data = encoded(rgb, kind, exif=exif(small))
    got = shown(data, "thumbnail")
    assert list(got) == ["", "thumbnail"]
    np.testing.assert_array_equal(got["thumbnail"], np.asarray(read_image(small)))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(shown(image, "thumbnail")["thumbnail"], got["thumbnail"])


@pytest.mark.parametrize(
    ("whole", "own", "inner", "turned"), [(6, None, None, 6), (6, 1, None, 1), (1, 3, None, 3), (6, 3, 8, 8)]
)
def test_a_thumbnail_is_turned_as_it_says_and_else_as_the_picture(rgb, other, whole, own, inner, turned):
    """By the EXIF data in itself, by its own tag, by the picture's."""
    plain = other.resize((64, 48))
    inside = {} if inner is None else {"exif": exif(b"", orientation=inner)}
    data = encoded(rgb, "JPEG", exif=exif(encoded(plain, "JPEG", **inside), orientation=whole, own=own))
    expected = read_image(encoded(plain, "JPEG", exif=exif(b"", orientation=turned)))
    np.testing.assert_array_equal(shown(data, "thumbnail")["thumbnail"], np.asarray(expected))


@pytest.mark.parametrize(
    "places", [{"offset": 60_000}, {"offset": 2**32 - 1}, {"length": 0}, {"length": 200}, {"offset": 0}]
)
def test_a_damaged_thumbnail_is_none(rgb, other, places):
    small = encoded(other.resize((64, 48)), "JPEG")
    assert list(shown(encoded(rgb, "JPEG", exif=exif(small, **places)), "thumbnail")) == [""]
    assert list(shown(encoded(rgb, "JPEG", exif=exif(b"no picture")), "thumbnail")) == [""]
    assert list(shown(encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0"), "thumbnail")) == [""]


# Damage, and bombs


@pytest.mark.parametrize("kind", ["jpeg", "webp", "gif", "apng", "tiff", "rgba"])
def test_views_of_damaged_files_fail_only_where_the_file_does(rgb, other, kind):
    data, rng = files(rgb, other)[kind], np.random.default_rng(0)
    for round_ in range(60):
        spoilt = bytearray(data)
        if round_ % 2:
            del spoilt[rng.integers(1, len(data)) :]
        for at in rng.integers(0, len(spoilt), 4):
            spoilt[at] ^= 1 << int(rng.integers(8))
        try:
            whole = read_image(bytes(spoilt))
        except ImageError:
            with pytest.raises(ImageError):
                list(picture_views(bytes(spoilt), "all"))
            continue
        told = ""
        try:
            list(picture_views(bytes(spoilt), "all"))
        except ImageError as error:
            told = str(error)
        assert not told or "bomb" in told or "too long" in told
        np.testing.assert_array_equal(np.asarray(next(picture_views(bytes(spoilt), "all")).image), np.asarray(whole))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_frames_before_the_damage_are_views(kind):
    data = animated([noise(64, 64, seed) for seed in range(6)], kind, **MOVING[kind])
    whole = shown(data, "frames")
    got = shown(data[: int(len(data) * 0.7)], "frames") if kind != "WEBP" else whole  # WebP's length is in its head
    assert {"", "frame 1", "frame 2"} <= set(got) < set(whole) | {"all"}
    for name in ("", "frame 1", "frame 2"):
        np.testing.assert_array_equal(got[name], whole[name])


def test_bombs_in_a_later_frame_or_a_thumbnail_are_refused(rgb, monkeypatch, tmp_path):
    page, second, small = tmp_path / "pages.tif", tmp_path / "second.mpo", tmp_path / "small.jpg"
    page.write_bytes(animated([rgb, noise(300, 300)], "TIFF"))
    second.write_bytes(animated([rgb, noise(300, 300)], "MPO"))
    small.write_bytes(encoded(rgb, "JPEG", exif=exif(encoded(noise(300, 300), "JPEG"))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    for path, views in ((page, "frames"), (second, "frames"), (small, "thumbnail")):
        assert "" in shown(path, [one for one in VIEWS if one != views])
        with pytest.raises(ImageError, match=rf"{path.name}.*exceeds limit"):
            shown(path, views)


def test_animations_that_take_too_long_are_refused(monkeypatch):
    data = animated([noise(64, 64, seed) for seed in range(6)], "PNG")
    monkeypatch.setattr(layers, "_MOST_PIXELS", 5 * 64 * 64)
    assert list(shown(data, "trim")) == [""]
    with pytest.raises(ImageError, match="6 frames of 64 x 64 pixels take too long"):
        shown(data, "frames")


# Borders

COLOUR = st.tuples(*[st.integers(0, 255)] * 3)
WIDTH = st.integers(0, 40)


@settings(max_examples=30)
@given(
    st.integers(16, 60), st.integers(16, 60), st.lists(st.tuples(WIDTH, WIDTH, COLOUR, COLOUR), min_size=1, max_size=3)
)
def test_trimming_gives_back_what_the_border_is_around(width, height, bars):
    """Bars left and right, or above and below, by turns: each of a width and a colour of its own."""
    inner = noise(width, height)
    whole = inner
    for number, (before, after, one, two) in enumerate(bars):
        before, after = (before, after) if number < 2 else (before // 8, after // 8)
        w, h = whole.size
        size, place, second = (
            ((w, h + before + after), (0, before), (0, before + h))
            if number % 2
            else ((w + before + after, h), (before, 0), (before + w, 0))
        )
        wider = Image.new("RGB", size, one)
        wider.paste(two, (*second, *size))
        wider.paste(whole, place)
        whole = wider
    box = parts.trimmed(whole)
    if whole.size == inner.size:
        assert box is None
    else:
        assert whole.crop(box).tobytes() == inner.tobytes()


def test_a_border_is_trimmed_for_all_its_noise(rgb):
    framed = ImageOps.expand(rgb, 32, (30, 60, 200))
    attacked = np.asarray(framed) + np.random.default_rng(0).choice([-8, 8], (151, 195, 3))
    for source in (
        encoded(framed, "JPEG", quality=75),
        encoded(framed, "WEBP", quality=75),
        Image.fromarray(attacked.clip(0, 255).astype(np.uint8)),
    ):
        got = shown(source, "trim")["trim"]
        assert all(0 <= have - want <= 8 for have, want in zip(got.shape, (87, 131), strict=False))


def test_a_few_odd_pixels_keep_no_border(rgb):
    framed = ImageOps.expand(rgb, 12, "white")
    for place in ((3, 3), (50, 0), (154, 60), (100, 110)):
        framed.putpixel(place, (0, 0, 0))
    np.testing.assert_array_equal(shown(framed, "trim")["trim"], np.asarray(rgb))


@pytest.mark.parametrize(
    "image",
    [
        noise(40, 40),
        Image.new("RGB", (40, 40), "red"),
        ImageOps.expand(noise(15, 40), 20, "white"),
        ImageOps.expand(noise(20, 20), 200, "white"),
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (300, 1)),
    ],
    ids=["none", "nothing else", "too little left", "nearly all", "one pixel", "one line"],
)
def test_where_there_is_no_border_nothing_is_trimmed(image):
    assert list(shown(image, "trim")) == [""]


# Mirror images, tiles, and how they are combined


def test_mirroring_twice_gives_the_picture_and_symmetric_ones_have_no_mirror(rgb):
    once = shown(rgb, "mirror")
    assert list(once) == ["", "mirror"]
    np.testing.assert_array_equal(once["mirror"], np.asarray(rgb)[:, ::-1])
    np.testing.assert_array_equal(shown(once["mirror"].copy(), "mirror")["mirror"], np.asarray(rgb))
    even = np.concatenate([np.asarray(rgb), np.asarray(rgb)[:, ::-1]], 1)
    assert list(shown(even, "mirror")) == [""]


def test_the_pictures_of_a_collage_are_tiles(rgb):
    pictures = [noise(50, 40, seed) for seed in range(4)]
    collage = Image.new("RGB", (100, 80))
    for number, picture in enumerate(pictures):
        collage.paste(picture, (number % 2 * 50, number // 2 * 40))
    got = shown(collage, "tiles", least=40)
    assert len(got) == 14
    for number, picture in enumerate(pictures):
        tile = got[f"tile {number // 2 * 2} {number % 2 * 2}"]
        np.testing.assert_array_equal(tile, np.asarray(picture))
    np.testing.assert_array_equal(got["tile 1 1"], np.asarray(collage)[20:60, 25:75])
    np.testing.assert_array_equal(got["left"], np.asarray(collage)[:, :50])
    np.testing.assert_array_equal(got["bottom"], np.asarray(collage)[40:])
    assert list(shown(collage, "tiles", least=41)) == ["", "left", "right"]
    assert list(shown(collage, "tiles", least=81)) == [""]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100))
def test_tiles_lie_in_the_picture_and_cover_it(width, height, least):
    got = dict(parts.tiles((7, 9, 7 + width, 9 + height), least))
    for left, top, right, bottom in got.values():
        assert min(right - left, bottom - top) >= least
        assert 7 <= left < right <= 7 + width
        assert 9 <= top < bottom <= 9 + height
    corners = [got.get(f"tile {y} {x}") for y in (0, 2) for x in (0, 2)]
    if min(width, height) >= 2 * least:
        assert len(got) == 13
        covered = np.zeros((height, width), bool)
        for left, top, right, bottom in corners:
            covered[top - 9 : bottom - 9, left - 7 : right - 7] = True
        assert covered.all()


def test_views_are_combined_in_one_order(rgb, other):
    framed = [ImageOps.expand(one, 20, "black") for one in (rgb, other)]
    got = shown(animated(framed, "PNG"), "all", least=40)
    names = list(got)
    assert names[:4] == ["", "mirror", "trim", "trim mirror"]
    assert {"trim tile 2 2 mirror", "trim left", "frame 1 trim mirror"} <= set(names)
    assert not any("tile" in name and ("frame" in name or "trim" not in name) for name in names)
    np.testing.assert_array_equal(got["frame 1 trim mirror"], np.asarray(other)[:, ::-1])
    np.testing.assert_array_equal(got["trim tile 0 0"], np.asarray(rgb)[:44, :66])


# For encoders


def test_squares_are_those_of_a_file_that_shows_the_view(rgb, other):
    """Of each model its own; the file is decoded once."""
    plans = [SQUASH, Preprocessing(size=24, mode="shortest"), Preprocessing(size=32)]
    data = animated([ImageOps.expand(rgb, 20, "black"), other], "PNG")
    loaded = load_views(data, plans, "all", hashed=True)
    views = list(picture_views(data, "all", least=32))
    assert [one.name for one in loaded] == [view.name for view in views]
    assert len({one.name for one in loaded}) == len(loaded) > 20
    for one, view in zip(loaded, views, strict=True):
        assert (one.width, one.height) == view.image.size
        for plan, square in zip(plans, one.squares, strict=True):
            assert torch.equal(square, load_square(encoded(view.image, "PNG"), plan))
        assert one.squares[0] is one.squares[2]


def test_a_file_is_decoded_once(rgb, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    rgb.save(path)
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **more: opened.append(args) or original(*args, **more))
    load_views(path, [SQUASH, Preprocessing(size=16)], "all", hashed=True)
    assert len(opened) == 1


def test_sizes_and_hashes_are_of_the_picture_upright(rgb):
    turned = encoded(rgb, "JPEG", exif=exif(b"", orientation=6))
    upright = encoded(read_image(turned), "PNG")
    one, two = (
        load_views(data, [Preprocessing(size=24, mode="shortest")], hashed=True)[0] for data in (turned, upright)
    )
    assert (one.width, one.height) == (two.width, two.height) == (87, 131)
    assert one.hash == two.hash
    assert one.hash is not None
    assert load_views(turned, [SQUASH])[0].hash is None


def test_a_tensor_keeps_its_precision(rgb):
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1) / 255 + 0.001
    pixels.clamp_(0, 1)
    framed = torch.nn.functional.pad(pixels, (9, 9, 9, 9))
    loaded = {one.name: one for one in load_views(framed, [SQUASH], ("mirror", "trim"))}
    assert list(loaded) == ["", "mirror", "trim", "trim mirror"]
    for name, tensor in {"": framed, "trim": pixels, "trim mirror": pixels.flip(-1)}.items():
        expected = next(stream_pixels(split_images(tensor), SQUASH, device=CPU))
        assert torch.equal(stack_squares([loaded[name].squares[0]], CPU), expected)
    ranged = load_views(framed * 2 - 1, [SQUASH], input_range=(-1, 1))[0]
    torch.testing.assert_close(ranged.squares[0], loaded[""].squares[0], rtol=0, atol=1e-6)
    mixed = stack_squares([loaded[""].squares[0], load_square(rgb, SQUASH)], CPU)
    assert torch.equal(mixed[1:], stack_squares([load_square(rgb, SQUASH)], CPU))


def test_views_too_elongated_for_a_model_are_left_out(rgb, tmp_path, monkeypatch):
    monkeypatch.setattr("robustsim.images.preprocessing._MOST_PIXELS", 40_000)
    plan = Preprocessing(size=32, mode="shortest")
    wide = Image.new("RGB", (400, 400), "white")
    wide.paste(noise(400, 30), (0, 200))
    assert [one.name for one in load_views(wide, [plan], "trim")] == ["", "trim"]
    monkeypatch.setattr("robustsim.images.preprocessing._MOST_PIXELS", 10_000)
    assert [one.name for one in load_views(wide, [plan], "trim")] == [""]
    path = tmp_path / "line.png"
    noise(800, 16).save(path)
    with pytest.raises(ImageError, match=r"line\.png.*too elongated"):
        load_views(path, [plan], "trim")


def test_threads_load_what_one_does(rgb, other, tmp_path):
    paths = []
    for number, data in enumerate(files(rgb, other).values()):
        paths.append(tmp_path / f"{number}.any")
        paths[-1].write_bytes(data)

    def load(path):
        return load_views(path, [SQUASH], "all", hashed=True)

    for path, loaded in zip(paths * 3, prefetch(load, paths * 3, workers=4), strict=True):
        for one, two in zip(loaded, load(path), strict=True):
            assert (one.name, one.hash) == (two.name, two.hash)
            assert torch.equal(one.squares[0], two.squares[0])

"""How far a picture is from what it is hidden in, and from the nearest view of that.

python scripts/views.py
"""

import io
from pathlib import Path

from PIL import Image, ImageOps

from robustsim import RobustSim
from robustsim.images import picture_views, read_image

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mirrored(photo, others):
    return ImageOps.mirror(photo)


def framed(photo, others):
    return encoded(ImageOps.expand(photo, 38, "black"), "JPEG", quality=80)


def framed_and_mirrored(photo, others):
    return ImageOps.mirror(ImageOps.expand(photo, 38, "black"))


def last_of_three(photo, others):
    return encoded(others[0], "WEBP", save_all=True, append_images=[others[1], photo], quality=80)


def below_transparency(photo, others):
    photo = photo.copy()
    photo.putalpha(0)
    return encoded(photo, "PNG")


def collage(photo, others):
    whole = Image.new("RGB", (960, 960))
    for number, one in enumerate([photo, *others]):
        whole.paste(one, (number % 2 * 480, number // 2 * 480))
    return whole


def patch(photo, others):  # half as wide and high as what it lies in, and on no tile
    whole = others[0].resize((960, 960))
    whole.paste(photo, (130, 380))
    return whole


WAYS = (mirrored, framed, framed_and_mirrored, last_of_three, below_transparency, collage, patch)


def main():
    metric = RobustSim.from_pretrained(device="cpu")
    photos = [read_image(EXAMPLES / name).resize((480, 480)) for name in NAMES]
    for hide in WAYS:
        whole, best = [], []
        for photo in photos:
            others = [one for one in photos if one is not photo]
            found = [metric.distance(view.image, photo).item() for view in picture_views(hide(photo, others), "all")]
            whole.append(found[0])
            best.append(min(found))
        spans = f"{min(whole):.2f} to {max(whole):.2f}, {len(found)} views: {min(best):.2f} to {max(best):.2f}"
        print(f"{hide.__name__:20} {spans}")


if __name__ == "__main__":
    main()

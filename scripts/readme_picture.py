"""Draw docs/assets/overview.png: a photograph, things that happened to it, and the distances of the bundled model.

python scripts/readme_picture.py
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from robustsim import RobustSim

ROOT = Path(__file__).parents[1]
SIDE, HEIGHT, GAP, TEXT = 200, 153, 12, 46


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def main() -> None:
    with Image.open(ROOT / "examples" / "chelsea.png") as image:
        cat = image.convert("RGB")
    with Image.open(ROOT / "examples" / "coffee.png") as image:
        coffee = image.convert("RGB")
    shown = [
        ("reference", cat),
        ("the same", cat),
        ("JPEG, quality 20", jpeg(cat, 20)),
        ("cropped", cat.crop((60, 10, 400, 270))),
        ("noise", noisy(cat, 30)),
        ("blurred", cat.filter(ImageFilter.GaussianBlur(4))),
        ("another picture", coffee),
    ]
    metric = RobustSim.from_pretrained(device="cpu")
    distances = metric.distance(cat, [image for _, image in shown[1:]]).tolist()
    lines = ["", *(f"{value:.2f}" for value in distances)]
    canvas = Image.new("RGB", (len(shown) * (SIDE + GAP) + GAP, HEIGHT + TEXT + 2 * GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    for index, ((name, image), distance) in enumerate(zip(shown, lines, strict=True)):
        left = GAP + index * (SIDE + GAP)
        scale = min(SIDE / image.width, HEIGHT / image.height)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        canvas.paste(small, (left + (SIDE - small.width) // 2, GAP + (HEIGHT - small.height) // 2))
        for row, text in enumerate((name, distance)):
            draw.text((left + SIDE / 2, GAP + HEIGHT + 4 + row * 21), text, fill="black", font=font, anchor="ma")
    target = ROOT / "docs" / "assets" / "overview.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(target, optimize=True)
    print(target, *(f"{name}: {text}" for (name, _), text in zip(shown, lines, strict=True)), sep="\n")


if __name__ == "__main__":
    main()

"""Picture files for tests; made of arrays whose values are known."""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def pattern(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: NDArray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return a picture file of the pixels."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def write_pictures(folder: Path, names: list[str], side: int = 8) -> dict[str, bytes]:
    """Write a PNG of its own colours for each name, and return them."""
    written = {}
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written[name] = encoded(pattern(side, side, seed))
        path.write_bytes(written[name])
    return written


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar archive of files, in order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def drawing(face: str = "gold", *, smile: bool = True, side: int = 128) -> Image.Image:
    """Return a figure on a hill; its small face has a colour, and smiles or does not."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)

    def box(*corners: float) -> tuple[float, ...]:
        return tuple(side * corner for corner in corners)

    draw.ellipse(box(-0.2, 0.7, 1.2, 1.6), fill="seagreen")
    draw.rectangle(box(0.4, 0.42, 0.6, 0.8), fill="navy")
    draw.ellipse(box(0.38, 0.2, 0.62, 0.44), fill=face)
    mouth = box(0.42, 0.26, 0.58, 0.4)
    draw.chord(mouth, *((0, 180) if smile else (180, 360)), fill="black")
    return picture

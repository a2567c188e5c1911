"""How many pictures that were saved again are found, and how many others are taken for copies.

100 pictures of each of two data sets are saved again in some ways, and compared with all as they
came: by the colours of fields, as candidates are, and by the whitened cosine of the image demo's
embeddings. ``python -m bench.repeated_pictures`` prints a table; it takes some minutes.
"""

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

from albat_core.backbones import open_backbone
from albat_core.measures.copies import first_pictures
from albat_core.pictures import picture_colours, prepare_picture
from albat_core.records.examples import Example
from albat_core.search.space import EmbeddingSpace
from albat_core.stages.embed import embed_examples
from flows.config import load_config

DEMO = "examples/image/demo.yaml"
SETS = ("examples/image/data/corpus/glyphs.parquet", "examples/subject/data/others.parquet")
MOST = 3000  # pictures of a data set, in even steps
COPIES = 100
DIFFERENCES, COSINES = (0.03, 0.04, 0.05, 0.06), (0.90, 0.95, 0.98)


def saved(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return a picture's file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def smaller(picture: Image.Image) -> bytes:
    """Return it at 90% and back."""
    sides = (round(0.9 * picture.width), round(0.9 * picture.height))
    return saved(picture.resize(sides).resize(picture.size))


def brighter(picture: Image.Image) -> bytes:
    """Return it 3% brighter."""
    return saved(picture.point(lambda value: min(round(1.03 * value), 255)))


WAYS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "JPEG 85": lambda picture: saved(picture, "JPEG", quality=85),
    "90% and back": smaller,
    "PNG": lambda picture: saved(picture, compress_level=1),
    "3% brighter": brighter,
}


def left_out(near: NDArray[np.bool_]) -> int:
    """Return how many are near one that stays, (n, n) compared."""
    kept = np.zeros(len(near), np.bool_)
    for place, row in enumerate(near):
        kept[place] = not (row & kept).any()
    return len(near) - int(kept.sum())


def measure(path: str) -> None:
    """Print the figures of a data set."""
    config = load_config(DEMO)
    picture = config.backbone.diffusion.picture
    files = pq.read_table(path, columns=["image"])["image"].to_pylist()
    files = files[:: -(-len(files) // MOST)]
    count = len(files)
    drawn = np.random.default_rng(0).permutation(count)[:COPIES]
    opened = [Image.open(io.BytesIO(files[place])).convert("RGB") for place in drawn]
    files += [way(each) for way in WAYS.values() for each in opened]
    rows = [
        Example(f"{n}", f"{n}", "s", "a picture", image=png, frame=frame)
        for n, (png, frame) in enumerate(prepare_picture(file, picture, path) for file in files)
    ]
    colours = np.stack([picture_colours(row.image or b"") for row in rows])
    with open_backbone(config.backbone, config.runtime) as backbone:
        vectors = embed_examples(backbone, backbone.encode(rows), 8192, "embed")
    space = EmbeddingSpace.fit(iter([vectors[:count]]), config.index.shrinkage)
    unit = space.project(vectors)
    again = [slice(count + n * COPIES, count + (n + 1) * COPIES) for n in range(len(WAYS))]
    print(f"{Path(path).name}: {count} pictures, {COPIES} saved again")
    print(f"{'':18}" + "".join(f"{way:>14}" for way in WAYS) + f"{'others joined':>15}")
    table: list[tuple[str, list[int], int]] = []
    for most in DIFFERENCES:
        wide = colours.astype(np.float64) / 255
        found = [(np.abs(wide[part] - wide[drawn]).max(axis=1) <= most).sum() for part in again]
        first = first_pictures(colours[:count], most)
        others = int((first != np.arange(count)).sum())
        assert others == left_out(cdist(wide[:count], wide[:count], "chebyshev") <= most + 1e-9)
        table.append((f"difference {most}", found, others))
    for least in COSINES:
        found = [((unit[part] * unit[drawn]).sum(axis=1) >= least).sum() for part in again]
        table.append(
            (f"cosine {least}", found, left_out(unit[:count] @ unit[:count].T >= least - 1e-5))
        )
    for name, found, others in table:
        print(f"{name:18}" + "".join(f"{n:14}" for n in found) + f"{others:15}")
    sys.stdout.flush()


if __name__ == "__main__":
    for each in SETS[::-1]:
        measure(each)

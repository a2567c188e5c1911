"""Write the subject example's photographs: the DreamBooth dataset's, made small.

Usage: python examples/subject/prepare.py PHOTOS
"""

import argparse
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from PIL import Image

SIDE = 128
SUBJECT = "dog6"
HERE = Path(__file__).parent


def small(content: bytes) -> bytes:
    """Return a photograph as JPEG of ``SIDE`` pixels a side."""
    with Image.open(io.BytesIO(content)) as photo:
        resized = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=85)
    return file.getvalue()


def main() -> None:
    """Write one file for the subject and one for all others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="Parquet: id, subject, class_name, image")
    table = pq.read_table(parser.parse_args().photos)
    images = pa.array([small(image) for image in table["image"].to_pylist()], pa.binary())
    table = table.set_column(table.column_names.index("image"), "image", images)
    chosen = pa.compute.equal(table["subject"], SUBJECT)
    for name, rows in (("subject", chosen), ("others", pa.compute.invert(chosen))):
        pq.write_table(table.filter(rows), HERE / "data" / f"{name}.parquet", compression="none")


if __name__ == "__main__":
    main()

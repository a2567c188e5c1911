"""Write the demo's drawings: the pretraining corpus and three parts of another artist's set.

Both source files have the columns id, caption, category, keywords and image (PNG bytes), where id
is a code point sequence. Every written file follows from them alone: drawings are chosen by a hash
of their id, and rows keep the order of the source.
"""

import argparse
import hashlib
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HELD_OUT = 200
# Other salts draw other twenty drawings; this one's have few near-copies among them.
SALT = b"d"
# Letters, tones and flags say little about how an artist draws.
LEFT_TO_THE_REST = {"flags", "regional", "modifier"}
# The kinds of adaptation drawings: how many, their category, and what caption or keywords say. Each
# category has about its share of the artist's plain drawings.
KINDS = (
    (2, "people", r"\bface\b"),
    (2, "people", r"\b(hand|hands|thumbs|fist|index)\b"),
    (2, "nature", r"\banimal\b"),
    (2, "nature", r""),
    (3, "symbols", r""),
    (4, "objects", r""),
    (2, "travel", r""),
    (2, "food", r""),
    (1, "activity", r""),
)


def document_of(row_id):
    """The base drawing of an id: its first code point, or all of a flag's letters."""
    if row_id.startswith("1f1"):
        return row_id
    return row_id.split("-")[0]


def rank_of(row_id):
    """A number that orders drawings as if at random, the same on every machine."""
    return hashlib.blake2b(row_id.encode(), digest_size=8, salt=SALT).digest()


def smaller(png):
    """The same pixels in the smallest PNG of a few ways to write it."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    versions = [image]
    if (colours := image.getcolors(256)) is not None:
        palette = image.quantize(len(colours), dither=Image.Dither.NONE)
        if palette.convert("RGB").tobytes() == image.tobytes():
            versions.append(palette)
    written = [png]
    for version in versions:
        buffer = io.BytesIO()
        version.save(buffer, "PNG", optimize=True)
        written.append(buffer.getvalue())
    return min(written, key=len)


def read(path):
    """The rows of a source file, with their documents."""
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["document"] = document_of(row["id"])
        row["image"] = smaller(row["image"])
    return rows


def choose_adaptation(rows):
    """Twenty plain drawings of the kinds above, by the rank of their ids."""
    chosen = set()
    for count, category, pattern in KINDS:
        fitting = [
            row["id"]
            for row in rows
            # A plain drawing is the base itself, without tone, gender or company.
            if row["id"] == row["document"]
            and row["id"] not in chosen
            and row["category"] == category
            and re.search(pattern, " ".join([row["caption"], *row["keywords"]]))
        ]
        chosen.update(sorted(fitting, key=rank_of)[:count])
    return chosen


def choose_held_out(rows, adaptation):
    """Drawings that have no variants, none of them a variant of an adaptation drawing."""
    documents = [row["document"] for row in rows]
    taken = {row["document"] for row in rows if row["id"] in adaptation}
    fitting = [
        row["id"]
        for row in rows
        if documents.count(row["document"]) == 1
        and row["document"] not in taken
        and row["category"] not in LEFT_TO_THE_REST
    ]
    return set(sorted(fitting, key=rank_of)[:HELD_OUT])


def write(rows, path):
    """Write rows and print the file's size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        {
            "id": pa.string(),
            "document": pa.string(),
            "caption": pa.string(),
            "category": pa.string(),
            "keywords": pa.list_(pa.string()),
            "image": pa.binary(),
        }
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    documents = len({row["document"] for row in rows})
    print(f"{path}: {len(rows)} rows, {documents} documents, {path.stat().st_size} bytes")


def main():
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noto", type=Path, help="Noto Emoji, for the corpus")
    parser.add_argument("emojitwo", type=Path, help="Emojitwo, for the other files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    arguments = parser.parse_args()

    write(read(arguments.noto), arguments.out / "corpus" / "noto.parquet")
    rows = read(arguments.emojitwo)
    adaptation = choose_adaptation(rows)
    held_out = choose_held_out(rows, adaptation)
    parts = {"adaptation": [], "heldout": [], "more": []}
    for row in rows:
        name = "adaptation" if row["id"] in adaptation else "more"
        parts["heldout" if row["id"] in held_out else name].append(row)
    for name, part in parts.items():
        write(part, arguments.out / f"{name}.parquet")


if __name__ == "__main__":
    main()

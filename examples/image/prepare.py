"""Write the demo's glyphs: the pretraining corpus and the parts of the typefaces to adapt to.

The typefaces come as the npm packages that package.json names. Every written file follows from
them alone: glyphs are chosen by a hash of their id, and rows are in the order of the packages.
"""

import argparse
import hashlib
import io
import json
import re
import string
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SIZE = 64
FINER = 4  # glyphs are drawn this many times as large, and then made smaller
GREYS = 16
GLYPHS = string.ascii_uppercase + string.ascii_lowercase + string.digits
WEIGHTS = {
    100: "thin",
    200: "extralight",
    300: "light",
    400: "regular",
    500: "medium",
    600: "semibold",
    700: "bold",
    800: "extrabold",
    900: "black",
}
# Handwriting as it is taught at school, a family a country: all in regular.
SCHOOL = "playwrite-"
# What is put on letters, in the words of captions.
ACCENTS = {
    "\u0300": "grave",
    "\u0301": "acute",
    "\u0302": "circumflex",
    "\u0303": "tilde",
    "\u0308": "diaeresis",
    "\u030a": "ring",
    "\u0327": "cedilla",
}
# Glyphs of a typeface that are held out, and that are in neither of the other parts.
HELD_OUT, REST = 30, 12
# Typefaces to adapt to, by their name in captions: package and weights, the first of them held out.
TARGETS = {
    "hungary": ("playwrite-hu", (400, 100, 200, 300)),
    "gotisch": ("grenze-gotisch", (700, 500, 600, 800, 900)),
}


def rank_of(name):
    """A number that orders names as if at random, the same on every machine."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def name_of(glyph):
    """What a glyph is called in captions."""
    if glyph.isdigit():
        return f"digit {glyph}"
    letter, *accents = unicodedata.normalize("NFD", glyph.lower())
    words = ["capital" if glyph.isupper() else "lowercase", letter]
    return " ".join([*words, *(ACCENTS[accent] for accent in accents)])


def base_of(glyph):
    """A glyph without accents."""
    return unicodedata.normalize("NFD", glyph)[0]


def accented(letters):
    """Latin-1's accented forms of some small letters; on capitals there is no room."""
    found = [chr(code) for code in range(0xE0, 0x100) if unicodedata.decomposition(chr(code))]
    return [glyph for glyph in found if base_of(glyph) in letters]


class Typeface:
    """One style of a family, as its package has it."""

    def __init__(self, package, weight, italic=False):
        self.name = package.name
        self.about = json.loads((package / "metadata.json").read_text(encoding="utf-8"))
        self.version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
        slant = "italic" if italic else "normal"
        self.style = WEIGHTS[weight] + (" italic" if italic else "")
        with TTFont(package / f"files/{package.name}-latin-{weight}-{slant}.woff2") as font:
            self.glyphs = font.getBestCmap()
            font.flavor = None
            self._file = io.BytesIO()
            font.save(self._file)
        # At a size where ascenders and descenders fill the picture, and all but the widest fit.
        boxes = [self._font(400).getbbox(glyph, anchor="ls") for glyph in GLYPHS]
        top = min(box[1] for box in boxes[:26] + boxes[26:52])
        bottom = max(box[3] for box in boxes[26:52])
        widths = sorted(box[2] - box[0] for box in boxes)
        scale = FINER * min((SIZE - 6) / (bottom - top), (SIZE - 2) / widths[-4])
        self._drawn = self._font(400 * scale)
        self._base = round((SIZE * FINER - (top + bottom) * scale) / 2)

    def _font(self, size):
        self._file.seek(0)
        return ImageFont.truetype(self._file, size, layout_engine=ImageFont.Layout.BASIC)

    def draw(self, glyph):
        """A glyph in black on white, as a PNG."""
        left, _, right, _ = self._drawn.getbbox(glyph, anchor="ls")
        image = Image.new("L", (SIZE * FINER, SIZE * FINER), 255)
        place = ((SIZE * FINER - left - right) // 2, self._base)
        ImageDraw.Draw(image).text(place, glyph, fill=0, font=self._drawn, anchor="ls")
        step = 255 // (GREYS - 1)
        small = image.resize((SIZE, SIZE), Image.Resampling.BOX).point(
            lambda value: (value + step // 2) // step
        )
        palette = Image.frombytes("P", small.size, small.tobytes())
        palette.putpalette([grey for n in range(GREYS) for grey in (n * step,) * 3])
        written = io.BytesIO()
        palette.save(written, "PNG", optimize=True, bits=4)
        return written.getvalue()

    def row(self, glyph):
        """The row of a glyph."""
        return {
            "id": f"{self.name}/{self.style.replace(' ', '-')}/{ord(glyph):04x}",
            "document": f"{self.name}/{base_of(glyph)}",
            "glyph": name_of(glyph),
            "weight": self.style,
            "style": f"{self.style} {self.about['category']}",
            "family": self.about["family"],
            "image": self.draw(glyph),
        }

    def rows(self, glyphs=GLYPHS):
        """The rows of some glyphs."""
        return [self.row(glyph) for glyph in glyphs]


def corpus_typeface(package):
    """One style of a family, chosen by a hash of its name."""
    if package.name.startswith(SCHOOL):
        return Typeface(package, 400)
    about = json.loads((package / "metadata.json").read_text(encoding="utf-8"))
    weights = sorted(about["weights"], key=lambda weight: rank_of(f"{package.name}{weight}"))
    italic = "italic" in about["styles"] and rank_of(f"{package.name}italic")[0] < 64
    return Typeface(package, weights[0], italic)


def write_parts(name, faces, folder):
    """Write the three parts of a typeface to adapt to; the first of its styles is the one held out.

    Glyphs are divided, not pictures: a held-out one is in no other part in any style.
    """
    ranked = sorted(GLYPHS, key=lambda glyph: rank_of(f"{name}{glyph}"))
    held_out, own, rest = (
        [glyph for glyph in GLYPHS if glyph in part]
        for part in (ranked[:HELD_OUT], ranked[HELD_OUT:-REST], ranked[-REST:])
    )
    main, *others = faces
    write(main.rows(held_out), folder / f"{name}-heldout.parquet")
    write(main.rows(own), folder / f"{name}-adaptation.parquet")
    more = main.rows(rest + accented(own + rest))
    for face in others:
        more += face.rows(own + rest + accented(own + rest))
    write(more, folder / f"{name}-more.parquet")


def write(rows, path):
    """Write rows and print the file's size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size} bytes")


def write_credits(faces, path):
    """Write a table of the typefaces, with what their packages say of copyright and licence."""
    lines = [
        "# The typefaces\n",
        "What the packages say of themselves. All are under the",
        "[SIL Open Font License 1.1](https://openfontlicense.org).\n",
        "| family | style | package | copyright | licence |",
        "|---|---|---|---|---|",
    ]
    for face in faces:
        licence = face.about["license"]
        # Some packages repeat the line for every file of the family.
        said = " ".join(licence["attribution"].split()).replace("|", "\\|")
        said = re.split(r"\.? Licensed under| \S+\.ttf:", said)[0]
        package = f"`@fontsource/{face.name}` {face.version}"
        cells = (face.about["family"], face.style, package, said, licence["type"])
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="node_modules/@fontsource")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    arguments = parser.parse_args()

    wanted = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    names = [name.removeprefix("@fontsource/") for name in wanted]
    apart = {package for package, _ in TARGETS.values()}
    faces = [corpus_typeface(arguments.packages / n) for n in names if n not in apart]
    write([row for face in faces for row in face.rows()], arguments.out / "corpus/glyphs.parquet")
    for name, (package, weights) in TARGETS.items():
        styles = [Typeface(arguments.packages / package, weight) for weight in weights]
        write_parts(name, styles, arguments.out)
        faces += styles
    write_credits(faces, arguments.out / "TYPEFACES.md")


if __name__ == "__main__":
    main()

"""Pictures: any usual file to PNG of a size, and back to pixels (Pillow)."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from pydantic import Field, model_validator

from albat_core.errors import InputError
from albat_core.store.pointers import REMEDY, is_pointer
from albat_core.store.stage import StageConfig

Frame = tuple[int, int, int, int]
Side = Annotated[int, Field(ge=8, le=16384)]

# Pillow knows more: some of it runs other programs or was written for files of one's own
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_MOST_PIXELS = 178_956_970  # Pillow refuses more whatever is configured
_ORIENTATION = 0x0112  # tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIELDS = 8  # a side; more find fewer copies of small pictures as JPEG, fewer join other drawings
_LONGEST = 4  # times the short side; what is longer is fitted, as in SDXL (arXiv 2307.01952)
_DRAFT = 2  # JPEG may be decoded at a smaller scale, to so many times the size that is wanted


class PictureConfig(StageConfig):
    """The size of the pictures that a backbone takes, and how others are brought to it."""

    resolution: Side | tuple[Side, Side] = 512
    """Pixels of the sides, or height and width."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How other shapes are fitted: `crop` resizes until all is covered and cuts out the middle,
    `pad` resizes until it fits and fills up, `stretch` changes the proportions."""
    buckets: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Aspect-ratio buckets: each picture has the size nearest to its own shape of those whose sides
    are multiples of so many pixels (64 is usual), whose area is about that of `resolution` and at
    most that, and whose longer side is at most 4 times the shorter; none: all have one size."""
    background: str = Field("#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    """Colour under transparency and beside a padded picture, `#rrggbb`."""
    max_pixels: int = Field(89_478_485, ge=1, le=_MOST_PIXELS)
    """Pixels that a picture may have as it comes; larger ones are refused before decoding."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths in pixels that pictures may have."""
        height, width = self.size
        return (self.size,) if self.buckets is None else _buckets(height * width, self.buckets)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width that a picture of this shape is brought to."""
        if self.buckets is None:
            return self.size
        shape = math.log(height / width)
        return min(self.sizes, key=lambda its: (abs(math.log(its[0] / its[1]) - shape), -its[0]))

    @model_validator(mode="after")
    def _has_buckets(self) -> "PictureConfig":
        if self.buckets is not None and self.buckets > min(self.size):
            raise ValueError(
                f"expected buckets of at most the shorter side of resolution, {min(self.size)}, "
                f"got {self.buckets}"
            )
        return self


@lru_cache
def _buckets(area: int, step: int) -> tuple[tuple[int, int], ...]:
    """Return heights and widths in multiples of a step that just fit an area, both ways round."""
    ways = [(side, area // side // step * step) for side in range(step, area // step + 1, step)]
    sizes = {*ways, *((width, height) for height, width in ways)}
    return tuple(sorted(s for s in sizes if max(s) <= _LONGEST * min(s)))


def prepare_picture(content: bytes, config: PictureConfig, where: str) -> tuple[bytes, Frame]:
    """Return a picture as PNG of the size configured for its shape, and what was cut to get it.

    Orientation (EXIF) and colour profile are applied, transparency is laid on the background; of
    an animation the first frame is taken. A picture that has the size keeps its pixels.

    Args:
        content: a file of PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or PPM.
        config: the size.
        where: the picture's place, for errors.

    Returns:
        the PNG file, 8-bit RGB without metadata;
        height and width before resizing, top and left of the cut in the resized picture, in
        pixels >= 0 (0 and 0 where nothing is cut).

    Raises:
        InputError: it is no picture, damaged, truncated or too large.
    """
    with _open(content, where, config.max_pixels) as opened, _damage_named(where):
        picture, height, width = _upright(opened, config)
        picture = _flat(picture, config.background)
    fitted, top, left = _fitted(picture, height, width, config)
    file = io.BytesIO()
    fitted.save(file, "PNG")
    return file.getvalue(), (height, width, top, left)


def check_picture(content: bytes, where: str) -> None:
    """Look at the beginning of a picture's file, without decoding it.

    Raises:
        InputError: it is no picture, or too large for any configuration.
    """
    with _open(content, where, _MOST_PIXELS):
        pass


def picture_size(png: bytes) -> tuple[int, int]:
    """Return height and width in pixels of a picture that was prepared; it is not decoded."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return picture.height, picture.width


def mirrored_picture(png: bytes) -> bytes:
    """Return a picture that was prepared with left and right exchanged, as PNG."""
    return png_file(np.ascontiguousarray(picture_pixels(png)[:, ::-1]))


def picture_pixels(png: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a picture that was prepared: (height, width, 3) RGB in [0, 255]."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return np.array(picture.convert("RGB"))


def picture_colours(png: bytes) -> NDArray[np.uint8]:
    """Return the mean colours of 8 x 8 fields of a picture that was prepared.

    Saving a picture again changes all of them a little; another drawing changes one of them much.

    Returns:
        (192,) in [0, 255]: fields by row and column, RGB of each.
    """
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        small = picture.convert("RGB").resize((_FIELDS, _FIELDS), Image.Resampling.BOX)
        return np.array(small).reshape(-1)


def png_file(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels (height, width, 3) RGB in [0, 255] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, "PNG")
    return file.getvalue()


@contextmanager
def _open(content: bytes, where: str, max_pixels: int) -> Iterator[Image.Image]:
    try:
        picture = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), max_pixels, where) from error
    except UnidentifiedImageError as error:
        if is_pointer(content):
            said = "expected a picture, found a pointer of Git LFS in its place"
            raise InputError(said, where, REMEDY) from error
        begins = f"a file that begins with {content[:12]!r}" if content else "an empty file"
        raise InputError(
            f"expected a picture ({', '.join(_FORMATS)}), got {begins}",
            where=where,
            remedy="save it in one of these formats, take it out, or set on_damaged to skip",
        ) from error
    except Exception as error:  # decoders raise what they like
        raise _damaged(error, where) from error
    with picture:
        if picture.width * picture.height > max_pixels:
            raise _too_large(f"{picture.width} x {picture.height}", max_pixels, where)
        yield picture


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like
        raise _damaged(error, where) from error


def _damaged(error: Exception, where: str) -> InputError:
    return InputError(
        f"expected a picture, its file is damaged or truncated ({type(error).__name__}: {error})",
        where=where,
        remedy="write or copy it again, take it out, or set on_damaged to skip",
    )


def _too_large(found: str, max_pixels: int, where: str) -> InputError:
    return InputError(
        f"expected a picture of at most {max_pixels} pixels, got {found}",
        where=where,
        remedy="make it smaller, raise max_pixels, or set on_damaged to skip",
    )


def _upright(picture: Image.Image, config: PictureConfig) -> tuple[Image.Image, int, int]:
    """Return the decoded picture with its orientation applied, and its whole height and width."""
    orientation = 1
    if picture.format in ("JPEG", "MPO"):
        width, height = picture.size
        orientation = _orientation(picture)
        turned = orientation >= 5
        whole = (width, height) if turned else (height, width)
        rows, columns = _resized(*whole, config)
        wanted = (rows, columns) if turned else (columns, rows)
        picture.draft(None, (wanted[0] * _DRAFT, wanted[1] * _DRAFT))
        picture.load()
    else:
        picture.load()  # turns TIFF, whose orientation is then gone
        orientation = _orientation(picture)
        whole = picture.size[::-1] if orientation < 5 else picture.size
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn), *whole


def _orientation(picture: Image.Image) -> int:
    """Return the orientation that EXIF gives, 1 to 8; 1 where it cannot be read."""
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture is worth more than what is said of it
        return 1
    return found if found in _TURNS else 1


def _flat(picture: Image.Image, background: str) -> Image.Image:
    """Return the picture as 8-bit sRGB on the background."""
    profile = picture.info.get("icc_profile")
    colours, alpha = _layers(picture)
    colours = _in_srgb(colours, profile)
    if alpha is None:
        return colours
    flat = Image.new("RGB", colours.size, background)
    flat.paste(colours, mask=alpha)
    return flat


def _layers(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours, 8 bits a channel, and the opacity (mode L) if there is any."""
    if picture.mode.startswith("I"):
        return _from_deep(picture)
    if picture.mode == "F":
        raise ValueError("floating-point numbers, not 8 or 16 bits a channel")
    if picture.mode == "LA":
        return picture.getchannel("L"), picture.getchannel("A")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return picture.convert("RGB"), picture.getchannel("A")
    if picture.mode in ("L", "RGB", "CMYK", "LAB"):
        return picture, None
    return picture.convert("L" if picture.mode == "1" else "RGB"), None


def _from_deep(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return 16-bit grey as 8-bit, and its opacity; Pillow's own conversion clips."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32 bits a channel, not 8 or 16")
    alpha = None
    if (clear := picture.info.get("transparency")) is not None:
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), alpha


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Return RGB: by the picture's colour profile where it has one that fits, else as it is."""
    try:
        if profile is not None:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            named = ImageCms.getProfileDescription(source).startswith("sRGB")
        elif picture.mode == "LAB":
            source, named = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), False
        else:
            named = True
        if not named:
            target = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
            return picture.convert("RGB") if found is None else found
    except (ImageCms.PyCMSError, OSError, ValueError):
        pass  # damaged, or of another colour space: browsers pass over it too
    return picture.convert("RGB")


def _resized(height: int, width: int, config: PictureConfig) -> tuple[int, int]:
    """Return height and width to which a picture is resized before it is cut or padded."""
    rows, columns = config.size_of(height, width)
    if config.fit == "stretch":
        return rows, columns
    larger = max if config.fit == "crop" else min
    scale = larger(rows / height, columns / width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _fitted(
    picture: Image.Image, height: int, width: int, config: PictureConfig
) -> tuple[Image.Image, int, int]:
    """Return the picture at the size configured for its shape, and top and left of the cut.

    Args:
        picture: what was decoded, RGB; a JPEG at a smaller scale perhaps.
        height: of the whole picture.
        width: of the whole picture.
        config: the size.
    """
    rows, columns = config.size_of(height, width)
    tall, wide = _resized(height, width, config)
    shown = (min(tall, rows), min(wide, columns))
    top, left = (tall - shown[0]) // 2, (wide - shown[1]) // 2
    # only what will be seen is resized: the whole of a long strip would not fit in memory
    across, down = picture.width / wide, picture.height / tall
    right = min((left + shown[1]) * across, picture.width)  # no rounding beyond the edge
    bottom = min((top + shown[0]) * down, picture.height)
    box = (left * across, top * down, right, bottom)
    seen = picture.resize(shown[::-1], Image.Resampling.LANCZOS, box=box)
    fitted = Image.new("RGB", (columns, rows), config.background)
    fitted.paste(seen, ((columns - shown[1]) // 2, (rows - shown[0]) // 2))
    return fitted, top, left


def thumbnail(png: bytes, side: int) -> bytes:
    """Return a picture fit for a page: as it is, or WebP of smaller size where it is larger.

    Args:
        png: a picture that was prepared.
        side: pixels that height and width may have.
    """
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        if max(picture.size) <= side:
            return png
        small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=88)
        return file.getvalue()


def side_by_side(pngs: Sequence[bytes], side: int) -> bytes:
    """Return pictures that were prepared in one row, as PNG.

    Args:
        pngs: one or more.
        side: pixels that height and width of each may have.
    """
    small = [Image.open(io.BytesIO(thumbnail(png, side)), formats=("PNG", "WEBP")) for png in pngs]
    height, gap = max(picture.height for picture in small), max(side // 64, 1)
    width = sum(picture.width + gap for picture in small) - gap
    row, left = Image.new("RGB", (width, height), "white"), 0
    for picture in small:
        row.paste(picture.convert("RGB"), (left, 0))
        left += picture.width + gap
    file = io.BytesIO()
    row.save(file, "PNG")
    return file.getvalue()

"""Pictures: every usual kind of file to the pixels that it means, and what is none."""

import io
import struct
import warnings
import zlib
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydantic import ValidationError

from albat_core.errors import InputError
from albat_core.pictures import (
    PictureConfig,
    check_picture,
    mirrored_picture,
    picture_pixels,
    picture_size,
    png_file,
    prepare_picture,
    side_by_side,
)
from tests.core.picture_files import encoded, pattern

SIDE = 16
SAME = PictureConfig(resolution=SIDE)


def prepared(content: bytes, **fields: object) -> NDArray[np.uint8]:
    config = PictureConfig(**{"resolution": SIDE, **fields})
    png, _ = prepare_picture(content, config, "here")
    pixels = picture_pixels(png)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*config.size, 3)
    return pixels


def frame_of(content: bytes, **fields: object) -> tuple[int, int, int, int]:
    return prepare_picture(content, PictureConfig(**{"resolution": SIDE, **fields}), "here")[1]


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of the chunks, by the format's own description."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, content in (*chunks, (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + content))
        file += struct.pack(">I", len(content)) + kind + content + check
    return file


def header(width: int, height: int, depth: int, colour: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def data(rows: NDArray) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_of_the_size_keeps_its_pixels(form: str, fit: str) -> None:
    pixels = pattern(SIDE, SIDE)
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(pixels, form, **options)
    np.testing.assert_array_equal(prepared(content, fit=fit), pixels)
    assert frame_of(content, fit=fit) == (SIDE, SIDE, 0, 0)


def test_the_result_is_bare_png_and_the_same_every_time() -> None:
    pixels = pattern(SIDE, SIDE)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    content = encoded(pixels, dpi=(72, 72), icc_profile=srgb, exif=exif)
    png, _ = prepare_picture(content, SAME, "")
    assert png == prepare_picture(encoded(pixels), SAME, "")[0]
    kinds, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kinds.append(png[at + 4 : at + 8])
        at += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
    assert png[24:26] == bytes([8, 2])  # bits, RGB


ORIENTED = {  # what EXIF says of the stored rows and columns, undone
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, form: str) -> None:
    pixels = pattern(12, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(pixels, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    expected = ORIENTED[orientation](pixels)
    size = expected.shape[:2]
    np.testing.assert_array_equal(prepared(content, resolution=size), expected)
    assert frame_of(content)[:2] == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_large_jpeg(orientation: int) -> None:
    """Decoded at a smaller scale; quarters of one colour each are where they should be."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    pixels = colours.repeat(400, axis=0).repeat(600, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(pixels, "JPEG", exif=exif, quality=95)
    expected = ORIENTED[orientation](colours)
    size = (24, 16) if orientation >= 5 else (16, 24)
    shown = prepared(content, resolution=size)
    found = shown[[[size[0] // 4], [3 * size[0] // 4]], [size[1] // 4, 3 * size[1] // 4]]
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=4)
    assert frame_of(content, resolution=size) == (
        (1200, 800, 0, 0) if orientation >= 5 else (800, 1200, 0, 0)
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_orientation_is_passed_over() -> None:
    pixels = pattern(SIDE, SIDE)
    content = encoded(pixels, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    np.testing.assert_array_equal(prepared(content), pixels)


def over(colours: NDArray, alpha: NDArray, background: tuple[int, int, int]) -> NDArray:
    share = alpha[..., None] / 255
    return colours * share + np.array(background) * (1 - share)


def test_transparency_is_laid_on_the_background() -> None:
    colours, alpha = pattern(SIDE, SIDE), pattern(SIDE, SIDE, 1)[..., 0]
    content = encoded(np.dstack([colours, alpha]))
    white = prepared(content).astype(int)
    np.testing.assert_allclose(white, over(colours, alpha, (255, 255, 255)), atol=1)
    blue = prepared(content, background="#0000ff").astype(int)
    np.testing.assert_allclose(blue, over(colours, alpha, (0, 0, 255)), atol=1)


def test_grey_with_transparency() -> None:
    grey, alpha = pattern(SIDE, SIDE)[..., 0], pattern(SIDE, SIDE, 1)[..., 0]
    found = prepared(encoded(np.dstack([grey, alpha])), background="#102030").astype(int)
    colours = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_allclose(found, over(colours, alpha, (16, 32, 48)), atol=1)


def test_palette_with_transparency() -> None:
    indices = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 4
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    chunks = [header(SIDE, SIDE, 8, 3), (b"PLTE", palette.tobytes())]
    plain = chunked(*chunks, data(indices))
    np.testing.assert_array_equal(prepared(plain), palette[indices])
    opacity = np.array([0, 128, 255, 255], np.uint8)  # the last one by default
    clear = chunked(*chunks, (b"tRNS", opacity[:3].tobytes()), data(indices))
    expected = over(palette[indices], opacity[indices], (0, 0, 0))
    found = prepared(clear, background="#000000").astype(int)
    np.testing.assert_allclose(found, expected, atol=1)


def test_one_colour_that_is_transparent() -> None:
    pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    pixels[3, 4] = (1, 2, 3)
    key = struct.pack(">HHH", 1, 2, 3)
    content = chunked(header(SIDE, SIDE, 8, 2), (b"tRNS", key), data(pixels))
    expected = pixels.copy()
    expected[3, 4] = (255, 0, 255)
    np.testing.assert_array_equal(prepared(content, background="#ff00ff"), expected)


def test_grey_and_two_level() -> None:
    grey = pattern(SIDE, SIDE)[..., 0]
    np.testing.assert_array_equal(prepared(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    levels = grey > 127
    expected = np.repeat(levels[..., None], 3, axis=2) * 255
    np.testing.assert_array_equal(prepared(encoded(Image.fromarray(levels))), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PGM"])
def test_16_bit_grey_is_scaled(form: str) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    if form == "PNG":
        content = chunked(header(SIDE, SIDE, 16, 0), data(values.astype(">u2")))
    elif form == "TIFF":
        content = encoded(values, "TIFF")
    else:
        content = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    found = prepared(content)
    np.testing.assert_array_equal(found[..., 0], np.rint(values / 257))
    assert np.ptp(found, axis=2).max() == 0
    assert len(np.unique(found)) > 200  # clipped would be nearly white


def test_16_bit_grey_with_a_transparent_value() -> None:
    values = np.full((SIDE, SIDE), 65535, np.uint16)
    values[5, 6] = 1000
    values[0, 0] = 1001  # another, though the same in 8 bits
    content = chunked(
        header(SIDE, SIDE, 16, 0), (b"tRNS", struct.pack(">H", 1000)), data(values.astype(">u2"))
    )
    found = prepared(content, background="#00ff00")
    assert found[5, 6].tolist() == [0, 255, 0]
    assert found[0, 0].tolist() == [4, 4, 4]


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_are_scaled(channels: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 65536, (SIDE, SIDE, channels), dtype=np.uint16)
    values[..., 3:] = 65535
    colour = 2 if channels == 3 else 6
    content = chunked(header(SIDE, SIDE, 16, colour), data(values.astype(">u2")))
    np.testing.assert_allclose(prepared(content).astype(int), values[..., :3] / 257, atol=1)


def test_numbers_that_mean_no_brightness_are_refused() -> None:
    for values in (np.full((9, 9), 70000, np.int32), np.full((9, 9), 0.5, np.float32)):
        with pytest.raises(InputError, match="not 8 or 16"):
            prepared(encoded(values, "TIFF"))


def test_cmyk() -> None:
    inks = np.zeros((SIDE, SIDE, 4), np.uint8)
    inks[:8, :8, 0], inks[:8, 8:, 1], inks[8:, :8, 2], inks[8:, 8:, 3] = 255, 255, 255, 255
    found = prepared(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    colours = [found[4, 4], found[4, 12], found[12, 4], found[12, 12]]
    expected = [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]
    np.testing.assert_allclose(np.array(colours, int), expected, atol=6)


def lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def swapped_profile(name: bytes = b"xRGB") -> bytes:
    """Return sRGB with the red and green primaries exchanged and another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    at, length = struct.unpack(">II", profile[tags[b"desc"] + 4 : tags[b"desc"] + 12])
    described = bytes(profile[at : at + length])
    wide = name.decode().encode("utf-16-be")
    described = described.replace(b"sRGB", name).replace("sRGB".encode("utf-16-be"), wide)
    profile[at : at + length] = described
    return bytes(profile)


def test_a_colour_profile_is_applied() -> None:
    pixels = np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8)
    found = prepared(encoded(pixels, icc_profile=swapped_profile())).astype(int)
    np.testing.assert_allclose(found, np.full_like(found, 1) * (0, 255, 0), atol=2)
    seen_through = np.dstack([pixels, np.zeros((SIDE, SIDE), np.uint8)])
    found = prepared(encoded(seen_through, icc_profile=swapped_profile()), background="#800000")
    assert found[0, 0].tolist() == [128, 0, 0]  # the background is no part of the picture


def test_what_calls_itself_srgb_keeps_its_pixels() -> None:
    """Makers' profiles of sRGB differ by a rounding; here one that differs much."""
    pixels = pattern(SIDE, SIDE)
    content = encoded(pixels, icc_profile=swapped_profile(b"sRGB"))
    np.testing.assert_array_equal(prepared(content), pixels)


@pytest.mark.parametrize("profile", [b"no profile", lab_profile(), swapped_profile()[:200]])
def test_a_profile_that_does_not_fit_is_passed_over(profile: bytes) -> None:
    pixels = pattern(SIDE, SIDE)
    np.testing.assert_array_equal(prepared(encoded(pixels, icc_profile=profile)), pixels)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(form: str) -> None:
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("#ff0000", "#0000ff"))
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(first, form, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.n_frames == 2
    assert (prepared(content) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("size", "fit", "frame"),
    [
        ((32, 64), "crop", (32, 64, 0, 8)),  # to 16 x 32, 8 off each side
        ((64, 32), "crop", (64, 32, 8, 0)),
        ((33, 16), "crop", (33, 16, 8, 0)),  # 17 rows too many
        ((32, 64), "pad", (32, 64, 0, 0)),
        ((32, 64), "stretch", (32, 64, 0, 0)),
        ((1, 1), "crop", (1, 1, 0, 0)),
        ((1, 20000), "crop", (1, 20000, 0, 159992)),
        ((20000, 1), "pad", (20000, 1, 0, 0)),
    ],
)
def test_frames(size: tuple[int, int], fit: str, frame: tuple[int, ...]) -> None:
    assert frame_of(encoded(pattern(*size)), fit=fit) == frame


def test_crop_is_the_middle_of_the_whole_resized() -> None:
    for height, width in ((60, 100), (100, 61), (17, 40)):
        coarse = Image.fromarray(pattern(6, 6)).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse)  # of noise, rounding between the two passes shows
        scale = max(16 / height, 24 / width)
        tall, wide = round(height * scale), round(width * scale)
        whole = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.LANCZOS)
        top, left = (tall - 16) // 2, (wide - 24) // 2
        expected = np.asarray(whole)[top : top + 16, left : left + 24].astype(int)
        content = encoded(pixels)
        np.testing.assert_allclose(prepared(content, resolution=(16, 24)), expected, atol=1)
        assert frame_of(content, resolution=(16, 24)) == (height, width, top, left)


def test_nothing_is_resampled_where_only_the_sides_go() -> None:
    pixels = pattern(SIDE, 31)
    np.testing.assert_array_equal(prepared(encoded(pixels)), pixels[:, 7 : 7 + SIDE])


def test_pad_and_stretch() -> None:
    red = np.full((32, 64, 3), (255, 0, 0), np.uint8)
    padded = prepared(encoded(red), fit="pad", background="#00ff00")
    assert (padded[4:12] == (255, 0, 0)).all()
    assert (padded[:4] == (0, 255, 0)).all()
    assert (padded[12:] == (0, 255, 0)).all()
    halves = np.zeros((8, 64, 3), np.uint8)
    halves[:, 32:] = 255
    stretched = prepared(encoded(halves), fit="stretch")
    assert stretched[:, :5].max() == 0
    assert stretched[:, 11:].min() == 255
    strip = prepared(encoded(np.zeros((20000, 1, 3), np.uint8)), fit="pad")
    assert (strip.min(axis=(0, 2)) == 0).sum() == 1  # one column is left of it


def test_reduction_is_antialiased() -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    found = prepared(encoded(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)))
    assert abs(found.astype(int) - 127.5).max() < 2  # picked pixels would be black or white


def test_a_single_pixel_fills_the_picture() -> None:
    assert (prepared(encoded(np.full((1, 1, 3), (9, 8, 7), np.uint8))) == (9, 8, 7)).all()


def test_what_is_no_picture() -> None:
    for content, got in (
        (b"", "an empty file"),
        (b"<html><body>404", "begins with b'<html><body>"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with b'%!PS"),
    ):
        with pytest.raises(InputError, match="expected a picture") as caught:
            prepare_picture(content, SAME, "file:3")
        assert got in str(caught.value)
        assert caught.value.where == "file:3"
        assert caught.value.remedy
        with pytest.raises(InputError, match="expected a picture"):
            check_picture(content, "file:3")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(form: str) -> None:
    content = encoded(pattern(64, 64), form)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(InputError, match="expected a picture") as caught:
            prepare_picture(content[: int(len(content) * share)], SAME, "here")
        assert caught.value.where == "here"


def test_changed_bytes_of_png_are_noticed() -> None:
    content = bytearray(encoded(pattern(64, 64)))
    content[len(content) // 2] ^= 255
    with pytest.raises(InputError, match="damaged or truncated"):
        prepare_picture(bytes(content), SAME, "here")


@pytest.mark.filterwarnings("ignore:Image size")
def test_bombs_are_refused_before_decoding() -> None:
    rows = np.zeros((1, 1), np.uint8)
    for width, height in ((30_000, 30_000), (10_000, 9_000)):
        bomb = chunked(header(width, height, 8, 0), data(rows))
        with pytest.raises(InputError, match="at most 89478485 pixels") as caught:
            prepare_picture(bomb, SAME, "here")
        assert str(width) in caught.value.message or str(width * height) in caught.value.message
    small = encoded(pattern(11, 10))
    with pytest.raises(InputError, match="at most 100 pixels, got 10 x 11"):
        prepared(small, max_pixels=100)
    prepared(small, max_pixels=110)


def test_large_jpeg_is_not_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def noting(self: Image.Image, *args: object, **fields: object) -> Image.Image:
        sizes.append(self.size)
        return resize(self, *args, **fields)

    gradient = np.linspace(0, 255, 6000).astype(np.uint8)
    pixels = np.repeat(np.tile(gradient, (4000, 1))[..., None], 3, axis=2)
    content = encoded(pixels, "JPEG", quality=90)
    monkeypatch.setattr(Image.Image, "resize", noting)
    found = prepared(content, resolution=(40, 60)).astype(int)
    assert sizes == [(750, 500)]  # an eighth
    means = pixels.reshape(40, 100, 60, 100, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found[:, 2:-2], means[:, 2:-2], atol=2)
    assert all(a <= b for a, b in pairwise(found[20, :, 0]))


def test_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    prepared(encoded(Image.fromarray(pattern(9, 9)).convert("P"), transparency=bytes(range(200))))
    assert not [w for w in recwarn if "PIL" in str(w.filename)]


@pytest.mark.parametrize(
    "fields",
    [
        {"resolution": 0},
        {"resolution": (64, 0)},
        {"fit": "squeeze"},
        {"background": "white"},
        {"background": "#fff"},
        {"max_pixels": 10**9},
    ],
)
def test_configuration(fields: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        PictureConfig(**fields)


def test_sizes() -> None:
    assert PictureConfig().size == (512, 512)
    assert PictureConfig(resolution=(32, 48)).size == (32, 48)
    assert PictureConfig.model_validate_json('{"resolution": [32, 48]}').size == (32, 48)


@pytest.mark.parametrize(
    "config",
    [
        PictureConfig(resolution=1024, buckets=64),
        PictureConfig(resolution=(512, 768), buckets=64),
        PictureConfig(resolution=16, buckets=8),
        PictureConfig(resolution=70, buckets=8),
    ],
)
def test_buckets_just_fit_the_area_both_ways_round(config: PictureConfig) -> None:
    area, step = config.size[0] * config.size[1], config.buckets or 0
    assert len(set(config.sizes)) == len(config.sizes) > 2
    for height, width in config.sizes:
        assert height % step == width % step == 0
        assert (width, height) in config.sizes
        assert height * width <= area < max((height + step) * width, height * (width + step))
        assert max(height, width) <= 4 * min(height, width)


def test_a_picture_has_the_bucket_of_its_own_shape() -> None:
    config = PictureConfig(resolution=1024, buckets=64)
    for size in config.sizes:
        assert config.size_of(*size) == size
        assert config.size_of(3 * size[0], 3 * size[1]) == size
    assert config.size_of(10, 1000)[1] / config.size_of(10, 1000)[0] == 4
    for height, width in product((300, 640, 1111), (300, 517, 900)):
        tall, wide = config.size_of(height, width)
        ratio = (height / width) / (tall / wide)
        others = [(height / width) / (t / w) for t, w in config.sizes]
        nearest = min(max(one, 1 / one) for one in others)
        assert max(ratio, 1 / ratio) == pytest.approx(nearest)


def test_without_buckets_all_have_one_size_and_no_key_is_another() -> None:
    config = PictureConfig(resolution=(32, 64))
    assert config.sizes == ((32, 64),)
    assert config.size_of(1000, 10) == (32, 64)
    assert PictureConfig().settings().named == {}


def test_buckets_larger_than_a_side_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most the shorter side of resolution, 32"):
        PictureConfig(resolution=(32, 128), buckets=64)


def test_a_picture_is_resized_to_its_bucket_and_little_is_cut() -> None:
    config = PictureConfig(resolution=64, buckets=16)
    png, frame = prepare_picture(encoded(gradient(200, 90)), config, "here")
    assert config.size_of(200, 90) == picture_size(png) == (80, 48)
    assert frame == (200, 90, 13, 0)  # 107 x 48 before 27 rows are cut
    pixels = picture_pixels(png)
    assert pixels[:, 0, 1].max() < 12
    assert pixels[:, -1, 1].min() > 243
    assert 20 < pixels[0, 0, 0] < 40


def gradient(height: int, width: int) -> NDArray[np.uint8]:
    """Red that grows downwards, and green that grows to the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    pixels[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)
    return pixels


def test_a_mirrored_picture_has_left_and_right_exchanged() -> None:
    pixels = pattern(12, 20)
    mirrored = picture_pixels(mirrored_picture(png_file(pixels)))
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1])
    assert mirrored_picture(mirrored_picture(png_file(pixels))) == png_file(pixels)


def test_pictures_side_by_side_are_no_larger_than_wanted() -> None:
    one, other = png_file(pattern(12, 20)), png_file(pattern(128, 64))
    row = picture_pixels(side_by_side([one, other], 64))
    assert row.shape == (64, 20 + 1 + 32, 3)
    np.testing.assert_array_equal(row[:12, :20], pattern(12, 20))
    assert (row[12:, :20] == 255).all()

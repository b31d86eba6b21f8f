"""Every way a picture can come in gives the same float32 RGB array, and every broken one a clear error."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsad import images
from fsad.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_value(kind):
    loaded = images.load_image(encoded(Image.fromarray(RGB), kind))
    assert loaded.dtype == np.float32 and loaded.shape == (6, 5, 3)
    np.testing.assert_array_equal(loaded, RGB.astype(np.float32) / 255)


def test_jpeg_is_close():
    smooth = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    loaded = images.load_image(encoded(Image.fromarray(smooth), "JPEG", quality=98))
    np.testing.assert_allclose(loaded, smooth / 255, atol=0.03)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_depth(kind):
    deep = np.array([[0, 1, 256, 65535]], np.uint16)
    loaded = images.load_image(encoded(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(loaded[:, :, 1], deep.astype(np.float32) / 65535)


def test_grey_bilevel_palette_and_cmyk_become_rgb():
    grey = images.load_image(encoded(Image.fromarray(GREY), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(GREY[:, :, None], 3, 2).astype(np.float32) / 255)
    bits = images.load_image(encoded(Image.fromarray(GREY > 99), "PNG"))
    np.testing.assert_array_equal(bits[:, :, 0], (GREY > 99).astype(np.float32))
    few = Image.fromarray(RGB // 128 * 255)
    palette = images.load_image(encoded(few.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
    np.testing.assert_allclose(palette, np.asarray(few) / 255, atol=0.02)
    cmyk = images.load_image(encoded(few.convert("CMYK"), "TIFF"))
    np.testing.assert_allclose(cmyk, np.asarray(few) / 255, atol=0.02)


def test_transparency_is_laid_over_white():
    rgba = np.dstack([RGB, np.full(GREY.shape, 51, np.uint8)])
    loaded = images.load_image(encoded(Image.fromarray(rgba), "PNG"))
    np.testing.assert_allclose(loaded, RGB / 255 * 0.2 + 0.8, atol=1e-6)
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    loaded = images.load_image(encoded(indexed, "PNG", transparency=0))
    np.testing.assert_allclose(loaded[0], [[1, 1, 1], [40 / 255, 50 / 255, 60 / 255]], atol=1e-6)


@pytest.mark.parametrize(
    "orientation, undo",
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a))],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = images.load_image(encoded(Image.fromarray(RGB), kind, exif=exif))
    np.testing.assert_array_equal(loaded, undo(RGB).astype(np.float32) / 255)


def test_arrays_tensors_and_pil_images_agree_with_the_file():
    expected = images.load_image(encoded(Image.fromarray(RGB), "PNG"))
    for same in (RGB, RGB / 255, Image.fromarray(RGB), torch.from_numpy(RGB).permute(2, 0, 1)):
        np.testing.assert_allclose(images.load_image(same), expected, atol=1e-7)
    assert images.load_image(torch.zeros(2, 3, dtype=torch.bfloat16)).shape == (2, 3, 3)


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4), np.int32), "dtype int32"),
        (np.full((4, 4), 7.0), r"\[0, 1\]"),
        (np.full((4, 4), np.nan), "nan"),
        (torch.zeros(1, 3, 4, 4), "shape"),
        (3, "Got int"),
    ],
)
def test_unusable_arrays_are_refused(bad, words):
    with pytest.raises(InputError, match=words):
        images.load_image(bad)


def test_header_bomb_is_refused_before_decoding():
    with warnings.catch_warnings(), pytest.raises(InputError, match="400,000,000 pixels"):
        warnings.simplefilter("error")
        images.load_image(png_header(20_000, 20_000))
    # A raised limit is obeyed, beyond Pillow's own hard limit too; then the data turn out short.
    with pytest.raises(InputError, match="cut off"):
        images.load_image(png_header(200_000, 1_000), max_pixels=10**9)
    with pytest.raises(InputError, match="--max-pixels"):
        images.load_image(Image.fromarray(RGB), max_pixels=29)
    assert images.load_image(RGB.copy(), max_pixels=1).shape == (6, 5, 3)  # already in memory
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_truncated_and_corrupted_files_raise_only_input_errors(kind, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "cut.img"
    for length in range(0, len(data) - 40, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.img: "):
            images.load_image(path)
    rng = np.random.default_rng(2)
    survived = 0
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 4):
            broken[at] = rng.integers(256)
        try:
            loaded = images.load_image(bytes(broken), max_pixels=10_000)
        except InputError:
            continue
        assert np.isfinite(loaded).all() and loaded.ndim == 3
        survived += 1
    assert survived < 300  # some of the damage was noticed


def test_other_unreadable_sources_are_named(tmp_path):
    text = tmp_path / "note.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for source, words in [
        (text, "note.png: not a PNG"),
        (empty, "empty.png: the file is empty"),
        (tmp_path / "gone.png", "gone.png: No such file"),
        (tmp_path, "Is a directory"),
        (encoded(Image.fromarray(RGB), "GIF"), "not a PNG, JPEG, BMP or TIFF"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF"), "32-bit"),
    ]:
        with pytest.raises(InputError, match=words):
            images.load_image(source)


def test_listing_is_recursive_sorted_and_complete(tmp_path):
    for name in ["b.PNG", "a.jpeg", "sub/a.tif", "sub/deep/x.bmp", "notes.txt", ".hidden.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(p.relative_to(tmp_path)) for p in images.list_images(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "sub/a.tif", "sub/deep/x.bmp"]
    with pytest.raises(InputError, match="does not exist"):
        images.list_images(tmp_path / "gone")
    with pytest.raises(InputError, match="is a file"):
        images.list_images(tmp_path / "a.jpeg")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        images.list_images(tmp_path / "none")


def test_names_of_any_bytes_are_found_and_shown(tmp_path):
    name = os.fsdecode(b"caf\xe9\x1b[31m.png")
    Image.fromarray(RGB).save(tmp_path / name, "PNG")
    (found,) = images.list_images(tmp_path)
    assert images.load_image(found).shape == (6, 5, 3)
    assert images.display_name(found.name) == "caf\\xe9\\x1b[31m.png"
    assert images.display_name(Path("größe.png")) == "größe.png"


def test_resize_is_antialiased_and_keeps_the_mean():
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[:, ::2] = 1
    small = images.resize(stripes, 8)
    np.testing.assert_allclose(small[:, 1:-1], 0.5, atol=0.02)  # plain bilinear sampling aliases
    assert images.resize(stripes, (3, 5)).shape == (3, 5, 3)
    assert (images.resize(np.full((1, 1, 3), 0.25, np.float32), 16) == 0.25).all()

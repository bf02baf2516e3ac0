import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from maskx_d2.data.addresses import read_image_at
from maskx_d2.data.images import (
    check_images_exist,
    open_image,
    read_ahead,
    read_image,
    read_image_from,
)


def test_eight_bits_of_any_mode_become_rgb_upright(tmp_path):
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (4, 3)).save(path)
        assert (read_image(path).mode, read_image(path).size) == ("RGB", (4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (3, 4)


@pytest.mark.parametrize(
    ("dtype", "suffix", "bits"),
    [(np.uint16, "png", 16), (np.uint16, "tif", 16), (np.int32, "tif", 32), (np.float32, "tif", 32)],
)
def test_pixels_whose_range_nobody_knows_are_refused(tmp_path, dtype, suffix, bits):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.full((4, 5), 300, dtype)).save(path)
    with pytest.raises(ValueError, match=rf"deep.{suffix} cannot be .*: its pixels have {bits} bits, exp"):
        read_image(path)


def test_strips_are_refused(tmp_path):
    Image.new("RGB", (1, 20_000)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"strip.png cannot be read as an image: it has 1 x 20000 pixels"):
        read_image(tmp_path / "strip.png")
    Image.new("RGB", (100, 1)).save(tmp_path / "long.png")
    assert read_image(tmp_path / "long.png").size == (100, 1)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.new("1", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb.png cannot be read as an image: .*decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe", "loop", "folder", "absent"):
        with pytest.raises(FileNotFoundError, match=rf"{name}.png (is not a file|does not exist)$"):
            read_image(tmp_path / f"{name}.png")


def encoded(suffix):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=suffix)
    return buffer.getvalue()


FILES = {suffix: encoded(suffix) for suffix in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")}


@pytest.mark.fuzz
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_changed_file_is_an_image_or_one_sentence(tmp_path_factory, suffix, data):
    content = bytearray(FILES[suffix])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.mktemp("fuzz") / "image"
    path.write_bytes(content)
    try:
        assert read_image(path).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read as an image: ")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have_are_those_of_absent_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_images_exist([tmp_path / name])


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A small file of 169 megapixels, of which none may be read."""
    path = tmp_path / "large.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 50_000

    def load(self):
        raise AssertionError("its pixels are read")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return path


@pytest.mark.parametrize(
    "read",
    [
        read_image,
        lambda path: read_image_at(path.as_uri()),
        lambda path: next(read_ahead([path]))[1].result(),
        lambda path: open_image(path).__enter__(),
        lambda path: read_image_from(path.open("rb"), name=str(path)),
    ],
    ids=["read_image", "read_image_at", "read_ahead", "open_image", "read_image_from"],
)
def test_images_of_more_than_50_megapixels_are_refused_before_their_pixels_are_read(large, read):
    message = r"large.png cannot be .*: it has 13000 x 13000 pixels, expected at most 50 megapixels"
    with pytest.raises(ValueError, match=message):
        read(large)


def test_the_limit_of_an_image_can_be_raised_and_lowered(tmp_path):
    Image.new("1", (8000, 7000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="8000 x 7000 pixels, expected at most 50 megapixels"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_megapixels=56).size == (8000, 7000)
    Image.new("1", (10, 10)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="10 x 10 pixels, expected at most 5e-05 megapixels"):
        next(read_ahead([tmp_path / "b.png"], max_megapixels=50e-6))[1].result()


# ---- Pixels that Pillow would change without a word ----


def deep_png(path, pixels):
    """A PNG of (H, W, C) uint16, written by hand: Pillow cannot."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(path, pixels, *, bits):
    """A TIFF of (H, W, C) without compression."""
    height, width, channels = pixels.shape
    content = pixels.astype({8: "<u1", 16: "<u2"}[bits]).tobytes()
    tags = {256: (4, width), 257: (4, height), 259: (3, 1), 277: (3, channels)}
    tags |= {262: (3, 2 if channels == 3 else 1), 278: (4, height), 279: (4, len(content))}
    after = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {258: (3, None), 273: (4, after + 2 * channels)}
    entries = b""
    for number, (kind, value) in sorted(tags.items()):
        count, value = (channels, after) if value is None else (1, value)
        entries += struct.pack("<HHII", number, kind, count, value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"
    path.write_bytes(head + struct.pack(f"<{channels}H", *[bits] * channels) + content)


@pytest.mark.parametrize("name", ["a.png", "alpha.png", "a.tif", "a.ppm"])
@pytest.mark.parametrize("read", ["path", "file"])
def test_colours_of_16_bits_are_refused_and_not_read_as_dark_ones(tmp_path, name, read):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint16) * 16
    path = tmp_path / name
    if name == "alpha.png":
        deep_png(path, np.concatenate([pixels, pixels[:, :, :1]], axis=2))
    elif name == "a.png":
        deep_png(path, pixels)
    elif name == "a.tif":
        tiff(path, pixels, bits=16)
    else:
        path.write_bytes(b"P6 30 20 65535\n" + pixels.astype(">u2").tobytes())
    with pytest.raises(ValueError, match=r"cannot be read as an image: its pixels have 16 bits, exp"):
        if read == "path":
            read_image(path)
        else:
            with path.open("rb") as file:
                read_image_from(file, name=name)


def test_an_image_of_five_channels_is_named_as_such(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 5))
    tiff(tmp_path / "five.tif", pixels, bits=8)
    with pytest.raises(ValueError, match=r"five.tif cannot be read as an image: it has 5 channels"):
        read_image(tmp_path / "five.tif")
    tiff(tmp_path / "three.tif", pixels[:, :, :3], bits=8)
    assert np.array_equal(np.asarray(read_image(tmp_path / "three.tif")), pixels[:, :, :3])


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "jfif", "tif", "webp", "gif", "bmp", "ppm", "jp2", "avif"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_images_of_8_bits_are_read_from_files_and_streams(tmp_path, suffix, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    try:
        Image.fromarray(pixels).convert(mode).save(path)
    except (OSError, KeyError, ValueError):  # a format that does not have this mode
        Image.fromarray(pixels).save(path)
    with path.open("rb") as file:
        from_file = np.asarray(read_image_from(file, name=path.name))
    assert np.array_equal(np.asarray(read_image(path)), from_file)
    with Image.open(path) as image:
        assert np.array_equal(from_file, np.asarray(image.convert("RGB")))

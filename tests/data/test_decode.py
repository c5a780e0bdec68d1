"""Images of every kind to squares of bytes, and the refusal of the rest."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from PIL import Image

from metarun.data.decode import decode, square
from metarun.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge(side: int) -> bytes:
    """A few bytes that claim to be an image of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 10_000, 100_000])
def test_an_enormous_image_is_refused_unread(side: int):
    with pytest.raises(DataError, match=r"^set/a\.png: .*pixels") as caught:
        decode(huge(side), "set/a.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"no image at all", encoded(Image.new("L", (9, 9)))[:40]]
)
def test_what_is_no_image_is_refused(data: bytes):
    with pytest.raises(DataError, match=r"^set/a\.png: not a readable image") as caught:
        decode(data, "set/a.png")
    assert " at 0x" not in str(caught.value)


def test_what_is_of_no_known_format_is_told_which_there_are():
    with pytest.raises(DataError, match=r"\(none of PNG, JPEG, .*, PPM\)"):
        decode(b"<svg/>", "set/a.png")


def test_mutated_images_raise_nothing_else():
    source = random.Random(3)
    noise = Image.frombytes("L", (30, 20), source.randbytes(600))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        sound, refused = encoded(noise, kind), 0
        for _ in range(150):
            data = bytearray(sound)
            for _ in range(source.randint(1, 6)):
                data[source.randrange(len(data))] = source.randrange(256)
            try:
                assert len(square(decode(bytes(data), kind), 8, "L")) == 64
            except DataError:
                refused += 1
        assert refused > 0 or kind == "BMP"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_grey_and_coloured(mode: str):
    image = Image.new("L", (40, 60), 255).convert(mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = Image.frombytes("I;16", (40, 60), b"\xff\xff" * 2400)
    read = decode(encoded(image, "TIFF"), "a")
    assert square(read, 8, "L") == b"\xff" * 64
    assert square(read, 8, "RGB") == b"\xff" * 192


def test_half_of_sixteen_bits_is_half_of_eight():
    image = Image.frombytes("I;16", (4, 4), struct.pack("<H", 32768) * 16)
    assert set(square(decode(encoded(image), "a"), 4, "L")) <= {127, 128}


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 65536), ("I", -1)])
def test_numbers_without_a_known_white_are_refused(mode: str, value: float):
    data = encoded(Image.new(mode, (4, 4), value), "TIFF")
    with pytest.raises(DataError, match=rf"^set/a\.tif: .* \(mode {mode}\)"):
        decode(data, "set/a.tif")
    assert decode(encoded(Image.new("I", (4, 4), 65535), "TIFF"), "a").mode == "I"


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert square(decode(encoded(clear), "a"), 4, "L") == b"\xff" * 16


def test_the_centre_is_kept_and_the_camera_obeyed():
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    assert min(square(wide, 5, "L")) > 230
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    turned = square(decode(encoded(half, exif=exif), "a"), 8, "L")
    assert turned[0] == 0
    assert turned[-1] == 255

"""Encoded images to squares of bytes; refuses what is no image, or an enormous one."""

from __future__ import annotations

import io
import warnings
from typing import Literal, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from metarun.errors import DataError

Mode = Literal["L", "RGB"]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 2**26


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image; `name` is what an error calls it.

    Raises:
        DataError: it is not an image that pillow can read whole, has over 64 million pixels, or
            numbers that are not of 8 or 16 bits, of which nothing tells which is white.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pillow's own, larger limit
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= MOST_PIXELS:
            image.load()
    # Seven decoders meet unknown bytes here, and none of them says what it may raise.
    except Exception as error:
        short = _why(error)
        raise DataError(f"{name}: not a readable image ({short}); replace or remove it") from error
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"{name}: {image.width} x {image.height} pixels, over {MOST_PIXELS}; make it smaller"
        )
    if not _is_bounded(image):
        raise DataError(
            f"{name}: its numbers are not of 8 or 16 bits (mode {image.mode}), and nothing tells "
            "which is white; save it as one of these"
        )
    return image


def _is_bounded(image: Image.Image) -> bool:
    """Tell whether the kind of image says what its largest number is; 16 bits may come as 32."""
    if image.mode != "I":
        return image.mode != "F"
    darkest, lightest = cast(tuple[int, int], image.getextrema())
    return darkest >= 0 and lightest < 2**16


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, UnidentifiedImageError):  # whose text is of an object in memory
        return f"none of {', '.join(FORMATS)}"
    return " ".join(str(error).split())


def square(image: Image.Image, size: int, mode: Mode) -> bytes:
    """Return an image's largest centred square, resized by Lanczos' filter, row by row.

    It is turned as its camera said; what is transparent becomes white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip instead of scaling
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.LANCZOS).tobytes()

"""Characters of many scripts in the DejaVu faces that matplotlib ships: data without a download.

A stand-in for Omniglot: scripts play its alphabets; faces and a small affine jitter, its drawers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metarun.data.counter import uniform
from metarun.data.images import ImageSource, Pictures, Rotations, image_source
from metarun.data.source import Split
from metarun.data.store import stored

if TYPE_CHECKING:
    from PIL.Image import Image as Ink

FORMAT = 1  # raise it whenever the pictures change
IMAGES = 20  # a class
SIZE = 28
FINE = 2 * SIZE  # pictures are drawn at this size, then averaged
INK = 2 * 21  # longer side of an upright character, at that size
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
)
FEWEST_FACES = 4
POINTS = 64
MARGIN = 2
TWINS = 0.43  # apart, in lengths of the fainter: blurred shapes that are nearer are one class
SCRIPTS: dict[str, Split] = {  # by the first word of a character's name
    "LATIN": "train",
    "CANADIAN": "train",
    "CYRILLIC": "train",
    "GREEK": "train",
    "COPTIC": "train",
    "LISU": "train",
    "ARMENIAN": "validation",
    "OLD": "validation",  # Italic
    "HEBREW": "validation",
    "GEORGIAN": "test",
    "ARABIC": "test",
    "LAO": "test",
}


def glyphs(root: Path, *, rotations: Rotations) -> ImageSource:
    """Give few-shot tasks over some 1,000 characters, 20 images of 28 x 28 each, split by script.

    Nothing is read from `root`. The first use draws the images, in seconds, and keeps them; they
    depend on the versions of matplotlib (its faces) and pillow (its rasteriser) alone.
    """
    pictures = stored(f"glyphs/{FORMAT}-matplotlib-{version('matplotlib')}", draw)
    splits: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    for number, name in enumerate(pictures.names):
        splits[SCRIPTS[_script(name)]].append(number)
    return replace(image_source(pictures, splits, rotations), home="glyphs")


def draw() -> Pictures:
    """Draw every class; a class is named as Unicode names its character."""
    from PIL.Image import Resampling, Transform

    shapes = _without_twins(_characters())
    places = torch.meshgrid(*map(torch.arange, (len(shapes), IMAGES, 6)), indexing="ij")
    jitters = (2 * uniform(("glyphs", FORMAT), *places) - 1).tolist()
    pixels = bytearray()
    for faces, drawings in zip(shapes.values(), jitters, strict=True):
        for face, jitter in zip(cycle(faces), drawings, strict=False):
            where = _affine(face, jitter)
            fine = face.transform((FINE, FINE), Transform.AFFINE, where, Resampling.BILINEAR)
            pixels += fine.reduce(FINE // SIZE).tobytes()
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 1, SIZE, SIZE)
    return Pictures(images, (IMAGES,) * len(shapes), tuple(shapes))


def _characters() -> dict[str, list[Ink]]:
    """Return each letter's ink in every face that has it, by name, in the order of Unicode."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    shapes: dict[str, list[Ink]] = {}
    for face in FACES:
        file = str(folder / f"{face}.ttf")
        # Pillow's other layout engine is not everywhere, and joins letters where it is.
        font = ImageFont.truetype(file, POINTS, layout_engine=ImageFont.Layout.BASIC)
        for character in map(chr, sorted(FT2Font(file).get_charmap())):
            if not _is_letter(character):
                continue
            canvas = Image.new("L", (2 * POINTS, 2 * POINTS))
            pen = ImageDraw.Draw(canvas)
            pen.text((POINTS, POINTS), character, fill=255, font=font, anchor="mm")
            left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
            ink = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
            shapes.setdefault(unicodedata.name(character), []).append(canvas.crop(ink))
    known = sorted(shapes, key=unicodedata.lookup)
    return {name: shapes[name] for name in known if len(shapes[name]) >= FEWEST_FACES}


def _is_letter(character: str) -> bool:
    # A decomposition makes it an accented or positional form of another letter.
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo")
        and not unicodedata.decomposition(character)
        and _script(unicodedata.name(character, "?")) in SCRIPTS
    )


def _script(name: str) -> str:
    return name.split()[0]


def _without_twins(shapes: dict[str, list[Ink]]) -> dict[str, list[Ink]]:
    """Keep the first of the characters that look alike, whatever their case or script.

    Latin A, Greek Alpha and Cyrillic A are one class, and so are o and O.
    """
    from PIL import Image, ImageFilter

    views: list[bytes] = []
    for faces in shapes.values():
        view = Image.new("L", (SIZE, SIZE))
        ink = faces[0].crop(faces[0].getbbox())
        ink = ink.resize([max(1, SIZE * side // max(ink.size)) for side in ink.size])
        view.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
        views.append(view.filter(ImageFilter.GaussianBlur(1)).tobytes())
    flat = torch.frombuffer(bytearray(b"".join(views)), dtype=torch.uint8).view(len(views), -1)
    flat = flat.double()  # of whole numbers: sums are exact, so that every machine decides alike
    squares = flat.square().sum(1)
    apart = squares[:, None] + squares - 2 * flat @ flat.T
    twins = apart < TWINS**2 * torch.minimum(squares[:, None], squares)
    kept: list[int] = []
    for number in range(len(views)):
        if not twins[number, kept].any():
            kept.append(number)
    names = list(shapes)
    return {names[number]: shapes[names[number]] for number in kept}


def _affine(face: Ink, jitter: Sequence[float]) -> tuple[float, ...]:
    """Return the map from places in the fine drawing to places in the face, as pillow takes it.

    Of the six numbers in [-1, 1] the first turns by up to 14 degrees; the others shear, stretch
    and shift. Plain arithmetic only: no sine that another machine rounds differently.
    """
    tilt, shear, wide, high, right, down = jitter
    half = tilt / 8  # tangent of half the angle
    cosine, sine = (1 - half**2) / (1 + half**2), 2 * half / (1 + half**2)
    scale = (max(face.size) - 2 * MARGIN) / INK
    across, along = scale * (1 + wide / 5), scale * (1 + high / 5)
    xx, xy = across * (cosine + shear / 4 * sine), across * (shear / 4 * cosine - sine)
    yx, yy = along * sine, along * cosine
    x, y = FINE / 2 + 4 * right, FINE / 2 + 4 * down
    return (xx, xy, face.width / 2 - xx * x - xy * y, yx, yy, face.height / 2 - yx * x - yy * y)

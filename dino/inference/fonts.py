"""Fonts for the names of classes, in any script: the first of the system that has the letters."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FAVOURITE = "DejaVuSans.ttf"  # many scripts, on nearly every Linux; matplotlib ships it
_STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "light", "black", "thin", "emoji")
_PLACEHOLDERS = ("lastresort", "adobeblank")  # fonts that draw one sign for all letters of a script
_WITHOUT_GLYPH = ("Z", "M", "Cc", "Cf")  # categories of Unicode: spaces, marks, control characters
_NO_GLYPH = "\U0010fffe"  # no character: a font draws its sign for missing ones


@lru_cache(maxsize=256)
def load_font(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """Load a font of `size` pixels: Pillow's own, which has Latin letters only, or the TrueType file at `path`.

    Raises:
        ValueError: the file is no font.
    """
    if path is None:
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType and cannot scale labels. Install its wheel.")
        return font
    try:
        return ImageFont.truetype(path, size)
    except OSError as error:
        raise ValueError(f"font must be a TrueType file that Pillow can read, got {path!r}: {error}") from error


def font_for(text: str, size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """Load the font at `path`, or by default the first of Pillow's and the system's that has the letters of a text.

    If none has all of them, it is one that has the most.
    """
    return load_font(size, path if path is not None else _best(_letters([text])))


def missing_letters(texts: Iterable[str], path: str | None = None) -> str:
    """Return the letters of texts that `font_for` cannot draw."""
    missing: set[str] = set()
    for text in set(texts):
        letters = _letters([text])
        chosen = path if path is not None else _best(letters)
        missing |= {letter for letter in letters if not _has(chosen, letter)}
    return "".join(sorted(missing))


def _letters(texts: Iterable[str]) -> frozenset[str]:
    """Return the characters that need a glyph: no spaces, and no marks, which depend on the letter before."""
    return frozenset(c for text in texts for c in text if not unicodedata.category(c).startswith(_WITHOUT_GLYPH))


@lru_cache(maxsize=4096)
def _best(letters: frozenset[str]) -> str | None:
    best, most = None, -1
    for path in _chain():
        count = sum(_has(path, letter) for letter in letters)
        if count > most:
            best, most = path, count
        if count == len(letters):
            break
    return best


def _chain() -> Iterator[str | None]:
    yield None
    yield from _system_fonts()


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Return the font files of the system and of matplotlib, plain ones first."""
    files = [
        os.path.join(folder, name)
        for root in _font_folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf")) and not name.lower().startswith(_PLACEHOLDERS)
    ]

    def rank(file: str) -> tuple[bool, int, bool, str, str]:
        name = os.path.basename(file)
        styles = sum(style in name.lower() for style in _STYLES)
        return name != _FAVOURITE, styles, "sans" not in name.lower(), name, file

    return tuple(sorted(files, key=rank))


def _font_folders() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (home / ".fonts", home / ".local/share/fonts", *(Path(p) / "fonts" for p in shared.split(":")))
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data/fonts/ttf"


@lru_cache(maxsize=65536)
def _has(path: str | None, letter: str) -> bool:
    """Return whether a font draws a letter otherwise than its sign for missing ones."""
    try:
        return _drawn(path, letter) != _drawn(path, _NO_GLYPH)
    except (OSError, ValueError):  # a damaged font, or one of fixed sizes
        return False


def _drawn(path: str | None, letter: str) -> bytes:
    canvas = Image.new("L", (48, 48))
    ImageDraw.Draw(canvas).text((8, 8), letter, fill=255, font=load_font(24, path))
    return canvas.tobytes()

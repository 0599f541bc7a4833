"""Find what to detect in: files, folders, patterns, lists, videos, cameras and streams."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from dino.common.text import counted, shorten
from dino.data import open_image
from dino.data.coco.files import IMAGE_SUFFIXES, is_picture
from dino.data.shards import SUFFIX as SHARD_SUFFIX
from dino.data.shards import shard_of
from dino.data.tar_listing import listing
from dino.inference.video import read_frames

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".flv", ".mjpeg")
LIST_SUFFIX = ".txt"
_STREAMS = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "http", "https")


@dataclass(frozen=True)
class Source:
    """An image, or a video, camera or stream with many."""

    path: str
    """As it was named, or below the folder that was named."""
    name: Path
    """Its path below the given folder, or its file name; output files are named after it."""
    is_video: bool = False

    @property
    def is_endless(self) -> bool:
        """Whether it is a camera or a stream."""
        return self.is_video and not Path(self.path).is_file()

    def frames(self, size_wh: tuple[int, int] | None = None) -> Iterator[tuple[int | None, Image.Image]]:
        """Yield (number, RGB image) of each frame of a video, or (None, RGB image) of an image file.

        Args:
            size_wh: width and height of an image as stated in an annotation file; see `open_image`.

        Raises:
            ImageError: it cannot be read.
            ImportError: a video needs OpenCV.
        """
        if not self.is_video:
            yield None, open_image(self.path, size_wh=size_wh)
            return
        camera = self.path.isdecimal() and not Path(self.path).exists()
        yield from enumerate(read_frames(int(self.path) if camera else self.path))


def is_single_image(source: str | Path | int) -> bool:
    """Return whether a source is one image, as far as its name tells; what does not exist counts as one."""
    if isinstance(source, int):
        return False
    path = Path(source)
    if path.is_file():
        return path.suffix.lower() not in (*VIDEO_SUFFIXES, LIST_SUFFIX, SHARD_SUFFIX)
    return not (path.is_dir() or _stream(str(source)) or _is_camera(str(source)) or glob.has_magic(str(source)))


def find_sources(inputs: Sequence[str | Path | int], *, recursive: bool = False) -> list[Source]:
    """List the images and videos of inputs: each once, those of a folder sorted by name.

    Args:
        inputs: files of any name, folders or tar shards of images, patterns with `*`, `?` or `[` (`**` matches any
            folders), text files with one input per line (relative to the working directory or to the list's folder),
            video files, numbers of cameras, or addresses of streams.
        recursive: include folders inside folders.

    Raises:
        FileNotFoundError: an input does not exist, a folder has no images, or nothing matches a pattern.
        ValueError: an address is no stream, or a list is not text.
    """
    found: dict[Path | str, Source] = {}
    for given in inputs:
        sources = list(_expand(str(given), recursive))
        if not sources:
            raise FileNotFoundError(f"{given}: {_why_nothing(Path(str(given)), recursive)}")
        for source in sources:
            key = source.path if source.is_endless else Path(source.path).resolve()
            found.setdefault(key, source)
    return list(found.values())


def _expand(given: str, recursive: bool, *, in_list: bool = False) -> Iterator[Source]:
    path = Path(given)
    if path.is_file() and path.suffix.lower() == LIST_SUFFIX and not in_list:
        yield from _listed(path, recursive)
    elif path.is_file() and path.suffix.lower() == SHARD_SUFFIX:
        for name in filter(is_picture, listing(path).names()):
            yield Source(f"{given}/{name}", Path(name))
    elif path.is_file() or shard_of(path) is not None:
        yield Source(given, Path(path.name), path.suffix.lower() in VIDEO_SUFFIXES)
    elif path.is_dir():
        for file in sorted(path.rglob("*") if recursive else path.iterdir()):
            if is_picture(file) and file.is_file():
                yield Source(str(file), file.relative_to(path))
    elif _stream(given):
        yield Source(given, Path("".join(c if c.isalnum() or c in ".-" else "_" for c in given)), is_video=True)
    elif _is_camera(given):
        yield Source(given, Path(f"camera-{given}"), is_video=True)
    elif glob.has_magic(given):
        for match in sorted(glob.glob(given, recursive=True)):
            yield from _expand(match, recursive, in_list=True)


def _listed(file: Path, recursive: bool) -> Iterator[Source]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: a list of inputs must be text in UTF-8, one path per line.") from error
    missing = []
    for number, line in enumerate(lines, start=1):
        found = list(_expand(line, recursive, in_list=True)) if line else []
        if line and not found:
            found = list(_expand(str(file.parent / line), recursive, in_list=True))
        missing += [f"{line} (line {number})"] if line and not found else []
        yield from found
    if missing:
        lacking = counted(len(missing), "input does", "inputs do")
        raise FileNotFoundError(f"{file}: {lacking} not exist or hold no image: {shorten(missing, 5)}")


def _is_camera(given: str) -> bool:
    return given.isdecimal()


def _stream(given: str) -> bool:
    """Return whether text is the address of a stream.

    Raises:
        ValueError: it is an address of a picture, or of a kind that is not read.
    """
    if "://" not in given[:12]:
        return False
    parts = urlsplit(given)
    if Path(parts.path).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{given}: images must be local files. Download it first.")
    if parts.scheme.lower() not in _STREAMS:
        raise ValueError(f"{given}: streams are read from {', '.join(_STREAMS)}. Use a local file or one of these.")
    return True


def _why_nothing(path: Path, recursive: bool) -> str:
    if path.is_dir():
        advice = "" if recursive else ". Pass --recursive to include the folders inside"
        videos = [file.name for file in sorted(path.iterdir()) if file.suffix.lower() in VIDEO_SUFFIXES]
        named = f". Its videos have to be named: {shorten(videos, 3)}" if videos else ""
        return f"no images in this folder ({', '.join(IMAGE_SUFFIXES)}){advice}{named}"
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        return "this list is empty"
    if path.is_file():
        return "no images in this shard"
    return "no file matches this pattern" if glob.has_magic(str(path)) else "no such file or folder"

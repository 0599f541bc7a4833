"""What the names of inputs mean: files, folders, patterns, lists, videos, cameras, streams."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.data import ImageError
from dino.inference import video
from dino.inference.files import predict_files
from dino.inference.settings import Settings
from dino.inference.sources import Source, find_sources
from tests.dino.tools_toys import noise_picture, tiny_detector


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Three images, one of them in a folder inside, and a text; the working directory."""
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise_picture().save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Capture:
    """Stands in for OpenCV's VideoCapture: three frames in BGR, or what cannot be opened or read."""

    opened: list[str | int] = []  # noqa: RUF012
    released = 0

    def __init__(self, source):
        self.source, self.count = source, 0
        Capture.opened.append(source)

    def get(self, number):
        assert number == 7
        return {"short": 400.0, "estimated": 6.0, "stream": -1.0}.get(Path(str(self.source)).stem, 3.0)

    def isOpened(self):
        return "closed" not in str(self.source)

    def read(self):
        if self.count == 3 or "empty" in str(self.source):
            return False, None
        self.count += 1
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[..., 0], pixels[..., 2] = self.count, 200
        return True, pixels

    def release(self):
        Capture.released += 1


@pytest.fixture
def opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Capture, CAP_PROP_FRAME_COUNT=7))
    Capture.opened, Capture.released = [], 0


def names(sources):
    return [str(source.name) for source in sources]


def test_a_folder_means_its_images_in_order(album):
    assert names(find_sources([album])) == ["a.JPG", "b.png"]
    assert names(find_sources([album], recursive=True)) == ["a.JPG", "b.png", "deep/er/c.webp"]


def test_patterns_and_files_are_found(album):
    assert names(find_sources([f"{album}/*.png", album / "notes.md"])) == ["b.png", "notes.md"]
    assert names(find_sources([f"{album}/**/*.webp"])) == ["c.webp"]


def test_the_path_is_kept_as_it_was_given(album):
    given = ["b.png", "./deep/er/c.webp", str(album / "a.JPG")]
    assert [source.path for source in find_sources(given)] == given
    assert [source.path for source in find_sources(["deep"], recursive=True)] == ["deep/er/c.webp"]


def test_a_file_named_twice_is_taken_once(album):
    assert names(find_sources([album / "b.png", album, str(album / "deep" / ".." / "b.png")])) == ["b.png", "a.JPG"]


@pytest.mark.parametrize("name", ["a[1].png", "7", "0"])
def test_a_file_whose_name_looks_like_something_else_is_a_file(album, name):
    noise_picture().save(album / name, format="png")
    (source,) = find_sources([name])
    assert not source.is_video and [image.size for _, image in source.frames()] == [(80, 60)]


@pytest.mark.parametrize(
    ("given", "message"),
    [("missing.jpg", "no such file or folder"), ("*.bmp", "no file matches"), ("deep", "no images.*--recursive")],
)
def test_an_input_without_images_is_named(album, given, message):
    with pytest.raises(FileNotFoundError, match=f"{given.replace('*', '.*')}: .*{message}"):
        find_sources([album / "a.JPG", album / given])


def test_videos_of_a_folder_without_images_are_named(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(FileNotFoundError, match=r"videos have to be named: clip\.mp4"):
        find_sources([tmp_path])


# Lists


def test_a_list_has_one_input_per_line(album):
    (album / "lists").mkdir()
    (album / "lists/here.png").write_bytes((album / "b.png").read_bytes())
    content = "\ufeffb.png\r\n\n  deep/er \n*.JPG\nhere.png\n"  # relative to the working directory or to the list
    (album / "lists/list.txt").write_text(content, encoding="utf-8")
    assert names(find_sources(["lists/list.txt"])) == ["b.png", "c.webp", "a.JPG", "here.png"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"b.png\nno.png\nnor.png\n", FileNotFoundError, r"list\.txt: 2 inputs do not exist.*no\.png \(line 2\), nor"),
        (b"no.png", FileNotFoundError, r"list\.txt: 1 input does not exist"),
        (b"\n", FileNotFoundError, "this list is empty"),
        (b"\xff\xfe\x00b", ValueError, "must be text in UTF-8"),
    ],
)
def test_a_list_with_what_is_not_there_is_named(album, content, error, message):
    (album / "list.txt").write_bytes(content)
    with pytest.raises(error, match=message):
        find_sources(["list.txt"])


# Videos


def test_a_video_gives_its_frames_with_their_numbers(opencv, detector, tmp_path):
    (tmp_path / "clip.MP4").touch()
    sources = find_sources([tmp_path / "clip.MP4"])
    outcomes = list(predict_files(detector, sources, Settings(threshold=0.0, top_k=2), pictures=tmp_path / "out"))
    assert [(o.image["id"], o.image["frame"], o.image["picture"]) for o in outcomes] == [
        (k + 1, k, f"clip.MP4/{k:06}.jpg") for k in range(3)
    ]
    assert {o.image["file_name"] for o in outcomes} == {str(tmp_path / "clip.MP4")}
    assert [o.found.image.getpixel((0, 0)) for o in outcomes if o.found and o.found.image] == [
        (200, 0, k) for k in (1, 2, 3)
    ]  # RGB
    assert Image.open(tmp_path / "out/clip.MP4/000002.jpg").size == (800, 600)
    assert Capture.released == 1


def test_frames_are_left_out_on_request_and_ids_count_images(opencv, detector, album):
    (album / "clip.avi").touch()
    sources = find_sources(["clip.avi", "b.png"])
    outcomes = list(predict_files(detector, sources, Settings(), every=2))
    assert [(o.image["id"], o.image.get("frame")) for o in outcomes] == [(1, 0), (2, 2), (3, None)]


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("0", 0),
        (0, 0),
        ("rtsp://user@host:554/live", "rtsp://user@host:554/live"),
        ("http://host:8080/video", "http://host:8080/video"),
        ("https://host/clip.mp4?x=1", "https://host/clip.mp4?x=1"),
    ],
)
def test_cameras_and_streams_are_opened(opencv, given, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = find_sources([given])
    assert source.is_video and source.is_endless and len(list(source.frames())) == 3
    assert Capture.opened == [opened] and "/" not in str(source.name) and source.path == str(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://example.com/cat.jpg", "images must be local files"),
        ("http://example.com/a/b.PNG?size=3", "images must be local files"),
        ("s3://bucket/clip.mp4", "streams are read from rtsp"),
        ("file:///tmp/a.mp4", "Use a local file"),
    ],
)
def test_other_addresses_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        find_sources([given])


@pytest.mark.parametrize(
    ("name", "message"), [("closed.mp4", "cannot be opened as a video"), ("empty.mp4", "no frame")]
)
def test_a_video_that_cannot_be_read_is_noted(opencv, detector, album, name, message):
    (album / name).touch()
    outcomes = list(predict_files(detector, find_sources([name, "b.png"]), Settings()))
    assert message in (outcomes[0].unreadable or "") and outcomes[1].image["id"] == 2
    assert Capture.released == 1


@pytest.mark.parametrize(("name", "stops"), [("short.mp4", True), ("estimated.mp4", False), ("stream.mp4", False)])
def test_a_video_that_stops_early_is_noted_after_its_frames(opencv, detector, album, name, stops):
    (album / name).touch()
    outcomes = list(predict_files(detector, find_sources([name, "b.png"]), Settings()))
    assert [outcome.image.get("id") for outcome in outcomes] == [1, 2, 3, *([None] if stops else []), 4]
    message = f"{name}: stopped after 3 of about 400 frames. The file may be damaged or incomplete."
    assert [outcome.incomplete for outcome in outcomes if outcome.incomplete] == [message] * stops
    with pytest.warns(UserWarning, match="3 of about 400") if stops else contextlib.nullcontext():
        assert len(list(detector(name))) == 3


def test_a_reader_that_stops_early_releases_the_video(opencv, tmp_path):
    (tmp_path / "clip.mp4").touch()
    frames = Source(str(tmp_path / "clip.mp4"), Path("clip.mp4"), is_video=True).frames()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert Capture.released == 1


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'clip\.mp4: .*pip install "dino-kernels\[video\]"'):
        next(video.read_frames("clip.mp4"))


# The same from Python


def test_a_detector_takes_everything(opencv, detector, album):
    (album / "clip.mp4").touch()
    (album / "list.txt").write_text("b.png\ndeep/er\n")
    one = detector("b.png", 0.0)
    assert (one.path, one.frame) == ("b.png", None) and len(detector(["b.png", album / "a.JPG"], 0.0)) == 2
    assert len(detector(np.zeros((60, 80, 3), np.uint8), 0.0, top_k=5)) == 5
    expected = {
        ".": ["a.JPG", "b.png"],
        "*.png": ["b.png"],
        "list.txt": ["b.png", "deep/er/c.webp"],
        "clip.mp4": ["clip.mp4"] * 3,
    }
    for source, paths in expected.items():
        found = list(detector(source, 0.0, top_k=4))
        assert [each.path for each in found] == paths and all(len(each) == 4 for each in found), source
    assert [found.frame for found in detector(0)] == [0, 1, 2]


def test_an_iterator_is_lazy_and_warns_of_what_it_leaves_out(detector, album):
    (album / "a.JPG").write_text("broken")
    with pytest.warns(UserWarning, match=r"left out: a\.JPG: cannot be read"):
        assert [found.path for found in detector(album.relative_to(album))] == ["b.png"]
    with pytest.raises(ImageError, match=r"a\.JPG"):
        list(detector("*.JPG"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        detector("*.bmp")
    with pytest.raises(ImageError, match="does not exist"):
        detector("missing.jpg")

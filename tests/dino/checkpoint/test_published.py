"""Published checkpoints by name: made files on loopback, whole, cut short, of another hash, missing; and no network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

import dino
from dino.checkpoint import CheckpointError, published
from dino.checkpoint.find import load_trained
from dino.checkpoint.layouts import VARIANTS
from dino.checkpoint.published import _MEGABYTES, PUBLISHED, Published
from dino.commands import main
from dino.common.download import DownloadError, download
from dino.model.config import PRESETS, ModelConfig
from dino.model.dino import DINO
from tests.dino.checkpoint.test_load import in_layout

SMALL = {
    "backbone": "resnet_tiny",
    "hidden_dim": 64,
    "ffn_dim": 96,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_queries": 20,
}


class Server:
    """Serves bytes by path; can end answers early, ignore ranges, or fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.bytes_per_answer: int | None = None
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                content = server.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = None if server.bytes_per_answer is None else start + server.bytes_per_answer
                self.wfile.write(content[start:end])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on loopback, and an empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def random_model(layout: str) -> DINO:
    """A small model as `layout` has them, with every tensor random."""
    torch.manual_seed(0)
    model = DINO(ModelConfig(num_classes=80, **SMALL, **VARIANTS[layout]))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    return model.eval()


def published_file(model: DINO, layout: str) -> bytes:
    """The model's weights as the project would have published them."""
    theirs = in_layout(model, layout)
    file = io.BytesIO()
    torch.save({"model": theirs} if layout == "detrex" else {"state_dict": theirs, "meta": {"epoch": 12}}, file)
    return file.getvalue()


def publish(server: Server, monkeypatch, layout: str, *, digest: str | None = None) -> Published:
    """Serve a made file under a name."""
    content = published_file(random_model(layout), layout)
    digest = hashlib.sha256(content).hexdigest()[:8] if digest is None else digest
    path = f"/release/made_{layout}-{digest}.pth"
    server.files[path] = content
    row = Published(f"{layout}-made", f"{server.url}{path}", 1.0, layout, "dino_4scale_r50", SMALL)
    monkeypatch.setitem(published.PUBLISHED, row.name, row)
    return row


@pytest.mark.parametrize("layout", ["detrex", "mmdet"])
def test_a_name_loads_the_model_with_its_classes(server, monkeypatch, layout):
    row = publish(server, monkeypatch, layout)
    detector = dino.Detector.from_pretrained(row.name, device="cpu", dtype="float32")
    assert detector.categories.names[0] == "person" and detector.categories.ids[-1] == 90
    assert detector.file == row.path
    expected = random_model(layout)
    if layout == "mmdet":  # it has no biases in the neck
        for level in range(4):
            expected.get_parameter(f"neck.projections.{level}.conv.bias").data.zero_()
    images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        theirs, ours = expected(images, mask), detector.model(images, mask)
    assert torch.equal(theirs.logits, ours.logits) and torch.equal(theirs.boxes_cxcywh, ours.boxes_cxcywh)
    dino.Detector.from_checkpoint(row.name, device="cpu")
    assert len(server.requests) == 1  # the second time it is in the cache


@pytest.mark.parametrize("layout", ["detrex", "mmdet"])
def test_the_file_alone_loads_with_the_preset_and_gets_the_layouts_configuration(server, monkeypatch, tmp_path, layout):
    row = publish(server, monkeypatch, layout)
    path = tmp_path / "renamed.pth"
    path.write_bytes(row.download().read_bytes())
    found = load_trained(path, preset="dino_4scale_r50", **SMALL)
    assert {name: getattr(found.model.config, name) for name in VARIANTS[layout]} == VARIANTS[layout]
    with pytest.raises(CheckpointError, match=r"do not share their heads\. Build the model with shared_heads=False"):
        load_trained(path, preset="dino_4scale_r50", shared_heads=True, **SMALL)
    if layout == "detrex":
        with pytest.raises(CheckpointError, match=r"embeds positions in another way.*position_temperature=10000"):
            load_trained(path, preset="dino_4scale_r50", position_temperature=20.0, **SMALL)


def test_a_file_that_is_cut_short_is_resumed_in_the_same_call(server, monkeypatch):
    row = publish(server, monkeypatch, "detrex")
    content = next(iter(server.files.values()))
    server.bytes_per_answer = len(content) // 2 - 10
    assert row.download().read_bytes() == content
    assert [start for _, start in server.requests] == [
        None,
        f"bytes={server.bytes_per_answer}-",
        f"bytes={2 * server.bytes_per_answer}-",
    ]


def test_a_download_is_resumed_by_the_next_call(server, monkeypatch):
    row = publish(server, monkeypatch, "detrex")
    path, content = next(iter(server.files.items()))
    server.bytes_per_answer = 1000
    monkeypatch.setattr("dino.common.download._ATTEMPTS", 1)
    row.path.parent.mkdir(parents=True)
    part = row.path.with_name(f"{row.path.name}.part")
    part.write_bytes(content[:1000])
    server.files.clear()
    with pytest.raises(DownloadError, match="HTTP 404"):
        row.download()
    assert part.read_bytes() == content[:1000] and not row.path.exists()
    server.files[path] = content
    server.bytes_per_answer = None
    assert row.download().read_bytes() == content
    assert server.requests[-1][1] == "bytes=1000-" and not part.exists()


def test_a_server_without_ranges_sends_the_whole_file_again(server, monkeypatch):
    row = publish(server, monkeypatch, "mmdet")
    content = next(iter(server.files.values()))
    row.path.parent.mkdir(parents=True)
    row.path.with_name(f"{row.path.name}.part").write_bytes(b"x" * 999)
    server.ranges = False
    assert row.download().read_bytes() == content


def test_a_connection_that_brings_nothing_ends_the_download_with_its_reason(server, monkeypatch):
    row = publish(server, monkeypatch, "mmdet")
    server.bytes_per_answer = 0
    with pytest.raises(DownloadError, match=r"(cut short after 0 of [\d,]+ bytes|IncompleteRead)"):
        row.download()
    assert len(server.requests) == 3


def test_a_file_of_another_hash_is_deleted(server, monkeypatch):
    row = publish(server, monkeypatch, "detrex", digest="01234567")
    with pytest.raises(DownloadError, match=r"SHA-256 must begin with 01234567, got [0-9a-f]{8}; it was deleted"):
        row.download()
    assert list(row.path.parent.iterdir()) == []


@pytest.mark.parametrize("reason", ["missing", "no network"])
def test_the_error_has_the_address_and_where_the_file_belongs(server, monkeypatch, capsys, tmp_path, reason):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48)).save(photo)
    row = publish(server, monkeypatch, "detrex")
    server.files.clear()
    if reason == "no network":
        server.http.shutdown()
        server.http.server_close()
    assert main(["predict", "--checkpoint", row.name, str(photo), "--device", "cpu"]) == 2
    text = capsys.readouterr().err
    for part in (row.name, row.url, f"Put that file at {row.path}", "404" if reason == "missing" else "refused"):
        assert part in text
    assert "Traceback" not in text


def test_several_processes_or_threads_download_once(server, monkeypatch):
    row = publish(server, monkeypatch, "detrex")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(row.download())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [row.path] * 4 and len(server.requests) == 1


def test_a_file_without_a_hash_is_checked_by_its_size_alone(server):
    server.files["/plain.pth"] = b"abc" * 1000
    assert download(f"{server.url}/plain.pth", what="plain").read_bytes() == b"abc" * 1000


def test_finetune_takes_the_published_model(server, monkeypatch, tmp_path):
    from dino.commands.train import parse

    row = publish(server, monkeypatch, "detrex")
    config = parse(["--data", str(tmp_path), "--finetune", row.name, "--output", str(tmp_path)])
    assert dataclasses.replace(config.model, num_classes=80) == row.config
    assert server.requests == []  # nothing is downloaded before the training


def test_a_wrong_name_suggests_the_right_one(capsys):
    with pytest.raises(ValueError, match="Perhaps you meant 'detrex-4scale-r50-24ep'"):
        dino.Detector.from_pretrained("detrex-4scale-r50-24")
    with pytest.raises(FileNotFoundError, match=r"Perhaps you meant 'detrex-4scale-r50-24ep'.*dino weights"):
        dino.Detector.from_checkpoint("detrex-4scale-r50-24")
    assert main(["weights", "mmdet-4scale-r50"]) == 2
    assert "Perhaps you meant 'mmdet-4scale-r50-12ep'" in capsys.readouterr().err


def test_a_name_has_its_own_configuration(server, monkeypatch):
    row = publish(server, monkeypatch, "detrex")
    with pytest.raises(CheckpointError, match="detrex-made: has its own configuration, which contradicts preset"):
        dino.Detector.from_checkpoint(row.name, preset="dino_5scale_swin_l")
    assert server.requests == []


def test_the_table_lists_every_name_and_what_is_in_the_cache(server, monkeypatch, capsys):
    row = publish(server, monkeypatch, "detrex")
    assert main(["weights", row.name]) == 0
    assert capsys.readouterr().out.strip() == str(row.path)
    assert main(["weights", "--addresses"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^{name}  .*{row.ap}", text, re.M) and row.url in text for name, row in PUBLISHED.items())
    assert [line.split()[0] for line in text.splitlines() if "in the cache" in line] == [row.name]
    assert max(map(len, (line for line in text.splitlines() if "://" not in line and "/hub/" not in line))) <= 110


@pytest.mark.parametrize("key", _MEGABYTES)
def test_sizes_are_those_of_the_weights(key):
    rows = [row for row in PUBLISHED.values() if row.overrides.get("backbone", row.preset) == key]
    assert rows and all(row.megabytes == _MEGABYTES[key] for row in rows)
    with torch.device("meta"):
        tensors = DINO(rows[0].config).state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.is_floating_point())
    assert abs(size / 1e6 - _MEGABYTES[key]) < 1


def test_the_list_is_consistent():
    for row in PUBLISHED.values():
        assert row.url.startswith("https://") and row.url.endswith(".pth") and row.preset in PRESETS
        assert 45 < row.ap < 60 and row.name.startswith(f"{row.layout}-")
        assert row.config.shared_heads is False and row.config.num_classes == row.categories.num_classes == 80
    assert len({row.path for row in PUBLISHED.values()}) == len(PUBLISHED)  # no two share a file in the cache

"""Download files into torch's cache, with progress, and resume what was cut short."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from dino.common.console import Console

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
# Attempts in a row without a new byte.
_ATTEMPTS = 3


class DownloadError(ConnectionError):
    """A file that could not be downloaded. The message names the address, the reason, and where to put the file."""


def cached_path(url: str) -> Path:
    """Return where a file is kept: in torch's cache, under the last part of its address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def download(url: str, *, what: str) -> Path:
    """Return the path of a file in torch's cache, downloading it if it is not there.

    A file appears under its name when it is complete and has the right hash. Until then its bytes are in a `.part`
    file, from which the next call continues. Processes that need the same file wait for the one that downloads it.

    Args:
        url: the address. A name that ends in "-0123abcd" before its suffix states the first digits of the SHA-256.
        what: the name of the file's content, for the progress bar and errors.

    Raises:
        DownloadError: the address cannot be reached or has no such file, or the file has another size or hash.
    """
    path = cached_path(url)
    if path.exists():
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            if path.exists():  # another process has downloaded it
                return path
            _fetch(url, file, what)
            file.flush()
            _check_hash(path, part)
            part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        reason = f"HTTP {error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise DownloadError(
            f"{what}: could not be downloaded from {url} ({reason or type(error).__name__}). Put that file at {path}"
        ) from error
    return path


def _fetch(url: str, file: Any, what: str) -> None:
    """Append the rest of a file, with new connections as long as they bring bytes."""
    failures = 0
    bar = None
    reason: Exception = ConnectionError("no attempt was made")
    try:
        while failures < _ATTEMPTS:
            done = file.seek(0, 2)
            request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                    if done and response.status != 206:  # the server sends the file from its beginning
                        file.truncate(0)
                        done = 0
                    length = response.headers.get("Content-Length")
                    total = None if length is None else done + int(length)
                    if bar is None:
                        bar = Console(sys.stderr).bar([], f"{what}, MB", total=None if total is None else total >> 20)
                        bar.update(done >> 20)
                    while chunk := response.read(_CHUNK):
                        file.write(chunk)
                        bar.update((file.tell() >> 20) - bar.n)
                    if total is None or file.tell() == total:
                        return
                    reason = ConnectionError(f"cut short after {file.tell():,} of {total:,} bytes")
            except urllib.error.HTTPError as error:
                if error.code == 416:  # nothing is left, or the file on the server is shorter: the hash tells
                    return
                if error.code < 500:
                    raise
                reason = error
            except (OSError, http.client.HTTPException) as error:
                reason = error
            file.flush()
            failures = 0 if file.seek(0, 2) > done else failures + 1
        raise reason
    finally:
        if bar is not None:
            bar.close()


def _check_hash(path: Path, part: Path) -> None:
    """Delete a downloaded file that has not the hash in its name."""
    expected = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if expected is None:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected[1]):
        part.unlink()
        raise ConnectionError(f"its SHA-256 must begin with {expected[1]}, got {found[:8]}; it was deleted")

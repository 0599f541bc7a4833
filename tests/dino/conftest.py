"""Leave out the detector's tests where its packages are not installed; float32 on every CPU unless a test says so."""

from collections.abc import Iterator

import pytest
import torch

try:
    import dino  # noqa: F401
except ImportError as error:
    print(f"tests/dino is left out: {error}")
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True, scope="session")
def no_bfloat16_instructions() -> Iterator[None]:
    """Let "auto" be float32 on CPUs with bfloat16 instructions, too: detections are compared bit by bit."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            patch.setattr(torch.cpu, name, lambda: False, raising=False)
        yield

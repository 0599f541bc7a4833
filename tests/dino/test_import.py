"""The detector's packages are an extra: importing `dino` without them names it, `dino_kernels` does without."""

from __future__ import annotations

import re

import pytest

BLOCKED = (
    "import sys\nfor name in ('PIL', 'safetensors', 'faster_coco_eval', 'tqdm', 'tyro'): sys.modules[name] = None\n"
)


def test_kernels_work_without_the_detectors_packages(run_python):
    program = BLOCKED + "import dino_kernels.nn, dino_kernels.testing, torch\ndino_kernels.nn.MSDeformAttn(32, 2, 4, 2)"
    assert run_python(program) == ""


def test_the_detector_names_the_extra(run_python):
    program = BLOCKED + "try: import dino\nexcept ImportError as error: print(error)"
    printed = run_python(program)
    assert re.match(r"dino needs pillow, safetensors, faster-coco-eval, tqdm, tyro", printed)
    assert 'pip install "dino-kernels[detector]"' in printed


def test_a_single_missing_package_is_named_and_no_other(run_python):
    program = (
        "import sys; sys.modules['tyro'] = None\ntry: import dino.commands\nexcept ImportError as error: print(error)"
    )
    assert run_python(program).startswith("dino needs tyro. Install the detector's packages")


def test_every_public_name_exists():
    import dino

    assert all(getattr(dino, name) is not None for name in dino.__all__) and set(dino.__all__) <= set(dir(dino))
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        _ = dino.Detectr


def test_help_imports_no_torch(run_python):
    assert run_python("import sys, dino.__main__; print('torch' in sys.modules)").strip() == "False"

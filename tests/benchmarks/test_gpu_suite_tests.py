"""`make gpu` runs its tests in order, in parallel where it can, and without packages that a GPU machine may lack."""

from __future__ import annotations

import re
import sys
import time
from itertools import groupby
from pathlib import Path

from benchmarks.gpu import tests

# What a machine with a GPU may lack, and what needs it is skipped.
MISSING = ("tyro", "expecttest", "faster_coco_eval", "deformops", "mmcv", "lap", "torch_linear_assignment")
COLLECT = f"""
import sys, pytest
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
code = pytest.main(["--gpu", "--fuzz", "50", "--collect-only", "-q", "-p", "no:cacheprovider"])
assert code == 0, code
import os
print("tuning:", os.environ["DINO_KERNELS_TRITON_TUNE"])
"""


def backend_of(parameters: str) -> str:
    names = re.findall(r"\b(?:cuda|triton)\b", parameters.replace("_", " "))
    assert names, f"a test that touches no GPU: {parameters}"
    return "cuda" if "cuda" in names else "triton"


def test_the_gpu_selection_is_collected_in_order_without_the_packages_that_may_be_missing(run_python):
    printed = run_python(COLLECT)
    ids = [line for line in printed.splitlines() if re.match(r"tests/\S+\.py::", line)]
    assert "error" not in printed.splitlines()[-1] and len(ids) > 1000
    files = [name for name, _ in groupby(line.partition("::")[0].removeprefix("tests/") for line in ids)]
    assert files[:2] == ["gpu/test_attention.py", "gpu/test_criterion.py"]
    assert files[2:6] == [
        "gpu/test_matching.py",
        "cuda/test_determinism.py",
        "cuda/test_kernels.py",
        "cuda/test_matching.py",
    ]
    # Every test of the CUDA kernels, then a few of each test's variants by Triton; compilers last.
    backends = [backend_of(line.partition("[")[2]) for line in ids]
    assert [name for name, _ in groupby(backends)] == ["cuda", "triton"]
    by_triton = [line.partition("[")[0] for line, backend in zip(ids, backends, strict=True) if backend == "triton"]
    assert max(by_triton.count(name) for name in set(by_triton)) <= 2
    first_of_triton = files.index("gpu/test_attention.py", 1)
    last = [f"ops/contract/test_{name}.py" for name in ("compile", "export", "opcheck")]
    assert files[first_of_triton - 3 : first_of_triton] == last
    assert "tuning: 0" in printed.splitlines(), "nothing is measured in tests"


def test_options_are_those_of_the_plugins_that_are_installed():
    bare = tests.options(8, lambda module: False)
    assert {"--gpu", "--continue-on-collection-errors"} <= set(bare)
    assert not {"-n", "--timeout", "--maxfail=10"} & set(bare)
    both = tests.options(8, lambda module: True)
    assert both[both.index("-n") + 1] == "8" and both[both.index("--timeout-method") + 1] == "thread"
    alone = tests.options(8, lambda module: module == "pytest_timeout")
    assert "-n" not in alone and alone[alone.index("--timeout-method") + 1] == "signal"


def test_tests_that_take_too_long_are_interrupted_and_still_sum_up(tmp_path: Path, capfd):
    file = tmp_path / "test_slow.py"
    file.write_text("import time\ndef test_quick(): pass\ndef test_slow(): time.sleep(1000)\n")
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)]
    assert tests.run(command, 6.0) == 1
    assert time.monotonic() - start < 6.0 + tests.SUMMARY_S
    printed = capfd.readouterr().out
    assert "1 passed" in printed and "the tests were ended after 6 s" in printed


def test_a_run_that_ends_gives_its_exit_code():
    assert tests.run([sys.executable, "-c", "raise SystemExit(5)"], 60.0) == 5

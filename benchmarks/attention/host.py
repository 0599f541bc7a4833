"""Measure the host's share of a call: time and function calls with almost nothing to compute.

    python -m benchmarks.attention.host                          # this checkout
    python -m benchmarks.attention.host --against ../old         # and another one, in turns with it

Each checkout runs in its own process, on one thread. Times are the processor's, of the calling thread, so that
other processes count less. Two checkouts take turns every few milliseconds; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((6, 8), (3, 4), (1, 3), (1, 1))  # S = 64
QUERIES, HEADS, CHANNELS, POINTS = 8, 8, 32, 4
OPS = ("ms_deform_attn", "fused_ms_deform_attn")
# The last is a decoder's share: six calls for one call of torch.autograd.grad, which takes a quarter of a call's time.
PASSES = ("inference", "forward", "forward + backward", "forward + backward of 6 layers")
LAYERS = 6
CALLS = [
    f"{op}, {shapes}, {passes}" for op in (*OPS, "MSDeformAttn") for shapes in ("list", "tensor") for passes in PASSES
]
PER_TURN = 30  # calls that one turn times


class Worker:
    """A process that imports the package from one checkout and times calls on request."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--worker", str(checkout)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, call: str, what: str) -> list[float]:
        """Return the seconds of one call, or how many functions it calls, as a list of these one or two numbers."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([call, what]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process that runs {call!r} ended. See its error above.")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(checkout: str) -> None:
    """Answer the requests of `Worker.measure` on standard input, for the package of this checkout."""
    sys.path.insert(0, checkout)
    import torch

    import dino_kernels

    assert Path(dino_kernels.__file__).is_relative_to(checkout), dino_kernels.__file__
    torch.set_num_threads(1)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, what = json.loads(line)
        if name not in calls:
            calls[name] = _call_of(name)
            for _ in range(20):
                calls[name]()
        number = LAYERS if name.endswith("layers") else 1
        measure = _seconds if what == "seconds" else _functions
        print(json.dumps([result / number for result in measure(calls[name])]), flush=True)


def _call_of(name: str) -> Callable[[], Any]:
    import torch

    op, shapes, passes = name.split(", ")
    make = _module if op == "MSDeformAttn" else _public_function
    function, inputs = make(op, shapes)
    if passes == "inference":

        def run() -> Any:
            with torch.no_grad():
                return function(**inputs)

        return run
    if passes == "forward":
        return lambda: function(**inputs)
    layers = [make(op, shapes) for _ in range(LAYERS if passes.endswith("layers") else 1)]
    leaves = []
    for function, inputs in layers:
        leaves += [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
        leaves += list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    grads = [torch.ones_like(function(**inputs)) for function, inputs in layers]
    return lambda: torch.autograd.grad([function(**inputs) for function, inputs in layers], leaves, grads)


def _public_function(op: str, shapes: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    import torch

    import dino_kernels
    from dino_kernels.testing import Case, sample_inputs

    case = Case("tiny", 1, QUERIES, HEADS, CHANNELS, SHAPES, (POINTS,) * len(SHAPES))
    inputs = sample_inputs(op, case, torch.float32)
    if shapes == "list":
        inputs |= {"spatial_shapes": list(SHAPES), "level_start_index": None}
    return getattr(dino_kernels, op), inputs


def _module(_: str, shapes: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    import torch

    from dino_kernels.nn import MSDeformAttn

    torch.manual_seed(0)
    channels, rows = 32, sum(height * width for height, width in SHAPES)
    inputs: dict[str, Any] = {
        "query": torch.randn(1, QUERIES, channels, requires_grad=True),
        "reference_points": torch.rand(1, QUERIES, len(SHAPES), 2),
        "input_flatten": torch.randn(1, rows, channels, requires_grad=True),
        "input_spatial_shapes": list(SHAPES) if shapes == "list" else torch.tensor(SHAPES),
    }
    if shapes == "tensor":
        inputs["input_level_start_index"] = torch.tensor([0, 48, 60, 63])
    return MSDeformAttn(channels, len(SHAPES), 4, 2), inputs


def _seconds(call: Callable[[], Any]) -> list[float]:
    start = thread_time()
    for _ in range(PER_TURN):
        call()
    return [(thread_time() - start) / PER_TURN]


def _functions(call: Callable[[], Any]) -> list[int]:
    """Count the Python and C functions that a call calls, without itself."""
    counts = {"call": -1, "c_call": -1}  # the call, and what ends the count

    def count(_frame: Any, event: str, _argument: Any) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(count)
    call()
    sys.setprofile(None)
    return list(counts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, built, to compare with")
    parser.add_argument("--rounds", type=int, default=200, help="turns of each checkout a row (200)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows that contain this text")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker)
        return
    checkouts = [ROOT, *([arguments.against.resolve()] if arguments.against else [])]
    workers = [Worker(checkout) for checkout in checkouts]
    against = " | against | Python + C | ratio" if arguments.against else ""
    print(f"| call | us | Python + C functions{against} |\n|---{'|---:' * (5 if against else 2)}|")
    for call in [call for call in CALLS if arguments.only in call]:
        rounds = [[worker.measure(call, "seconds") for worker in workers] for _ in range(arguments.rounds)]
        cells = [call]
        for number, worker in enumerate(workers):
            cells.append(f"{median(seconds[number][0] for seconds in rounds) * 1e6:.1f}")
            cells.append(" + ".join(f"{count:.0f}" for count in worker.measure(call, "functions")))
        if len(workers) == 2:
            cells.append(f"{median(ours[0] / theirs[0] for ours, theirs in rounds):.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()

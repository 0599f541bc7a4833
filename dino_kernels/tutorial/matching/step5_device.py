"""Step 5: the real op: costs and assignments stay on the device. No copy to the host, no wait, one call for the step.

python -m dino_kernels.tutorial.matching.step5_device
"""

from __future__ import annotations

from dino_kernels import hungarian_match, linear_sum_assignment
from dino_kernels.tutorial.counting import host_reads
from dino_kernels.tutorial.matching import step1_scipy
from dino_kernels.tutorial.matching.problem import Matching, Step


def match(given: Step) -> Matching:
    """Return the query of each target and the duals, from the same costs as the other steps."""
    offsets = given.inputs["targets"].offsets
    found = linear_sum_assignment(given.cost, offsets=offsets, full_output=True)
    return Matching(found.columns, found.row_duals, found.column_duals)


def match_predictions(given: Step) -> Matching:
    """Return the query of each target from logits and boxes: costs included, which are never written on a CPU."""
    return Matching(hungarian_match(**given.inputs).query_idx)


def why(given: Step) -> str:
    """Count what makes this step what it is."""
    before, now = host_reads(lambda: step1_scipy.match(given)), host_reads(lambda: match_predictions(given))
    return f"reads of a tensor by the host, each a copy and a wait on a GPU: {before} in step 1, {now} here"


if __name__ == "__main__":
    from dino_kernels.tutorial.matching.run import main

    main("step5_device")

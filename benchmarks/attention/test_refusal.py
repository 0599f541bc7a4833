"""A wrong kernel gets no speed, whether its result, its gradient or only the end of a large call is wrong."""

from __future__ import annotations

import pytest
import torch

import dino_kernels
from benchmarks.attention.peers import Implementation, implementations
from benchmarks.attention.stage import PASSES, AttentionStage, baseline
from benchmarks.attention.workloads import decoder
from benchmarks.measure.playback import report_one
from benchmarks.measure.results import Results
from benchmarks.measure.stage import Contestant, measure

OP = "fused_ms_deform_attn"
CASE = decoder("planted", 300, ((20, 30), (10, 15)), points=(4, 4))
PLANTED = Contestant("planted", "fp32", ours=True)


def off_by_a_percent(output, inputs):
    return output * 1.01


def gradient_off(output, inputs):
    value = inputs["value"]
    return output + 0.1 * (value - value.detach()).sum()


def last_query_missed_in_large_calls(output, inputs):
    keep = torch.ones(output.shape[1], 1)
    keep[-1] = 0 if output.shape[1] == CASE.queries else 1
    return output * keep


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (off_by_a_percent, "output: max error"),
        (gradient_off, "grad_value level 0: max error"),
        (last_query_missed_in_large_calls, "at full size"),
    ],
)
def test_wrong_kernel_is_refused_with_the_accuracy_message(spoil, message):
    def run(op, inputs):
        return spoil(getattr(dino_kernels, op)(**inputs, backend="reference"), inputs)

    known = implementations() | {"planted": Implementation("planted", True, run, lambda op, inputs: None)}
    outcome = measure(AttentionStage(OP, CASE, "cpu", known), [baseline("fp32"), PLANTED], 0.1, 2)
    results = Results("short", "cpu")
    for which in PASSES:
        assert PLANTED not in outcome.timings[which]
        with pytest.raises(pytest.fail.Exception, match="no speed for a wrong kernel") as failure:
            report_one("speed", {"op": OP, "workload": CASE.id}, which, PLANTED, outcome, results, benchmark=None)
        assert message in str(failure.value)
    assert not results.document["speed"]
    assert results.document["wrong"]

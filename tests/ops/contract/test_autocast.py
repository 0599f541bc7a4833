"""Autocast does not change what an op computes: attention follows the dtype of `value`, matching is in float32."""

from __future__ import annotations

import pytest
import torch

from tests.ops.contract.calls import assert_close, perform


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_changes_nothing(subject, deterministic, dtype):
    inputs = subject.inputs()
    if "logits" in inputs:
        inputs["logits"][0, 0, 0] = 12.0  # a cost that is infinite in float16
    device = next(value for value in inputs.values() if isinstance(value, torch.Tensor)).device.type
    expected = perform(subject.op, inputs, subject.backend)
    with torch.autocast(device, dtype):
        results = perform(subject.op, inputs, subject.backend)
    assert all(result.dtype == expected[name].dtype for name, result in results.items())
    assert_close(results, expected, subject.backend)

"""Cases, sample inputs and accuracy assertions, shared by tests and benchmarks.

>>> from dino_kernels.testing import CASES, assert_accurate, sample_inputs
>>> assert_accurate("ms_deform_attn", sample_inputs("ms_deform_attn", CASES[0], torch.bfloat16), "cpu")
"""

from dino_kernels.testing.accuracy import Result, assert_result_accurate, random_grad_output, run
from dino_kernels.testing.attention import CASES, DTYPES, Case, assert_accurate, sample_inputs
from dino_kernels.testing.matching import (
    ASSIGNMENT_CASES,
    MATCHING_CASES,
    AssignmentCase,
    MatchingCase,
    assignment_costs,
    matching_inputs,
)
from dino_kernels.testing.matching_accuracy import assert_cost_accurate, assert_optimal, assert_same_bits

__all__ = [
    "ASSIGNMENT_CASES",
    "CASES",
    "DTYPES",
    "MATCHING_CASES",
    "AssignmentCase",
    "Case",
    "MatchingCase",
    "Result",
    "assert_accurate",
    "assert_cost_accurate",
    "assert_optimal",
    "assert_result_accurate",
    "assert_same_bits",
    "assignment_costs",
    "matching_inputs",
    "random_grad_output",
    "run",
    "sample_inputs",
]

import torch

from tests.dino.waits import Assignments, Waits


def test_counting_waits_works():
    with Waits() as waits:
        ones = torch.ones(3)
        ones[ones > 0].sum().item()
        ones.nonzero()
    assert waits.found == ["index.Tensor", "_local_scalar_dense", "nonzero"]
    with Assignments() as assignments:
        ones[torch.tensor([1])] = 2
        ones[ones > 1] = 3
        ones[1:] = 4
    assert assignments.found == [2]

"""PyTorch's operations on lists of tensors: the host starts one operation in place of one per tensor.

Exported programs hold one operation per tensor: other engines have none on lists.
"""

# pyright: reportPrivateImportUsage=false
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _of_lists(operation: Callable[..., Any], of_tensors: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return an operation on lists; the second argument, if there is one, may be one number or tensor for all."""

    def call(first: Sequence[Tensor], *others: Any) -> Any:
        if not torch.compiler.is_exporting():
            return operation(first, *others)
        columns = [other if isinstance(other, list | tuple) else [other] * len(first) for other in others]
        return [of_tensors(*row) for row in zip(first, *columns, strict=True)]

    return call


foreach_add = _of_lists(torch._foreach_add, torch.add)
foreach_div = _of_lists(torch._foreach_div, torch.div)
foreach_mul = _of_lists(torch._foreach_mul, torch.mul)
foreach_rsqrt = _of_lists(torch._foreach_rsqrt, torch.rsqrt)
foreach_sub = _of_lists(torch._foreach_sub, torch.sub)

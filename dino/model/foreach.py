"""PyTorch's operations on lists of tensors: the host starts one operation in place of one per tensor."""

# pyright: reportPrivateImportUsage=false
import torch

foreach_add = torch._foreach_add
foreach_div = torch._foreach_div
foreach_mul = torch._foreach_mul
foreach_rsqrt = torch._foreach_rsqrt
foreach_sub = torch._foreach_sub

"""`backend="interpreted"`: copies of the Triton backends over kernels that Triton interprets on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from types import ModuleType, SimpleNamespace
from typing import Any

from dino_kernels.ops._core.dispatch import device_of
from tests.second_copy import second_copy

NAME = "interpreted"
# Tiles of the assignment, so small that every loop over tiles has several iterations.
SMALL_TILES = {"TILE_ROWS": 2, "TILE_COLUMNS": 4, "CHUNK": 4}
KERNELS = "dino_kernels.ops.*.triton_*"
_copy = functools.partial(second_copy, backend="triton", name=NAME)


@functools.cache
def modules() -> dict[str, ModuleType]:
    """Return the interpreted backend of each op."""
    with _interpreted_kernels():
        # These replace the functions that import the kernels.
        cost_kernels = _constant(_copy("matching_cost").kernels())
        assignment_kernels = _constant(_copy("linear_sum_assignment").kernels())
        attention_kernels = _constant(_untuned(_copy("ms_deform_attn").kernels()))
    cost = _copy("matching_cost", kernels=cost_kernels, unsupported=_unsupported)
    assignment = _copy("linear_sum_assignment", kernels=assignment_kernels, unsupported=_unsupported)
    match = _copy("hungarian_match", cost=cost, assignment=assignment, unsupported=_unsupported)
    classic = _copy("ms_deform_attn", kernels=attention_kernels, unsupported=_unsupported)
    return {
        "ms_deform_attn": classic,
        "fused_ms_deform_attn": _copy("fused_ms_deform_attn", classic=classic, unsupported=_unsupported),
        "matching_cost": cost,
        "linear_sum_assignment": assignment,
        "hungarian_match": match,
    }


def _untuned(kernels: ModuleType) -> ModuleType:
    """Leave one configuration to each kernel, so that none is tuned."""
    for name, tuner in vars(kernels).items():
        if name.startswith(("forward_", "backward_")):
            tuner.configs = tuner.configs[:1]
    return kernels


def _unsupported(arguments: Any) -> str | None:
    device = device_of(arguments)
    return None if device.type == "cpu" else f"the interpreter runs on CPU tensors, got {device}"


def _constant(value: Any) -> Any:
    return lambda: value


@contextmanager
def _interpreted_kernels() -> Iterator[None]:
    """Import modules of kernels again, for the interpreter; restore the former ones afterwards."""
    _repair_interpreter()  # imports triton's functions before TRITON_INTERPRET is set: they stay compiled ones
    former_environment = os.environ.get("TRITON_INTERPRET")
    former = _forget_kernels()
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if former_environment is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = former_environment
        _forget_kernels()
        for name, module in former.items():
            package, _, attribute = name.rpartition(".")
            sys.modules[name] = module
            setattr(sys.modules[package], attribute, module)


def _repair_interpreter() -> None:
    """Make Triton 3.6 able to interpret kernels in a process that compiles others.

    The interpreter patches the language in each call of a function within a kernel, which is slow and needed once. The
    patch omits `tl.sum` and other functions written in the language, which were set up for the compiler. Loop bounds
    are arrays of one element, which NumPy 2.4 does not convert to integers.
    """
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction, mangle_type

    mangle_type(0)  # imports modules that expect the language unpatched
    change_language = interpreter._patch_lang
    everything = SimpleNamespace(__globals__={"language": tl, "core": tl.core})
    functions = {
        (module, name): interpreter.InterpretedFunction(member.fn)
        for module in (tl, tl.standard)
        for name, member in vars(module).items()
        if isinstance(member, JITFunction)
    }

    def as_index(tensor: Any) -> int:
        return tensor.handle.data.item()

    def change_language_once(function: Any) -> Any:
        if getattr(tl.tensor, "__index__", None) is as_index:
            return interpreter._LangPatchScope()
        changes = change_language(everything)
        changes.set_attr(tl.tensor, "__index__", as_index)
        for (module, name), interpreted in functions.items():
            changes.set_attr(module, name, interpreted)
        return changes

    interpreter._patch_lang = change_language_once
    _make_faster()


def _once_by_name(function: Any) -> Any:
    """`functools.cache` for Triton's types, which have names but no hashes."""
    results: dict[tuple[str, tuple[int, ...]], Any] = {}

    def cached(kind: Any, shape: Any = ()) -> Any:
        key = kind.name, tuple(shape)
        if key not in results:
            results[key] = function(kind, shape) if key[1] else function(kind)
        return results[key]

    return cached


def _make_faster() -> None:
    """Make each type once, decide once how two types broadcast, and skip what has no effect: half of the time.

    The compiler has objects of its own, and shares with the interpreter only `with_element_ty`.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.interpreter_builder
    semantic: Any = interpreter.interpreter_semantic
    broadcast, check_types = semantic.broadcast_impl_value, semantic.binary_op_type_checking_impl
    attributes_of = _once_by_name(lambda kind: vars(tl.tensor(None, kind)))
    block = _once_by_name(tl.block_type)
    broadcast_types: dict[tuple[str, str], tuple[Any, Any]] = {}

    def make_tensor(handle: Any, kind: Any) -> Any:
        tensor = tl.tensor.__new__(tl.tensor)
        tensor.__dict__ = attributes_of(kind) | {"handle": handle}
        return tensor

    def spread(tensor: Any, kind: Any) -> Any:
        if tensor.type.name == kind.name:
            return tensor
        if tensor.type.is_block():
            return make_tensor(builder.create_broadcast(tensor.handle, kind.shape), kind)
        return make_tensor(builder.create_splat(kind, tensor.handle), kind)

    def broadcast_as_before(left: Any, right: Any) -> Any:
        names = left.type.name, right.type.name
        if names not in broadcast_types:
            results = broadcast(left, right)
            broadcast_types[names] = results[0].type, results[1].type
            return results
        left_type, right_type = broadcast_types[names]
        return spread(left, left_type), spread(right, right_type)

    def check_unlike_types(left: Any, right: Any, *rules: bool, **division: bool) -> Any:
        kind = getattr(left, "type", None)
        if kind is None or kind is not getattr(right, "type", None) or kind.scalar.is_ptr() or division or rules[2:]:
            return check_types(left, right, *rules, **division)
        return left, right

    def bind(owner: Any, name: str, member: Any, builder: Any, changes: Any) -> None:
        function = getattr(member, "__wrapped__", member)
        changes.set_attr(owner, name, lambda *args, **options: function(*args, **options | {"_semantic": semantic}))

    interpreter._patch_attr = bind
    interpreter._get_np_dtype = _once_by_name(interpreter._get_np_dtype)
    tl.block_type.with_element_ty = lambda self, scalar_ty: block(scalar_ty, self.shape)
    builder.get_block_ty = block
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)  # computed, but never asserted
    semantic.make_tensor = make_tensor
    semantic.binary_op_type_checking_impl = check_unlike_types
    semantic.broadcast_impl_value = broadcast_as_before


def _forget_kernels() -> dict[str, ModuleType]:
    """Undo the imports of all modules of kernels, and return the modules."""
    names = [name for name in sys.modules if fnmatch(name, KERNELS)]
    for name in names:
        package, _, attribute = name.rpartition(".")
        delattr(sys.modules[package], attribute)
    return {name: sys.modules.pop(name) for name in names}

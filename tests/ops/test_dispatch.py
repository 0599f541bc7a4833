"""The choice of a backend, the report of `explain`, and refusals, which give every reason."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import dino_kernels
from dino_kernels import UnsupportedError, explain
from dino_kernels.ops._core.dispatch import Backends, ops
from dino_kernels.testing import Case, sample_inputs

# In the order in which "auto" tries them.
BACKENDS = ["cuda", "triton", "cpu", "reference"]
CASE = Case("dispatch", 1, 5, 2, 4, ((3, 4), (2, 2)), (2, 2))


@pytest.fixture
def inputs(op):
    return sample_inputs(op, CASE, torch.float32)


@pytest.fixture
def only(monkeypatch, op):
    """Replace an op's backends by ones that refuse with the given reasons."""

    def replace(**reasons: str | None) -> Backends:
        backends = ops()[op]
        modules = {
            name: SimpleNamespace(
                unsupported=lambda *arguments, reason=reason: reason,
                forward=lambda *arguments, name=name: name,
            )
            for name, reason in reasons.items()
        }
        monkeypatch.setattr(backends, "modules", modules)
        return backends

    return replace


@pytest.fixture
def arguments(op, inputs) -> tuple:
    return ops()[op].prepare(**inputs)


def test_every_op_has_the_same_backends(op):
    assert [name for name in ops()[op].modules if name in BACKENDS] == BACKENDS


def test_auto_takes_the_first_supported_backend_in_order_of_preference(only, arguments):
    everything = dict.fromkeys(BACKENDS)
    for name in BACKENDS:
        assert only(**everything).resolve("auto", arguments) == name
        everything[name] = "not today"


def test_auto_never_takes_a_refusing_backend(only, arguments):
    assert only(cuda="no GPU", triton=None, cpu=None, reference=None).resolve("auto", arguments) == "triton"


def test_auto_off_the_cpu_refuses_with_every_reason_instead_of_running_the_reference(only, op, inputs):
    backends = only(cuda="no driver", triton="too old", cpu="it runs on CPU tensors", reference=None)
    on_meta = {name: x.detach().to("meta") if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    arguments = backends.prepare(**on_meta)
    with pytest.raises(UnsupportedError) as caught:
        backends.resolve("auto", arguments)
    assert str(caught.value) == (
        f"{op}: no backend can run this call on meta:\n"
        "  cuda: no driver\n"
        "  triton: too old\n"
        "  cpu: it runs on CPU tensors\n"
        "Pass backend='reference' to run the plain PyTorch definition instead (slow)."
    )


def test_auto_on_the_cpu_falls_back_to_the_reference(only, arguments):
    assert only(cuda="no", triton="no", cpu="not built", reference=None).resolve("auto", arguments) == "reference"


def test_refusing_a_requested_backend_gives_the_reason(only, op, arguments):
    backends = only(cuda="no driver", reference=None)
    message = f"{op}: backend 'cuda' cannot run this call: no driver"
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        backends.resolve("cuda", arguments)


def test_the_public_function_refuses_as_resolve_does(op, inputs):
    reason = ops()[op].unsupported("cuda", ops()[op].prepare(**inputs))
    assert reason, "CPU tensors must not run on CUDA"
    with pytest.raises(UnsupportedError, match=re.escape(f"{op}: backend 'cuda' cannot run this call: {reason}")):
        getattr(dino_kernels, op)(**inputs, backend="cuda")


def test_an_unknown_backend_raises_and_lists_the_known_ones(op, inputs):
    names = ", ".join(repr(name) for name in ("auto", *ops()[op].modules))
    message = f"{op}: backend must be one of {names}, got 'gpu'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(dino_kernels, op)(**inputs, backend="gpu")


def test_unsupported_error_is_a_runtime_error():
    assert issubclass(UnsupportedError, RuntimeError)


def test_meta_tensors_are_refused_by_the_cpu_backend(op, inputs):
    on_meta = {name: x.detach().to("meta") if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    with pytest.raises(UnsupportedError, match="it runs on CPU tensors, value is on meta"):
        getattr(dino_kernels, op)(**on_meta, backend="cpu")


def test_without_the_native_library_its_reason_is_given_and_the_reference_runs(op, inputs, monkeypatch):
    from dino_kernels.ops._core import libraries

    monkeypatch.setattr(libraries, "CPU_MISSING", "no compiled library")
    modules = ops()[op].modules
    monkeypatch.setattr(ops()[op], "modules", {name: modules[name] for name in BACKENDS})
    assert explain(getattr(dino_kernels, op), **inputs).backend == "reference"
    with pytest.raises(UnsupportedError, match="backend 'cpu' cannot run this call: no compiled library"):
        getattr(dino_kernels, op)(**inputs, backend="cpu")


@pytest.fixture
def without_library(monkeypatch):
    """Let the CPU library be missing, for a reason that has not been reported yet."""
    from dino_kernels.ops._core import dispatch, libraries

    monkeypatch.setattr(libraries, "CPU_MISSING", "found no compiled library; build it with 'pip install -e .'")
    monkeypatch.setattr(dispatch, "_warned", set())


def test_a_missing_library_is_one_warning_that_says_why_and_what_to_type(op, inputs, without_library):
    message = (
        r"plain PyTorch .* 30 times slower .*: found no compiled library; build it with 'pip install -e \.'\. Pass"
    )
    with pytest.warns(RuntimeWarning, match=message):
        getattr(dino_kernels, op)(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(dino_kernels, op)(**inputs)
        dino_kernels.linear_sum_assignment(torch.rand(2, 3))


def test_a_compiled_call_warns_of_a_missing_library(without_library):
    inputs = sample_inputs("ms_deform_attn", CASE, torch.float32, requires_grad=False)
    inputs |= {"spatial_shapes": list(CASE.shapes), "level_start_index": None}
    compiled = torch.compile(lambda: dino_kernels.ms_deform_attn(**inputs), backend="eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="30 times slower"):
        compiled()


def test_no_one_is_warned_who_asked_for_the_reference_or_computes_nothing(op, inputs, without_library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(dino_kernels, op)(**inputs, backend="reference")
        explain(getattr(dino_kernels, op), **inputs)


def test_no_one_is_warned_of_a_call_that_the_cpu_kernel_would_not_take(only, op, arguments, without_library):
    backends = only(cuda="no", triton="no", cpu="it has room for 32 levels", reference=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve("auto", arguments) == "reference"


def test_explain_names_the_backend_that_the_call_uses(op, inputs, monkeypatch):
    function = getattr(dino_kernels, op)
    explanation = explain(function, **inputs)
    assert explanation.op == op
    assert list(explanation.reasons) == list(ops()[op].modules)
    assert explanation.backend and explanation.reasons[explanation.backend] is None
    used = []
    for name, module in ops()[op].modules.items():
        original = module.forward if hasattr(module, "forward") else None
        if original is not None:
            monkeypatch.setattr(
                module, "forward", lambda *a, name=name, original=original: used.append(name) or original(*a)
            )
    function(**inputs)
    assert used[0] == explanation.backend


def test_explain_prints_each_backend_with_its_reason(only, op, inputs):
    only(cuda="no driver", triton="too old", cpu=None, reference=None)
    assert str(explain(getattr(dino_kernels, op), **inputs)).splitlines() == [
        f"{op}: cpu",
        "   cuda       no driver",
        "   triton     too old",
        " * cpu        supported",
        "   reference  supported",
    ]


def test_explain_honours_the_requested_backend(only, op, inputs):
    only(cuda="no driver", triton="too old", cpu=None, reference=None)
    function = getattr(dino_kernels, op)
    assert explain(function, **inputs, backend="reference").backend == "reference"
    refused = explain(function, **inputs, backend="cuda")
    assert refused.backend is None
    assert str(refused).startswith(f"{op}: no backend\n")


def test_explain_takes_arguments_by_position(op, inputs):
    inputs.pop("num_points", None)
    function = getattr(dino_kernels, op)
    assert explain(function, *inputs.values()) == explain(function, **inputs)


def test_explain_computes_nothing(only, op, inputs):
    backends = only(cpu=None, reference=None)
    backends.modules["cpu"].forward = backends.modules["reference"].forward = None
    assert explain(getattr(dino_kernels, op), **inputs).backend == "cpu"


def test_explain_of_something_else_lists_the_ops():
    with pytest.raises(TypeError, match=r"^explain: function must be one of .*, got <built-in method relu") as caught:
        explain(torch.relu)
    assert all(op in str(caught.value) for op in ops())


def test_explain_of_a_malformed_call_raises_as_the_call_does(op, inputs):
    inputs["value"] = inputs["value"][0]
    with pytest.raises(ValueError, match=rf"^{op}: value must be \[B, S, M, D\], got \[16, 2, 4\]$"):
        explain(getattr(dino_kernels, op), **inputs)


def test_reasons_are_sentences_for_a_user(op, inputs):
    for name, reason in explain(getattr(dino_kernels, op), **inputs).reasons.items():
        assert reason is None or (len(reason) > 20 and "\n" not in reason), name


def test_importing_computes_nothing_on_a_device_and_warns_of_nothing(run_python):
    """No CUDA context at import: forked workers could not use the GPU any more."""
    program = "import warnings; warnings.simplefilter('error', UserWarning); import dino_kernels, torch; "
    assert run_python(program + "print(torch.cuda.is_initialized())") == "False\n"

"""Every case of the table x every property that all ops promise."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.testing.cases import CASES
from fastssl.testing.compare import assert_no_worse, relative_error
from tests.support.rotation import of_today
from tests.support.saved_tensors import Exchanged

ROWS = [
    pytest.param(case, shape, id=f"{case.name}-{'x'.join(map(str, shape))}") for case in CASES.values() for shape in case.shapes
]
LINEAR = ("gather_tokens", "restore_tokens")  # in all that they are differentiable in
MIDDLE = [pytest.param(case, case.shapes[-2], id=case.name) for case in CASES.values()]
DTYPES = [torch.bfloat16, torch.float16]  # float32 is tested on every instruction set


def leaves(inputs, dtype=None):
    return {name: (t if dtype is None else t.to(dtype)).detach().clone().requires_grad_() for name, t in inputs.items()}


def gradients(call, inputs, dtype=None):
    """Output and gradients, under an upstream gradient that is not constant; rows at -inf are left out."""
    inputs = leaves(inputs, dtype)
    out = call(**inputs)
    upstream = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    rows = out.isfinite()
    (out * upstream)[rows].sum().backward()
    return out.detach(), {name: t.grad for name, t in inputs.items()}


# Losses that keep rows of unit length in the dtype of the inputs, as eager does: 16 bits round them.
UNIT_ROWS = (
    "nt_xent", "dcl", "debiased_nt_xent", "hard_nt_xent", "negative_cosine", "byol", "info_nce", "info_nce_unpaired",
    "info_nce_paired", "info_nce_hard",
)  # fmt: skip


def what_rounding_may_do(call, inputs, dtype, draws=8):
    """Results in float64 for inputs that were rounded to ``dtype`` in other ways: a loss is one number, and eager's error of it may
    happen to be small."""
    unit = torch.finfo(dtype).eps / 2
    for _ in range(draws):
        move = lambda t: 1 + unit * (2 * torch.rand(t.shape, dtype=torch.float64) - 1)  # noqa: E731
        yield gradients(call, {name: t.double() * move(t) for name, t in inputs.items()})


def check(case, inputs, dtype, **kwargs):
    def run(call, as_dtype=None):
        return gradients(lambda **t: call(**t, **kwargs), inputs, as_dtype)

    (out, grads), (truth, true_grads) = run(case.ours), run(case.eager, torch.float64)
    eagers = [run(case.eager)]
    if dtype != torch.float32 and case.name in UNIT_ROWS:
        eagers += what_rounding_may_do(case.eager, inputs, dtype)

    def worst(true, of):
        return max(map(of, eagers), key=lambda eager: relative_error(eager, true))

    # A loss is a difference of logits; its gradient, of a mean, one of rows times logits / N.
    rows = next(iter(inputs.values())).shape[0]
    assert_no_worse(case.name, out, worst(truth, lambda e: e[0]), truth, torch.float32, case.logits)
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype and grad.shape == inputs[name].shape
        eager = worst(true_grads[name], lambda e, name=name: e[1][name])
        assert_no_worse(f"{case.name} d{name}", grad, eager, true_grads[name], dtype, case.logits / rows**0.5)


@pytest.mark.parametrize("case, shape", ROWS)
def test_value_and_gradients_on_every_isa(case, shape, isa):
    check(case, case.inputs(shape), torch.float32)


@pytest.mark.parametrize("products", ["unlucky"], indirect=True)
@pytest.mark.parametrize("case, shape", ROWS)
def test_value_and_gradients_on_an_unlucky_blas(case, shape, products):
    check(case, case.inputs(shape), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case, shape", ROWS)
def test_value_and_gradients_in_every_dtype(case, shape, dtype):
    check(case, case.inputs(shape, dtype), dtype)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_no_output_is_left_unwritten(case, shape, poisoned):
    out, grads = gradients(case.ours, case.inputs(shape))
    assert not out.isnan().any() and not any(g.isnan().any() for g in grads.values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradcheck(case):
    inputs = leaves(case.inputs(case.shape(4, 3), torch.float64))
    assert torch.autograd.gradcheck(lambda *t: case.ours(**dict(zip(inputs, t, strict=True))), tuple(inputs.values()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_bits_twice(case):
    inputs = case.inputs(case.shape(100 if case.name in LINEAR else 700, 40))
    first, second = (gradients(case.ours, inputs) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in inputs)


def spoil(t, how):
    """The same values in another layout."""
    if t.dim() != 2:
        return t
    if how == "transposed":
        return t.t().contiguous().t()
    if how == "row-strided":
        return torch.cat([t, t.new_full(t.shape, math.nan)], 1)[:, : t.shape[1]]
    if how == "misaligned":
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    if how == "huge stride":  # 2^20 elements from row to row
        wide = t.new_empty(t.shape[0], 1 << 20)[:, : t.shape[1]]
        return wide.copy_(t)
    raise ValueError(how)


@pytest.mark.parametrize("how", ["transposed", "row-strided", "misaligned", "huge stride"])
@pytest.mark.parametrize("case, shape", MIDDLE)
def test_layouts(case, shape, how):
    inputs = case.inputs(case.shape(8, 5))
    plain = gradients(case.ours, inputs)
    other = gradients(lambda **t: case.ours(**{name: spoil(value, how) for name, value in t.items()}), inputs)
    torch.testing.assert_close(other[0], plain[0])
    for name in inputs:
        torch.testing.assert_close(other[1][name], plain[1][name])


#: Between them these cases call every op that is differentiable (a test below says so).
EACH_OP = (
    "nt_xent", "info_nce_unpaired", "info_nce_passages", "moco", "clip", "siglip", "gather_tokens", "restore_tokens",
    "embed_visible", "barlow_twins", "cka", "gram_loss", "koleo", "lejepa", "masked_latent", "masked_latent_weighted",
    "patch_loss", "sampled_info_nce", "soft_cross_entropy", "sorted_slices", "swav",
    "word_pairs",
)  # fmt: skip
OWN_KERNELS = of_today(EACH_OP, 6)  # of inductor, beside ours


@pytest.mark.parametrize("name", of_today(CASES, 4))
def test_compiled_whole_with_dynamic_shapes(name):
    case = CASES[name]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(case.ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (7, 11, 13):
        inputs = case.inputs(case.shape(size, 5))
        (out, grads), (want, want_grads) = gradients(compiled, inputs), gradients(case.ours, inputs)
        torch.testing.assert_close(out, want)
        for name in inputs:
            torch.testing.assert_close(grads[name], want_grads[name])
    assert counters["stats"]["unique_graphs"] <= 2, "a graph or two serve all sizes"


def check_compiled(case, **how):
    torch._dynamo.reset()
    inputs = case.inputs(case.shape(9, 5))
    compiled = torch.compile(case.ours, fullgraph=True, **how)
    (out, grads), (want, want_grads) = gradients(compiled, inputs), gradients(case.ours, inputs)
    torch.testing.assert_close(out, want)
    for name in inputs:
        torch.testing.assert_close(grads[name], want_grads[name])


@pytest.mark.parametrize("name", [name for name in of_today(CASES, 5) if name not in OWN_KERNELS])
def test_compiled_by_inductor(name):
    """Inductor's lowering, buffers and calls of our ops, in the mode that leaves the rest to torch's own kernels."""
    check_compiled(CASES[name], mode="lite")


@pytest.mark.parametrize("name", OWN_KERNELS)
def test_compiled_by_inductor_with_kernels_of_its_own(name):
    """The same with C++ kernels that inductor writes around our ops and g++ compiles, seconds a case."""
    check_compiled(CASES[name])


class Called(TorchDispatchMode):
    """The ops of ours that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastssl":
            self.names.add(function._opname)
        return function(*args, **kwargs or {})


def ops_called_by(names) -> set[str]:
    with Called() as called:
        for name in names:
            gradients(CASES[name].ours, CASES[name].inputs(CASES[name].shape(9, 5)))
    return called.names


def test_the_cases_of_inductors_kernels_call_every_op_that_any_case_calls():
    assert ops_called_by(EACH_OP) == ops_called_by(CASES)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_under_autocast_the_given_dtype_is_used(case, shape):
    inputs = case.inputs(shape)
    plain = gradients(case.ours, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, grads = gradients(case.ours, inputs)
    if case.name == "embed_visible":  # a layer, as a convolution is: it follows autocast
        half = gradients(case.ours, {name: t.bfloat16() for name, t in inputs.items()})
        assert out.dtype == torch.bfloat16 and torch.equal(out, half[0])
        assert all(grads[name].dtype == torch.float32 for name in inputs)
        assert all(torch.equal(grads[name], half[1][name].float()) for name in inputs)
        return
    assert out.dtype == torch.float32 and torch.equal(out, plain[0])
    assert all(torch.equal(grads[name], plain[1][name]) for name in inputs)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_activation_checkpointing(case, shape):
    def checkpointed(**t):
        return torch.utils.checkpoint.checkpoint(
            lambda *v: case.ours(**dict(zip(t, v, strict=True))), *t.values(), use_reentrant=False
        )

    inputs = case.inputs(shape)
    (out, grads), (want, want_grads) = gradients(checkpointed, inputs), gradients(case.ours, inputs)
    assert torch.equal(out, want) and all(torch.equal(grads[name], want_grads[name]) for name in inputs)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_backward_twice(case, shape):
    inputs = leaves(case.inputs(shape))
    total = case.ours(**inputs).sum()
    first, second = (torch.autograd.grad(total, list(inputs.values()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_a_second_derivative_is_refused_or_right(case, shape):
    """Right where it needs only first derivatives of an op, as that of a constant queue's loss in the key."""

    def second_derivatives(call, name, **how):
        inputs = leaves(case.inputs(shape), torch.float64)
        (gradient,) = torch.autograd.grad(call(**inputs).sum(), inputs[name], create_graph=True, **how)
        if not gradient.requires_grad:  # of a linear op: constant
            return [None] * len(inputs)
        weight = torch.linspace(0.5, 1.5, gradient.numel(), dtype=torch.float64).reshape(gradient.shape)
        return torch.autograd.grad((gradient * weight).sum(), list(inputs.values()), allow_unused=True)

    refused = 0
    for name in case.inputs(shape):
        try:
            ours = second_derivatives(case.ours, name)
        except NotImplementedError as error:
            assert "second derivatives are not implemented" in str(error)
            refused += 1
            with pytest.raises(RuntimeError, match=r"second derivatives are not implemented|Batching rule not implemented"):
                second_derivatives(case.ours, name, grad_outputs=torch.ones(1, dtype=torch.float64), is_grads_batched=True)
            continue
        for got, want in zip(ours, second_derivatives(case.eager, name), strict=True):
            if got is not None:
                torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want, rtol=1e-6, atol=1e-9)
            else:
                assert want is None or not want.any()
    assert refused or case.name in LINEAR


@pytest.mark.parametrize("name", EACH_OP)
def test_saved_tensors_of_another_shape_are_refused(name):
    """Hooks give back what they like; no tensor that a Function of ours saved may then reach a kernel."""
    inputs = leaves(CASES[name].inputs(CASES[name].shape(9, 5)))
    saved = Exchanged(lambda tensor: tensor[None])
    with saved:
        total = CASES[name].ours(**inputs).sum()
    total.backward(retain_graph=True)  # it may give away a gradient that the forward made
    for _ in saved.in_turn("apply"):
        with pytest.raises(RuntimeError, match="a hook on saved tensors gave back"):
            total.backward(retain_graph=True)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_torch_func_is_refused_in_words(case, shape):
    inputs = case.inputs(shape)
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.grad(lambda t: case.ours(**t).sum())(inputs)


@pytest.mark.parametrize("case, shape", MIDDLE)
def test_under_no_grad_only_forward_ops_run(case, shape):
    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (str(func),)
            return func(*args, **(kwargs or {}))

    inputs = leaves(case.inputs(shape))
    with torch.no_grad(), Names() as names:
        out = case.ours(**inputs)
    ours = {name for name in names.seen if name.startswith("fastssl")}
    assert not out.requires_grad and not any("bwd" in name or "one_pass" in name for name in ours)
    assert ours or case.name == "info_nce_paired"  # N x M dots of each row's own keys, in plain PyTorch

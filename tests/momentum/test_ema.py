"""ema_update_: torch's own bits in float32, every dtype and layout, refusals that change nothing."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from fastssl.functional import ema_update_
from fastssl.ops._philox import philox
from fastssl.ops._register import _C, why_not_host
from fastssl.reference import ema as reference

MOMENTA = [0.0, 0.3, 0.5, 0.9, 0.99, 0.9999, 1.0]
SHAPES = [(5,), (3, 4), (64, 3, 7, 7), (), (0,), (1000, 33), (40000,), (2, 0, 3)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def pair(dtype=torch.float32, other=None, shapes=SHAPES):
    return [torch.randn(s).to(dtype) for s in shapes], [torch.randn(s).to(other or dtype) for s in shapes]


def copies(tensors):
    return [t.clone() for t in tensors]


def has_fma(isa):
    return isa != "sse2"


def torch_form(ema, params, momentum, order):
    if order == "lerp":
        torch._foreach_lerp_(ema, params, 1.0 - momentum)
    else:
        torch._foreach_mul_(ema, momentum)
        torch._foreach_add_(ema, params, alpha=1.0 - momentum)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("order", ["lerp", "mul_add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_bits(isa, dtype, order):
    """Where the instruction set has no fused multiply-add but torch's has one, the last bit may differ."""
    ema, params = pair(dtype)
    ours = copies(ema)
    for momentum in MOMENTA * 3:
        ema_update_(ours, params, momentum, order=order)
        torch_form(ema, params, momentum, order)
        if has_fma(isa):
            assert all(map(torch.equal, ours, ema)), momentum
        else:
            torch.testing.assert_close(ours, ema, rtol=3 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
            ours = copies(ema)


@pytest.mark.parametrize("order", ["lerp", "mul_add"])
@pytest.mark.parametrize("other", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mixed_dtypes_are_rounded_once(isa, dtype, other, order):
    ema, params = pair(dtype, other)
    shadow = [torch.empty_like(t, dtype=torch.bfloat16) for t in ema]
    before = copies(ema)
    ema_update_(ema, params, 0.9, order=order, shadow=shadow)
    for old, new, p, s in zip(before, ema, params, shadow, strict=True):
        truth = 0.9 * old.double() + (1.0 - 0.9) * p.double()
        one_step = torch.finfo(dtype).eps * truth.abs() + 4 * torch.finfo(torch.float32).eps * (old.abs() + p.abs())
        assert ((new.double() - truth).abs() <= one_step).all()
        assert torch.equal(s, new.to(torch.bfloat16))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_scalar_on_the_device_gives_the_numbers_bits(kind):
    ema, params = pair()
    ours = copies(ema)
    momentum = torch.tensor(0.9995, dtype=kind)
    options = (ours, params, [], 0.0, momentum, False, False, 0, None)  # as an accelerator's scalar arrives at the op
    torch.ops.fastssl.ema_update_(*options)
    ema_update_(ema, params, momentum.item())
    assert all(map(torch.equal, ours, ema))


def test_the_share_of_the_new_is_taken_in_double_precision():
    """1 - float32(m) is off by 1.7e-4 of itself at m = 0.9999."""
    ema, params = [torch.zeros(8)], [torch.ones(8)]
    ema_update_(ema, params, 0.9999)
    assert abs(ema[0][0].item() / 1e-4 - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_rounding_moves_what_the_nearest_would_not_and_is_right_on_average(isa, dtype):
    start, target, steps = torch.ones(4000), 2.0, 50
    nearest, random = [start.to(dtype)], [start.to(dtype)]
    for seed in range(steps):
        ema_update_(nearest, [torch.full_like(start, target)], 0.9999)
        ema_update_(random, [torch.full_like(start, target)], 0.9999, rounding="stochastic", seed=seed)
    moved = 1.0 - 0.9999**steps
    assert (nearest[0] == 1).all()
    assert abs(random[0].double().mean().item() - 1 - moved) < 0.1 * moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_bits_are_those_of_the_reference(isa, dtype):
    if not has_fma(isa):
        pytest.skip("the average before the rounding may differ in its last bit")
    ema, params = pair(dtype, torch.float32, [*SHAPES, (70000,)])
    expected = copies(ema)
    ema_update_(ema, params, 0.99, rounding="stochastic", seed=2**40 + 5)
    reference.ema_update_(expected, params, [], 0.99, None, False, True, 2**40 + 5, None)
    assert all(map(torch.equal, ema, expected))
    again, other = copies(expected), copies(expected)
    ema_update_(again, params, 0.99, rounding="stochastic", seed=1)
    ema_update_(other, params, 0.99, rounding="stochastic", seed=2)
    assert not torch.equal(again[-1], other[-1])


def test_philox_gives_the_published_vectors():
    """Known answers of Random123 for philox4x32-10."""
    full = 0xFFFFFFFF
    for counter, seed, expected in (
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (full, (full << 32 | full) - 2**64, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ):
        words = philox(tuple(torch.tensor(counter) for _ in range(4)), seed)
        assert tuple(int(w) for w in words) == expected


def spoiled(t, how):
    """The same values where memory is walked in another order, with gaps, or not from an even address."""
    if how == "channels_last":
        return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t
    if how == "transposed":
        return t.t().contiguous().t() if t.dim() == 2 else t
    if how == "gaps":
        return torch.stack([t, t], -1)[..., 0]
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("how", ["channels_last", "transposed", "gaps", "misaligned"])
@pytest.mark.parametrize("which", ["ema", "params", "both"])
def test_any_layout(how, which):
    ema, params = pair()
    ours = [spoiled(t, how) if which != "params" else t.clone() for t in ema]
    other = [spoiled(t, how) if which != "ema" else t.clone() for t in params]
    strides = [t.stride() for t in ours]
    ema_update_(ours, other, 0.9)
    torch._foreach_lerp_(ema, params, 1.0 - 0.9)
    torch.testing.assert_close(ours, ema, rtol=0, atol=0)
    assert [t.stride() for t in ours] == strides


@pytest.mark.torch_fuses
def test_one_tensor_parameters_generators_and_a_shared_layer():
    teacher, student = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    expected = torch.lerp(teacher.weight, student.weight, 1.0 - 0.9).detach()
    version = teacher.weight._version
    ema_update_(teacher.weight, student.weight, 0.9)
    assert torch.equal(teacher.weight, expected) and teacher.weight._version > version and teacher.weight.grad_fn is None
    ema_update_(teacher.parameters(), student.parameters(), torch.tensor(0.9))
    before = copies(student.parameters())
    ema_update_(student.parameters(), student.parameters(), 0.9)
    assert all(map(torch.equal, student.parameters(), before))


def test_nan_and_infinity_travel_as_in_torch():
    ema, params = [torch.tensor([1.0, math.nan, math.inf, 1.0])], [torch.tensor([math.nan, 1.0, 1.0, math.inf])]
    expected = copies(ema)
    ema_update_(ema, params, 0.9)
    torch._foreach_lerp_(expected, params, 1.0 - 0.9)
    torch.testing.assert_close(ema, expected, equal_nan=True, rtol=0, atol=0)


def test_compiled_it_is_one_graph_and_the_same():
    ema, params = pair(shapes=[(5, 3), (7,)])
    ours = copies(ema)
    torch.compile(lambda e, p: ema_update_(e, p, 0.9), fullgraph=True, backend="aot_eager")(ours, params)
    ema_update_(ema, params, 0.9)
    assert all(map(torch.equal, ours, ema))


def test_opcheck():
    ema, params = pair(shapes=[(5, 3), (7,)])
    shadow = [t.bfloat16() for t in ema]
    args = (ema, params, shadow, 0.9, None, False, False, 0, None)
    torch.library.opcheck(torch.ops.fastssl.ema_update_.default, args)


def test_same_bits_for_any_number_of_threads():
    ema, params = pair(shapes=[(300_000,), (7,), (65_536,)])
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(copies(ema))
        ema_update_(results[-1], params, 0.9, rounding="stochastic")
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


A, B = torch.zeros(4, 3), torch.ones(4, 3)
ROW, TWICE = torch.zeros(3), torch.zeros(5).as_strided((4, 2), (1, 1))
APART = torch.zeros(25).as_strided((5, 4), (3, 4))  # 25 places for 20 elements, of which two meet
with torch.inference_mode():
    FROZEN = torch.zeros(3)


def freed(*shape):
    """A tensor whose memory someone has given back, as FSDP does."""
    tensor = torch.zeros(shape or (3,))
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED = [
    (lambda: ema_update_([], [], 0.9), ValueError, "at least one tensor"),
    (lambda: ema_update_([A], [B, B], 0.9), ValueError, "params must hold 1 tensors"),
    (lambda: ema_update_([A], [B[:3]], 0.9), ValueError, r"ema\[0\] and params\[0\] must have the same shape"),
    (lambda: ema_update_([A, A.clone()], [B, B.int()], 0.9), TypeError, r"params\[1\] must be float32"),
    (lambda: ema_update_([A], [B.double()], 0.9), TypeError, "float64 stands with float64 only"),
    (lambda: ema_update_([A], [B.to("meta")], 0.9), ValueError, "one device, got cpu and, in params.0., meta"),
    (lambda: ema_update_([A], [B.to_sparse()], 0.9), TypeError, "dense tensor"),
    (lambda: ema_update_([A], ["B"], 0.9), TypeError, r"params\[0\] must be a tensor, got str"),
    (lambda: ema_update_(7, [B], 0.9), TypeError, "ema must be a tensor or a sequence"),
    (lambda: ema_update_([A, A], [B, B], 0.9), ValueError, r"ema\[0\] and ema\[1\] share memory"),
    (lambda: ema_update_([A[:3], A[1:]], [B[:3], B[1:]], 0.9), ValueError, "share memory"),
    (lambda: ema_update_([A[1:]], [A[:3]], 0.9), ValueError, "share memory"),
    (lambda: ema_update_([A], [B], 0.9, shadow=[A]), ValueError, "share memory"),
    (lambda: ema_update_([A], [B], 0.9, shadow=[]), ValueError, "shadow must hold 1"),
    (lambda: ema_update_([A], [B], 0.5, shadow=[torch.zeros(1).expand(4, 3)]), ValueError, r"shadow\[0\] must not be expanded"),
    (lambda: ema_update_([A, ROW.expand(4, 3)], [B, B], 0.9), ValueError, r"ema\[1\] must not be expanded or lie over itself"),
    (lambda: ema_update_([A, TWICE], [B, B[:, :2]], 0.9), ValueError, r"ema\[1\] must not be.*strides \(1, 1\) for shape \(4, 2\)"),
    (lambda: ema_update_(APART, APART + 1, 0.9), ValueError, r"ema\[0\] must not be.*strides \(3, 4\) for shape \(5, 4\)"),
    (lambda: ema_update_([A, torch._neg_view(ROW)], [B, ROW], 0.9), TypeError, r"ema\[1\] must not be a lazily negated view"),
    (lambda: ema_update_([A, FROZEN], [B, ROW], 0.9), ValueError, r"ema\[1\] must not be an inference tensor outside"),
    (lambda: ema_update_([A, freed()], [B, ROW], 0.9), ValueError, r"ema\[1\] must have a storage of at least 12 bytes, got 0"),
    (lambda: ema_update_([A], [freed(4, 3)], 0.9), ValueError, r"params\[0\] must have a storage of at least 48 bytes, got 0"),
    (lambda: ema_update_([A], [B.to_mkldnn()], 0.9), TypeError, r"params\[0\] must be a dense tensor, got torch._mkldnn"),
    (lambda: ema_update_([A], [torch.nested.nested_tensor([B])], 0.9), TypeError, r"params\[0\].*got a nested one"),
    (lambda: ema_update_(A, B, torch.tensor([0.5]).to_sparse()), TypeError, "momentum must be a dense tensor"),
    (lambda: ema_update_(A, B, 10**400), ValueError, "momentum must be in"),
    (lambda: torch.func.vmap(lambda a: ema_update_(a, a, 0.9))(A), NotImplementedError, "ema_update_: torch.func transforms"),
    (lambda: ema_update_([A], [B], math.nan), ValueError, "momentum must be in"),
    (lambda: ema_update_([A], [B], 1.01), ValueError, "momentum must be in"),
    (lambda: ema_update_([A], [B], torch.tensor(-0.1)), ValueError, "momentum must be in"),
    (lambda: ema_update_([A], [B], torch.ones(2)), ValueError, "one-element float tensor"),
    (lambda: ema_update_([A], [B], torch.tensor(1)), ValueError, "one-element float tensor"),
    (lambda: ema_update_([A], [B], torch.tensor(0.9, device="meta")), ValueError, "momentum must be on cpu"),
    (lambda: ema_update_([A], [B], "0.9"), TypeError, "momentum must be a number"),
    (lambda: ema_update_([A], [B], 0.9, order="ema"), ValueError, "order must be one of"),
    (lambda: ema_update_([A], [B], 0.9, rounding="up"), ValueError, "rounding must be one of"),
    (lambda: ema_update_([A], [B], 0.9, seed=1.5), TypeError, "seed must be an integer"),
    (lambda: ema_update_([A], [B], 0.9, seed=2**63), ValueError, "64 bits"),
    (lambda: ema_update_([A], [B], 0.9, seed=torch.tensor(1, dtype=torch.int32)), ValueError, "int64 tensor"),
]


@pytest.mark.parametrize("call, error, words", REFUSED)
def test_refusals_change_nothing(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert (A == 0).all() and (B == 1).all()


@pytest.mark.skipif(why_not_host is not None, reason="fastssl._C is not in use")
def test_the_quick_check_says_yes_only_to_what_the_slow_one_accepts():
    ema, params = pair()
    wide = torch.zeros(10, 10)
    depthwise = torch.zeros(6, 1, 3, 3)
    assert _C.lists_agree([[depthwise]], [[depthwise.clone().to(memory_format=torch.channels_last)]])
    yes = _C.lists_agree([ema], [params])
    assert yes and _C.lists_agree([[Parameter(A)]], [[A]]) and _C.lists_agree([[wide[:5], wide[5:]]], [[wide[:5], wide[5:]]])
    for written, read in (
        ([[A]], [[torch.zeros(3, 4).t()]]),
        ([[A]], [[A.t()]]),
        ([[A, A]], [[B, B]]),
        ([[wide[:6], wide[5:]]], [[wide[:6], wide[5:]]]),
        ([[wide[0:4]]], [[wide[1:5]]]),
        ([[wide[:, :4]]], [[wide[:, :4].clone()]]),
        ([[A]], [[B, B]]),
        ([[A]], [[B.double()]]),
        ([[A.int()]], [[A.int()]]),
        ([(A,)], [[B]]),
        ([[]], [[]]),
        ([[A]], [["B"]]),
        ([[A]], [[torch._neg_view(B)]]),
        ([[FROZEN]], [[ROW]]),
        ([[ROW]], [[freed()]]),
    ):
        assert not _C.lists_agree(written, read)


def test_lazily_negated_values_are_read():
    phase = torch.complex(torch.ones(3), torch.arange(3.0))
    e = torch.zeros(3)
    ema_update_(e, phase.conj().imag, 0.0)
    assert phase.conj().imag.is_neg() and e.tolist() == [0.0, -1.0, -2.0]


def test_inference_tensors_are_averaged_in_inference_mode():
    with torch.inference_mode():
        e = torch.zeros(4, 3)
        ema_update_(e, torch.ones(4, 3), 0.5)
    assert (e == 0.5).all()


def test_strides_that_are_no_nest_of_rows_are_written_where_they_meet_nowhere():
    e = torch.zeros(8).as_strided((3, 2), (2, 3))  # places 0, 3, 2, 5, 4, 7
    ema_update_(e, torch.ones(3, 2), 0.5)
    assert (e == 0.5).all()


def test_fake_tensors_share_memory_where_real_ones_would():
    with FakeTensorMode():
        e, p = torch.zeros(4, 3), torch.ones(4, 3)
        ema_update_([e, p], [p.clone(), e.clone()], 0.9)
        with pytest.raises(ValueError, match=r"ema\[0\] and ema\[1\] share memory"):
            ema_update_([e[:3], e[1:]], [p[:3], p[1:]], 0.9)
        fake = torch.tensor(0.9)
    for options in ({"momentum": fake}, {"momentum": 0.9, "seed": fake.long()}):
        with pytest.raises(ValueError, match=r"ema_update_: ema and .* must both be fake tensors or both have data"):
            ema_update_(A, B, **options)


@pytest.mark.parametrize("order", ["lerp", "mul_add"])
def test_a_tensor_averaged_with_itself_stays(order):
    def plain(e, p, m, order):
        reference.ema_update_([e], [p], [], m, None, order == "mul_add", False, 0, None)

    for update in (ema_update_, plain):
        e = torch.tensor([1.0, -2.0])
        update(e, e.view(2), 0.75, order=order)
        assert e.tolist() == [1.0, -2.0]

"""Soft cross-entropy and Sinkhorn on a GPU at sizes of real training: against float64, in place, without waiting, in a graph."""

import pytest
import torch

from fastssl.functional import sinkhorn, soft_cross_entropy
from fastssl.graphs import record
from fastssl.ops._register import OWNERS
from fastssl.reference import sinkhorn as sinkhorn_reference
from fastssl.reference import soft_cross_entropy as reference
from fastssl.testing.compare import assert_no_worse, relative_error
from tests.gpu.common import no_sync

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPS = torch.ops.fastssl
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def make(on_device):
    """``make(s, t, batch, k)``: arguments of ``soft_cross_entropy_fwd`` but for the last one; in the rehearsal fewer columns."""

    def arguments(s, t, batch, k, dtype=BF16, size=3.0, groups=0, weight=False, heads=None, given=False):
        k = on_device(k, k % 4093 % 400 + 5)
        gen = torch.Generator().manual_seed(s + batch)
        rand = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
        student, teacher = (size * rand(n * batch, k) for n in (s, t))
        teacher = teacher.softmax(1) if given else teacher
        bias = (size * rand(groups, k)).cuda() if groups else None
        weights = (rand(s * batch).abs() * (torch.arange(s * batch) % 5 > 0)).cuda() if weight else None
        sizes = [k // heads + (h < k % heads) for h in range(heads)] if heads else [k]
        tensors = student.to(dtype).cuda(), teacher.to(dtype).cuda(), bias, weights, torch.tensor([0.1, 0.04]).cuda()
        return *tensors, sizes, batch, 1, s * t > 1, given

    return arguments


def wide(args):
    return [t.double() if isinstance(t, torch.Tensor) else t for t in args]


#: (S, T, batch, K) and the rest of ``make``: one launch, split rows, crops, several heads, rows of no whole vectors.
SHAPES = {
    "iBOT": ((1, 1, 700, 65536), {"groups": 1, "weight": True}),
    "plain": ((1, 1, 300, 65536), {}),
    "given": ((1, 1, 600, 32000), {"given": True}),
    "few": ((1, 1, 24, 65536), {"groups": 1}),
    "few given": ((1, 1, 24, 65536), {"given": True, "weight": True}),
    "DINO": ((10, 2, 16, 65536), {"groups": 1}),
    "DINO without centre": ((10, 2, 16, 65536), {}),
    "SwAV": ((8, 2, 64, 3000), {}),
    "many teachers": ((3, 6, 8, 4096), {"given": True}),
    "heads": ((1, 1, 600, 6000), {"heads": 3, "groups": 1}),
    "odd": ((1, 1, 600, 3001), {"groups": 1}),
    "positions": ((1, 1, 640, 4096), {"groups": 16}),
    "short": ((1, 1, 3000, 100), {"groups": 1}),
}


@pytest.mark.cuda_only
def test_the_owner_is_triton():
    names = "soft_cross_entropy_fwd", "soft_cross_entropy_in_place", "soft_cross_entropy_scale", "sinkhorn_start", "sinkhorn_step"
    assert {OWNERS[name]["CUDA"] for name in names} == {"Triton"}


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradient(make, name, dtype):
    shape, how = SHAPES[name]
    args = make(*shape, dtype=dtype, **how)
    ours = OPS.soft_cross_entropy_fwd(*args, True)
    plain, truth = (reference.soft_cross_entropy_fwd(*arguments, True) for arguments in (args, wide(args)))
    for what, got, eager, true, of in zip(("loss", "gradient"), ours, plain, truth, (F32, dtype), strict=True):
        assert got.dtype == of
        assert_no_worse(f"{name} {what}", got, eager, true, of)
    assert torch.equal(OPS.soft_cross_entropy_fwd(*args, False)[0], ours[0])
    student, *rest = args
    student = student.clone()
    assert torch.equal(OPS.soft_cross_entropy_in_place(student, *rest), ours[0]) and torch.equal(student, ours[1])
    upstream = torch.linspace(-1, 1, len(student), device="cuda")
    upstream[::4] = 1.0
    OPS.soft_cross_entropy_scale(student, upstream)
    torch.testing.assert_close(student, (ours[1].float() * upstream[:, None]).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["iBOT", "few", "DINO", "heads"])
def test_same_bits_in_twenty_runs(make, name):
    shape, how = SHAPES[name]
    args = make(*shape, **how)
    first = OPS.soft_cross_entropy_fwd(*args, True)
    for _ in range(20):
        assert all(map(torch.equal, OPS.soft_cross_entropy_fwd(*args, True), first))


@pytest.mark.parametrize("size", [100.0, 1e-3])
@pytest.mark.parametrize("name", ["iBOT", "DINO"])
def test_large_and_small_logits(make, name, size):
    shape, how = SHAPES[name]
    student, teacher, bias, *rest = make(*shape, dtype=F32, size=size, **how)
    for center in (bias, -teacher[:1]):
        args = student, teacher, center, *rest
        ours, plain = OPS.soft_cross_entropy_fwd(*args, True), reference.soft_cross_entropy_fwd(*args, True)
        for what, *three in zip(
            ("loss", "gradient"), ours, plain, reference.soft_cross_entropy_fwd(*wide(args), True), strict=True
        ):
            assert_no_worse(what, *three, F32)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("rows, k, groups, heads", [(700, 65536, 1, 1), (64, 65536, 1, 1), (512, 3000, 16, 2), (300, 3001, 1, 1)])
@pytest.mark.parametrize("size", [2.0, 100.0])
def test_passes_of_sinkhorn(on_device, rows, k, groups, heads, size, dtype):
    k = on_device(k, k % 4093 % 400 + 5)
    x = (size * torch.randn(rows, k, generator=torch.Generator().manual_seed(0))).to(dtype).cuda()
    temperature, sizes = torch.tensor([0.05]).cuda(), [k // heads, k - k // heads] if heads > 1 else [k]
    plain, truth = (sinkhorn_reference.sinkhorn_start(y, t, 1, groups) for y, t in ((x, temperature), (x.double(), temperature)))
    start = OPS.sinkhorn_start(x, temperature, 1, groups)
    for what, *three in zip(("top", "sum"), start, plain, truth, strict=True):
        assert_no_worse(what, *three, F32)
    bias = -(truth[0] + 0.05 * truth[1].log()).float()
    step = OPS.sinkhorn_step(x, bias, temperature, sizes, 1)
    plain = sinkhorn_reference.sinkhorn_step(x, bias, temperature, sizes, 1)
    true = sinkhorn_reference.sinkhorn_step(x.double(), bias.double(), temperature.double(), sizes, 1)
    assert_no_worse("step", step, plain, true, F32)
    assert torch.equal(OPS.sinkhorn_step(x, bias, temperature, sizes, 1), step)


def teach(student, teacher, student_t, teacher_t):
    """Half of a DINOv2 step: balanced targets, the loss, its gradient."""
    leaf = student.detach().requires_grad_()
    potential = sinkhorn(teacher, teacher_t)
    loss = soft_cross_entropy(
        leaf * 1, teacher, student_temperature=student_t, teacher_temperature=teacher_t, potential=potential, in_place=True
    )
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def test_a_step_waits_for_nothing_and_a_graph_reads_the_temperatures_anew(on_device):
    student, teacher = (torch.randn(200, on_device(8192, 300), device="cuda") for _ in range(2))
    temperatures = torch.full((), 0.1, device="cuda"), torch.full((), 0.04, device="cuda")
    teach(student, teacher, *temperatures)
    with no_sync():
        teach(student, teacher, *temperatures)
    graph, found = record(lambda: teach(student, teacher, *temperatures))
    for value in (0.07, 0.05):
        temperatures[1].fill_(value)
        graph.replay()
        assert all(map(torch.equal, found, teach(student, teacher, *temperatures)))


@pytest.mark.cuda_only
def test_memory_beside_logits_and_gradient_is_of_the_size_of_a_row():
    student, teacher = (torch.randn(1000, 65536, device="cuda", dtype=BF16) for _ in range(2))
    logits = student.requires_grad_() * 1
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    potential = sinkhorn(teacher, 0.04)
    soft_cross_entropy(logits, teacher, potential=potential, in_place=True).backward()
    assert torch.cuda.max_memory_allocated() - before < 200 << 20  # a copy of the logits takes 131 MB: the gradient of the leaf


@pytest.mark.large
@pytest.mark.parametrize("crops", [1, 2])
def test_rows_beyond_two_to_the_31_elements(on_device, crops):
    """The last rows have what they have alone."""
    k, last = on_device(65536, 64), 128
    batch = (on_device(2**31, 2**15) // k + 1024) // crops // 64 * 64
    student, teacher = (torch.zeros(crops * batch, k, device="cuda", dtype=BF16) for _ in range(2))
    own = [torch.randn(last, k, generator=torch.Generator().manual_seed(n)).to(BF16).cuda() for n in range(2)]
    student[-last:], teacher[-last:] = own
    bias, temperatures = torch.randn(1, k).cuda(), torch.tensor([0.1, 0.04]).cuda()
    loss = OPS.soft_cross_entropy_in_place(student, teacher, bias, None, temperatures, [k], batch, 1, False, False)
    if crops == 1:
        want, gradient = OPS.soft_cross_entropy_fwd(*own, bias, None, temperatures, [k], last, 1, False, False, True)
        assert relative_error(loss[-last:], want) < 1e-5 and relative_error(student[-last:], gradient) < 1e-2
    assert loss.isfinite().all() and student[-last:].float().abs().sum(1).min() > 0
    top, total = OPS.sinkhorn_start(teacher, temperatures[1:].clone(), 1, 1)
    assert torch.equal(top[0], teacher[-last:].float().amax(0).clamp(min=0))
    zeros = len(teacher) - last
    rest = ((own[1].double() - top.double()) / 0.04).exp().sum(0) + zeros * (-top[0].double() / 0.04).exp()
    assert relative_error(total[0], rest) < 1e-4
    sums = OPS.sinkhorn_step(teacher, bias, temperatures[1:].clone(), [k], 1)
    assert abs(float(sums.double().sum()) / len(teacher) - 1) < 1e-4

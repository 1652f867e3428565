"""The case table on a GPU: value and gradients in every dtype and precision, bits, graphs, no sync, sizes beyond 32 bits.

Run by ``python -m benchmarks.gpu`` and by ``pytest`` where a GPU is; skipped elsewhere.
"""

import pytest
import torch

from fastssl.functional import moco_loss, nt_xent, similarity_lse
from fastssl.ops._register import OWNERS
from fastssl.testing import contrastive
from fastssl.testing.cases import CASES, eager_lse, two_views
from fastssl.testing.compare import assert_no_worse, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LARGER = {
    "similarity": [(513, 1029, 128), (300, 5000, 256), (257, 300, 300), (64, 70, 1024)],
    "loss": [(256, 128), (1000, 96), (200, 512)],
}
CASE_SHAPES = [
    pytest.param(case, shape, id=f"{name}-{'x'.join(map(str, shape))}")
    for name, case in CASES.items()
    for shape in (*case.shapes, *LARGER["similarity" if len(case.shapes[0]) == 3 else "loss"])
]


def gradients(call, inputs, dtype=None):
    inputs = {name: t.to(dtype or t.dtype).detach().clone().requires_grad_() for name, t in inputs.items()}
    out = call(**inputs)
    rows = out.isfinite()
    upstream = torch.linspace(0.5, 1.5, out.numel(), device=out.device, dtype=torch.float64).reshape(out.shape).to(out.dtype)
    (out * upstream)[rows].sum().backward()
    return out.detach(), {name: t.grad for name, t in inputs.items()}


@pytest.fixture(params=["highest", "high"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def compare(case, shape, dtype):
    inputs = case.inputs(shape, dtype, "cuda")
    (out, grads), (eager, eager_grads) = gradients(case.ours, inputs), gradients(case.eager, inputs)
    truth, true_grads = gradients(case.eager, inputs, torch.float64)
    assert_no_worse(case.name, out, eager, truth, dtype)
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype
        assert_no_worse(f"{case.name} d{name}", grad, eager_grads[name], true_grads[name], dtype)


@pytest.mark.parametrize("case, shape", CASE_SHAPES)
def test_float32(case, shape, precision):
    compare(case, shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case, shape", CASE_SHAPES)
def test_half(case, shape, dtype):
    compare(case, shape, dtype)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_temperatures(temperature):
    def run(f, dtype):
        views = [t.requires_grad_() for t in two_views((300, 64), dtype, "cuda").values()]
        loss = f(*views, temperature)
        return [loss.detach(), *torch.autograd.grad(loss, views)]

    for got, eager, truth in zip(
        run(nt_xent, torch.float32), run(contrastive.nt_xent, torch.float32), run(contrastive.nt_xent, torch.float64), strict=True
    ):
        assert_no_worse(f"tau {temperature}", got, eager, truth, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_in_twenty_runs(name):
    case = CASES[name]
    inputs = case.inputs(case.shape(700, 128), torch.bfloat16, "cuda")
    first = gradients(case.ours, inputs)
    for _ in range(20):
        again = gradients(case.ours, inputs)
        assert torch.equal(first[0], again[0]) and all(torch.equal(first[1][k], again[1][k]) for k in inputs)


LOSSES = ("nt_xent", "info_nce", "clip", "siglip", "moco", "sup_con", "info_nce_hard", "siglip_grouped")


def step(case, inputs):
    out = case.ours(**inputs)
    return out, torch.autograd.grad(out.sum(), list(inputs.values()))


def trained(case, seed=0):
    inputs = case.inputs(case.shape(256, 128), torch.bfloat16, "cuda", seed=seed)
    return {name: t.requires_grad_() for name, t in inputs.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_captured_in_a_graph_and_replayed(name):
    case = CASES[name]
    inputs = trained(case)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(case, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, grads = step(case, inputs)
    for t, fresh in zip(inputs.values(), trained(case, seed=9).values(), strict=True):
        t.data.copy_(fresh.data)
    graph.replay()
    want, want_grads = step(case, inputs)
    assert torch.equal(out, want) and all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_no_step_synchronises_with_the_host(name):
    case = CASES[name]
    inputs = trained(case)
    step(case, inputs)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", ["dk", "kd"])
def test_moco_takes_a_queue_of_both_layouts_and_counts_ranks(layout):
    query, key = (torch.nn.functional.normalize(torch.randn(300, 128), dim=1) for _ in range(2))
    queue = torch.nn.functional.normalize(torch.randn(128, 5000), dim=0)
    want, counted = moco_loss(query, key, queue, return_stats=True)
    held = (queue if layout == "dk" else queue.T.contiguous()).cuda()
    leaf = query.cuda().requires_grad_()
    loss, stats = moco_loss(leaf, key.cuda(), held, layout=layout, return_stats=True)
    held.fill_(float("nan"))
    loss.backward()
    torch.testing.assert_close(loss.cpu(), want, rtol=1e-4, atol=1e-4)
    assert (stats.rank.cpu() != counted.rank).sum() <= 3  # nearly equal similarities
    assert leaf.grad.isfinite().all()


def test_rows_beyond_32_bit_offsets():
    """M D = 2^31 + 2^24 elements of columns: the last ones decide."""
    m, d = (1 << 24) + (1 << 17), 128
    y = torch.zeros(m, d, device="cuda", dtype=torch.bfloat16)
    x = torch.nn.functional.normalize(torch.randn(16, d, device="cuda"), dim=1).bfloat16().requires_grad_()
    y[-16:] = x.detach()
    lse = similarity_lse(x, y, scale=50.0)
    own = eager_lse(x.double(), y[-16:].double(), 50.0)
    want = torch.logaddexp(own, torch.full_like(own, m - 16).log())
    assert relative_error(lse, want) < 1e-5
    lse.sum().backward()
    assert x.grad.isfinite().all() and x.grad.ne(0).any()


def test_memory_is_linear_in_the_batch():
    views = [t.requires_grad_() for t in two_views((65536, 128), torch.bfloat16, "cuda").values()]
    nt_xent(*views).backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nt_xent(*views).backward()
    assert torch.cuda.max_memory_allocated() - before < 300 << 20  # the matrix alone would take 32 GiB in bfloat16


def test_a_kernel_serves_the_cuda_key():
    assert all(owners["CUDA"] != "reference" for owners in OWNERS.values())

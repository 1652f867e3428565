"""The case table on a GPU: value and gradients in every dtype and precision, ids, equal bits, graphs, no waiting, memory.

``python -m benchmarks.gpu`` runs these tests, and ``pytest`` does where there is a GPU; elsewhere they are skipped.
"""

import pytest
import torch

from fastssl.functional import moco_loss, nt_xent, similarity_lse
from fastssl.graphs import record
from fastssl.ops._register import OWNERS
from fastssl.ops.sigmoid_pair import sigmoid_pair
from fastssl.ops.similarity_cross import similarity_cross
from fastssl.testing import contrastive
from fastssl.testing.cases import CASES
from fastssl.testing.compare import assert_no_worse, relative_error
from fastssl.testing.inputs import two_views
from tests.gpu.common import no_sync, rounded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LARGER = {
    "similarity": [(513, 1029, 128), (300, 5000, 256), (257, 300, 300), (64, 70, 1024)],
    "tokens": [(7, 300, 256), (33, 50, 768)],
    "loss": [(256, 128), (1000, 96), (200, 512)],
}
TOKENS = ("gather_tokens", "restore_tokens")


def kind(case):
    return "tokens" if case.name in TOKENS else "similarity" if len(case.shapes[0]) == 3 else "loss"


CASE_SHAPES = [
    pytest.param(case, shape, id=f"{name}-{'x'.join(map(str, shape))}")
    for name, case in CASES.items()
    for shape in (*case.shapes, *LARGER[kind(case)])
]


def shape_of(case, b, d):
    """The shape of a case with about b rows of width d."""
    return (b // 10, 20, d) if kind(case) == "tokens" else case.shape(b, d)


def gradients(call, inputs, dtype=None):
    inputs = {name: t.to(dtype or t.dtype).detach().clone().requires_grad_() for name, t in inputs.items()}
    out = call(**inputs)
    rows = out.isfinite()
    upstream = torch.linspace(0.5, 1.5, out.numel(), device=out.device, dtype=torch.float64).reshape(out.shape).to(out.dtype)
    (out * upstream)[rows].sum().backward()
    return out.detach(), {name: t.grad for name, t in inputs.items()}


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def compare(case, shape, dtype):
    """Error against error. Where products may round float32, the eager run on rounded inputs also counts, since cuBLAS does not
    round for all shapes."""
    inputs, precision = case.inputs(shape, dtype, "cuda"), torch.get_float32_matmul_precision()
    (out, grads), runs = gradients(case.ours, inputs), [gradients(case.eager, inputs)]
    if dtype == torch.float32 and precision != "highest":
        runs.append(gradients(case.eager, {name: rounded(t, precision) for name, t in inputs.items()}))
    truth, true_grads = gradients(case.eager, inputs, torch.float64)

    def check(name, got, eagers, true):
        assert_no_worse(name, got, max(eagers, key=lambda eager: finite_error(eager, true)), true, dtype)

    check(case.name, out, [eager for eager, _ in runs], truth)
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype
        check(f"{case.name} d{name}", grad, [eager[name] for _, eager in runs], true_grads[name])


def finite_error(got, truth):
    error = relative_error(got, truth)
    return error if error < float("inf") else 0.0


@pytest.mark.parametrize("case, shape", CASE_SHAPES)
def test_float32(case, shape, precision):
    if case.name == "koleo" and precision != "highest":
        pytest.skip("a rounded product may find another one of two rows that are almost as near")
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_in_twenty_runs(name, dtype):
    case = CASES[name]
    inputs = case.inputs(shape_of(case, 700, 128), dtype, "cuda")
    first = gradients(case.ours, inputs)
    for _ in range(20):
        again = gradients(case.ours, inputs)
        assert torch.equal(first[0], again[0]) and all(torch.equal(first[1][k], again[1][k]) for k in inputs)


def step(case, inputs):
    out = case.ours(**inputs)
    return out, torch.autograd.grad(out.sum(), list(inputs.values()))


def trained(case, seed=0):
    inputs = case.inputs(shape_of(case, 256, 128), torch.bfloat16, "cuda", seed=seed)
    return {name: t.requires_grad_() for name, t in inputs.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_captured_in_a_graph_and_replayed(name):
    case = CASES[name]
    inputs = trained(case)
    graph, (out, grads) = record(lambda: step(case, inputs))
    for t, fresh in zip(inputs.values(), trained(case, seed=9).values(), strict=True):
        t.data.copy_(fresh.data)
    graph.replay()
    want, want_grads = step(case, inputs)
    assert torch.equal(out, want) and all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_no_step_synchronises_with_the_host(name):
    case = CASES[name]
    inputs = trained(case)
    step(case, inputs)  # compiles
    with no_sync():
        step(case, inputs)


#: dtype of ids -> the step between them. In 64 bits, ids that differ have equal lower halves.
IDS = {torch.int64: 2**32, torch.int32: -(2**29), torch.int16: 10_000, torch.int8: -40, torch.uint8: 100}
ID_OPS = {
    "lse": lambda x, y, **ids: similarity_lse(x, y, scale=5.0, **ids),
    "rows only": lambda x, y, **ids: similarity_lse(x, y.detach(), scale=5.0, **ids),
    "symmetric": lambda x, y, x_id, y_id: similarity_lse(x, x, scale=5.0, x_id=x_id) + 0 * y.sum(),
    "cross": lambda x, y, **ids: torch.cat(similarity_cross(x, y, scale=5.0, **ids)[:2]),
    "sigmoid": lambda x, y, **ids: sigmoid_pair(x, y, scale=5.0, bias=-3.0, **ids),
}


@pytest.mark.parametrize("width", [64, 300])
@pytest.mark.parametrize("dtype", IDS, ids=str)
@pytest.mark.parametrize("op", ID_OPS.values(), ids=ID_OPS)
def test_ids_of_every_integer_dtype(op, dtype, width):
    """The result is that of int64 ids 0, 1, 2 on the CPU in float64; without ids it is another."""
    x, y = (torch.nn.functional.normalize(torch.randn(rows, width, dtype=torch.float64), dim=1) for rows in (130, 70))
    numbers = [torch.arange(rows) * 7 % 3 for rows in (130, 70)]

    def run(device, float_dtype, ids):
        leaves = [t.to(device, float_dtype).requires_grad_() for t in (x, y)]
        out = op(*leaves, x_id=ids[0], y_id=ids[1])
        return [out.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(out.sum(), leaves, materialize_grads=True))]

    truth = run("cpu", torch.float64, numbers)
    found = run("cuda", torch.float32, [(t * IDS[dtype]).to(dtype).cuda() for t in numbers])
    unmasked = run("cpu", torch.float64, [torch.arange(130), torch.arange(70) + 1000])
    assert relative_error(unmasked[0], truth[0]) > 1e-3
    for got, want in zip(found, truth, strict=True):
        assert relative_error(got, want) < 1e-5


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


def test_memory_is_linear_in_the_batch(on_device):
    views = [t.requires_grad_() for t in two_views((on_device(65536, 256), 128), torch.bfloat16, "cuda").values()]
    nt_xent(*views).backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nt_xent(*views).backward()
    assert torch.cuda.max_memory_allocated() - before < 300 << 20  # the matrix alone would take 32 GiB in bfloat16


@pytest.mark.cuda_only
def test_a_kernel_serves_the_cuda_key():
    """The one exception is the patch loss with its gradient in one pass, which is used on CPUs only."""
    served = {op for op, owners in OWNERS.items() if owners["CUDA"] != "reference"}
    assert OWNERS.keys() - served == {"patch_loss_one_pass"}

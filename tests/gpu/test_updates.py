"""The CUDA C++ updates on a GPU: torch's bits, the CPU's bits, one launch, no waiting, graphs, many tables, large tensors."""

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import ema_update_, moco_loss, queue_push_
from fastssl.graphs import record
from fastssl.ops._register import OWNERS, why_not_cuda
from tests.gpu.common import no_sync, odd, on_gpu, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = [(5,), (3, 4), (64, 3, 7, 7), (), (0,), (1000, 33), (8192,), (3 * 8192 + 5,), (300_001,)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def pair(dtype=torch.float32, other=None, shapes=SHAPES):
    """Tensors on the CPU, the same ones for the same test."""
    return [torch.randn(s).to(dtype) for s in shapes], [torch.randn(s).to(other or dtype) for s in shapes]


@pytest.mark.cuda_only
def test_the_owner_is_cuda():
    assert why_not_cuda is None
    assert OWNERS["ema_update_"]["CUDA"] == OWNERS["queue_push_"]["CUDA"] == "CUDA C++"


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("order", ["lerp", "mul_add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ema_has_torchs_bits_on_the_gpu_and_ours_on_the_cpu(dtype, order, momentum):
    e, p = pair(dtype)
    ours, theirs, params = on_gpu(e), on_gpu(e), on_gpu(p)
    for _ in range(5):
        ema_update_(ours, params, momentum, order=order)
        if order == "lerp":
            torch._foreach_lerp_(theirs, params, 1.0 - momentum)
        else:
            torch._foreach_mul_(theirs, momentum)
            torch._foreach_add_(theirs, params, alpha=1.0 - momentum)
        ema_update_(e, p, momentum, order=order)
    assert same(ours, theirs)
    assert same(ours, e)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("shadow", [None, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("other", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ema_of_mixed_dtypes_has_the_cpus_bits(dtype, other, shadow, rounding):
    e, p = pair(dtype, other)
    s = [torch.zeros(t.shape, dtype=shadow) for t in e] if shadow else None
    ours, our_shadow = on_gpu(e), on_gpu(s) if s else None
    ema_update_(ours, on_gpu(p), 0.99, shadow=our_shadow, rounding=rounding, seed=11)
    ema_update_(e, p, 0.99, shadow=s, rounding=rounding, seed=11)
    assert same(ours, e)
    assert s is None or same(our_shadow, s)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ema_at_odd_addresses_and_in_other_layouts(dtype):
    e, p = pair(dtype, shapes=[(8193,), (70, 30), (8, 3, 5, 7)])
    expected = [t.clone() for t in e]
    ema_update_(expected, p, 0.9)
    shifted = [odd(t.cuda()) for t in e]
    ema_update_(shifted, on_gpu(p), 0.9)
    assert same(shifted, expected)
    last = [t.cuda().to(memory_format=torch.channels_last) if t.dim() == 4 else t.cuda() for t in e]
    ema_update_(last, on_gpu(p), 0.9)
    assert same(last, expected)


def test_ema_is_one_launch_without_a_sync(kernels_of):
    e, p = map(on_gpu, pair())
    momentum = torch.tensor(0.99, device="cuda", dtype=torch.float64)
    ema_update_(e, p, momentum)
    with no_sync():
        ema_update_(e, p, momentum)
    names = kernels_of(lambda: ema_update_(e, p, momentum))
    assert len(names) == 1, names


@pytest.mark.parametrize("warm", [True, False])
def test_ema_in_a_graph_reads_momentum_and_seed_anew(warm):
    """This also holds if the op sees the lists for the first time while the graph is captured."""
    e, p = pair(torch.bfloat16, torch.float32)
    ours, params = on_gpu(e), on_gpu(p)
    momentum, seed = torch.zeros((), device="cuda", dtype=torch.float64), torch.zeros((), device="cuda", dtype=torch.int64)
    if warm:
        ema_update_([t.clone() for t in ours], params, momentum, rounding="stochastic", seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ema_update_(ours, params, momentum, rounding="stochastic", seed=seed)
    for step in range(5):
        momentum.fill_(0.9 + 0.01 * step)
        seed.fill_(step)
        graph.replay()
        ema_update_(e, p, 0.9 + 0.01 * step, rounding="stochastic", seed=step)
    assert same(ours, e)


def test_tables_come_and_go_on_two_streams():
    """There are more lists than the cache holds, and each is used on one stream and then on another."""
    e, p = pair(shapes=[(5000,), (70, 90), (3,)])
    expected = [t.clone() for t in e]
    many = [(on_gpu(e), on_gpu(p)) for _ in range(40)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for turn in range(6):
        for ours, params in many:
            with torch.cuda.stream(streams[turn % 2]):
                ema_update_(ours, params, 0.9)
        torch.cuda.synchronize()
        ema_update_(expected, p, 0.9)
    assert all(same(ours, expected) for ours, _ in many)


@pytest.mark.parametrize("overflow", ["wrap", "truncate"])
@pytest.mark.parametrize("layout", ["dk", "kd"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_queue_has_the_cpus_contents(dtype, layout, overflow):
    draw = torch.Generator().manual_seed(1)
    for _ in range(25):
        size, width, count = (int(torch.randint(1, high, (), generator=draw)) for high in (300, 200, 700))
        queue, keys = torch.randn(size, width).to(dtype), torch.randn(count, 2 * width).to(dtype)[:, ::2]
        queue = queue.t().contiguous() if layout == "dk" else queue
        state = [queue, torch.randint(0, size, (1,), generator=draw), torch.zeros(size, dtype=torch.int64)]
        labels = torch.randint(0, 99, (count,), generator=draw)
        ours = on_gpu(state)
        for (q, ptr, label_queue), k, ids in ((state, keys, labels), (ours, keys.cuda(), labels.cuda())):
            for _ in range(3):
                queue_push_(q, ptr, k, layout=layout, overflow=overflow, label_queue=label_queue, labels=ids)
        assert same(ours, state), (size, width, count)


def test_a_push_between_loss_and_backward_is_captured():
    """A step is loss, push, backward. The push changes no gradient, and every replay moves the pointer."""
    query, key = (F.normalize(torch.randn(64, 32), dim=1).cuda() for _ in range(2))
    queue, ptr = F.normalize(torch.randn(32, 1000), dim=0).cuda(), torch.zeros(1, dtype=torch.int64, device="cuda")
    outside, outside_ptr = queue.clone(), ptr.clone()
    query.requires_grad_()

    def step(queue, ptr):
        loss = moco_loss(query, key, queue)
        queue_push_(queue, ptr, key)
        return (*torch.autograd.grad(loss, query), loss)

    graph, (gradient, loss) = record(lambda: step(queue, ptr), warm=lambda: step(queue.clone(), ptr.clone()))
    for _ in range(20):
        graph.replay()
        expected_gradient, expected_loss = step(outside, outside_ptr)
        assert torch.equal(gradient, expected_gradient) and torch.equal(loss, expected_loss)
    assert torch.equal(queue, outside) and ptr.item() == outside_ptr.item() == 20 * 64 % 1000

"""LARS and AdamW in CUDA C++ on a GPU: the CPU's bits, the number of launches, no waiting, graphs."""

from functools import partial

import pytest
import torch

from fastssl.graphs import record
from fastssl.ops._register import OWNERS
from fastssl.ops.adamw import adamw_
from fastssl.ops.lars import FORMS, lars_
from fastssl.optim import LARS, AdamW
from tests.gpu.common import no_sync, on_gpu, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = [(5,), (3, 4), (64, 3, 7, 7), (), (0,), (1000, 33), (8192,), (3 * 8192 + 5,), (300_001,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def lists(count, dtype=torch.float32):
    return [[torch.randn(shape).abs().to(dtype) for shape in SHAPES] for _ in range(count)]


def moved(state):
    return [on_gpu(tensors) for tensors in state]


STEPS = {form: (lars_, 3, {"lr": 0.3, "weight_decay": 0.125, "form": form}) for form in FORMS}
STEPS["adamw"] = (adamw_, 4, {"lr": 0.3, "step": 3, "betas": (0.4, 0.95), "eps": 1e-4, "weight_decay": 0.125})
each_step = pytest.mark.parametrize("op, count, rates", STEPS.values(), ids=STEPS)


@pytest.mark.cuda_only
def test_the_owner_is_cuda():
    assert OWNERS["lars_"]["CUDA"] == OWNERS["adamw_"]["CUDA"] == "CUDA C++"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_step
def test_the_cpus_bits(op, count, rates, dtype):
    state, copies = lists(count, dtype), lists(3, dtype)
    ours, our_copies = moved(state), moved(copies)
    for _ in range(3):
        for s, (ema, shadow, ema_shadow) in ((state, copies), (ours, our_copies)):
            op(*s, **rates, ema=ema, ema_momentum=0.9, shadow=shadow, ema_shadow=ema_shadow)
    tolerance = 1e-12 if dtype == torch.float64 else 0.0  # the norms are summed in another order
    for a, b in zip(ours + our_copies, state + copies, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("params, copies", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@each_step
def test_the_cpus_bits_of_mixed_dtypes(op, count, rates, params, copies):
    """Gradients and shadows may have another dtype than parameters and momenta."""
    state, (ema, shadow, ema_shadow) = lists(count, params), lists(3, copies)
    state[1] = [t.to(copies) for t in state[1]]
    ours, (our_ema, our_shadow, our_ema_shadow) = moved(state), moved([ema, shadow, ema_shadow])
    op(*state, **rates, ema=ema, ema_momentum=0.9, shadow=shadow, ema_shadow=ema_shadow)
    op(*ours, **rates, ema=our_ema, ema_momentum=0.9, shadow=our_shadow, ema_shadow=our_ema_shadow)
    found = [*ours, our_ema, our_shadow, our_ema_shadow]
    assert all(map(same, found, [*state, ema, shadow, ema_shadow]))


@each_step
def test_launches_without_a_sync(op, count, rates, kernels_of):
    state = moved(lists(count))
    (ema,) = moved(lists(1))
    rates = rates | {"lr": torch.tensor(0.3, device="cuda"), "ema": ema}
    op(*state, **rates)
    with no_sync():
        op(*state, **rates)
    names = kernels_of(lambda: op(*state, **rates))
    assert len(names) == (2 if op is lars_ else 1), names


MAKERS = {form: partial(LARS, form=form, weight_decay=0.1) for form in FORMS} | {"adamw": partial(AdamW, capturable=True)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_in_a_graph_reads_rate_and_count_anew(make):
    def start():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in SHAPES]
        for p in params:
            p.grad = torch.randn_like(p)
        rate = torch.tensor(0.1, device="cuda")
        return params, rate, make(params, lr=rate, ema=[p.detach().clone() for p in params])

    (params, rate, optimizer), (others, other_rate, other) = start(), start()
    other.step()
    graph, _ = record(optimizer.step)
    for turn in range(4):
        for r in (rate, other_rate):
            r.fill_(0.1 / (turn + 1))
        for p, q in zip(params, others, strict=True):
            p.grad.normal_()
            q.grad.copy_(p.grad)
        graph.replay()
        other.step()
    assert all(map(torch.equal, params, others))
    assert all(torch.equal(optimizer._copies["ema"][p], other._copies["ema"][q]) for p, q in zip(params, others, strict=True))

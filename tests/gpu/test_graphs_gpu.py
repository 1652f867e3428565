"""``fastssl.graphs`` on a GPU: inputs are copied to their places, results are renewed, and what no graph can hold is refused.

Whole training steps are in ``test_steps_gpu.py``."""

import pytest
import torch
from torch import nn

from fastssl.functional import nt_xent
from fastssl.graphs import capture_step
from fastssl.optim import LARS
from tests.gpu.common import no_sync

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def views(seed):
    torch.manual_seed(seed)
    return [torch.randn(64, 32).cuda().requires_grad_() for _ in range(2)]


def loss_and_gradient(z0, z1):
    loss = nt_xent(z0, z1)
    return {"loss": loss, "gradients": torch.autograd.grad(loss, (z0, z1)), "nothing": None}


def test_a_replay_is_the_call_and_reads_copies():
    first = views(0)
    graphed = capture_step(loss_and_gradient, *first)
    kept = [t.detach().clone() for t in first]
    for seed in (1, 2):
        given = views(seed)
        with no_sync():
            found = graphed(*given)
        expected = loss_and_gradient(*given)
        assert torch.equal(found["loss"], expected["loss"]) and found["nothing"] is None
        assert all(map(torch.equal, found["gradients"], expected["gradients"]))
        assert found is graphed.outputs and not found["loss"].requires_grad
    assert all(map(torch.equal, first, kept))


def test_an_input_may_be_written_where_it_lies_or_come_with_other_strides():
    graphed = capture_step(lambda x: x * 2, torch.zeros(3, 4, device="cuda"))
    (place,) = graphed.inputs
    place.fill_(3.0)
    assert (graphed(place) == 6).all()
    given = torch.arange(12.0, device="cuda").view(4, 3).t()
    assert torch.equal(graphed(given), given * 2)


def test_an_optimizer_moves_on_from_the_steps_of_the_warm_up():
    def training():
        torch.manual_seed(0)
        layer, rate = nn.Linear(8, 4).cuda(), torch.tensor(0.1, device="cuda")
        optimizer = LARS(layer.parameters(), lr=rate)

        def step(x):
            optimizer.zero_grad(set_to_none=True)
            layer(x).square().mean().backward()
            optimizer.step()

        return layer, step

    x = torch.linspace(-1, 1, 16).view(2, 8).cuda()
    (ours, step), (outside, plain) = training(), training()
    graphed = capture_step(step, x, warmup=3)
    for _ in range(2):
        assert graphed(x) is None
    for _ in range(5):
        plain(x)
    assert all(map(torch.equal, ours.parameters(), outside.parameters()))


def test_a_step_that_waits_is_refused_in_the_last_turn_of_the_warm_up():
    turns = []

    def step(x):
        turns.append(len(turns))
        return x * x.sum().item()

    with pytest.raises(RuntimeError, match=r"capture_step: the step cannot be captured: .*may wait for the GPU"):
        capture_step(step, torch.ones(3, device="cuda"))
    assert len(turns) == 3 and torch.cuda.get_sync_debug_mode() == 0


def test_a_number_as_a_result_is_refused():
    with pytest.raises(TypeError, match=r"capture_step: step must return tensors, .* got float, which a replay would not renew"):
        capture_step(lambda x: (x + 1, 0.5), torch.ones(3, device="cuda"))


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (lambda x: x[:2], ValueError, r"inputs\[0\] must have shape \(3,\), as when .* got \(2,\)"),
        (lambda x: x.double(), TypeError, r"inputs\[0\] must have dtype torch.float32, as when .* got torch.float64"),
        (lambda x: x.cpu(), ValueError, r"inputs\[0\] must be on cuda:0, as when .* got cpu"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_other_inputs_are_refused_and_nothing_is_changed(wrong, error, words):
    graphed = capture_step(lambda x, y: x + y, torch.ones(3, device="cuda"), torch.ones(3, device="cuda"))
    graphed(torch.full((3,), 2.0, device="cuda"), torch.ones(3, device="cuda"))
    with pytest.raises(error, match=words):
        graphed(wrong(torch.full((3,), 5.0, device="cuda")), torch.ones(3, device="cuda"))
    assert (graphed.inputs[0] == 2).all() and (graphed.outputs == 3).all()


def test_two_graphs_share_memory():
    x = torch.ones(1000, device="cuda")
    first = capture_step(lambda x: (x * 2).sum(), x)
    second = capture_step(lambda x: (x * 3).sum(), x, pool=first.graph.pool())
    assert first(x).item() == 2000 and second(x).item() == 3000

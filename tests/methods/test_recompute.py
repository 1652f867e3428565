"""Activation checkpointing runs a forward again in the backward: losses, gradients and every state are those of a run without."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastssl.methods import BYOL, NNCLR, PIRL, InstDisc, MeanTeacher, MoCo, MoCoV3
from tests.methods.test_momentum_methods import normed

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL, CLOSE = {"projection_dim": 6}, {"rtol": 1e-9, "atol": 1e-12}
MADE = {
    "moco": lambda b: MoCo(b, 10, queue_size=8, momentum=0.7, **SMALL),
    "moco symmetric": lambda b: MoCo(b, 10, queue_size=8, momentum=0.7, symmetric=True, bn_splits=2, **SMALL),
    "moco_v3": lambda b: MoCoV3(b, 10, momentum=0.7, total_steps=5, **SMALL),
    "byol": lambda b: BYOL(b, 10, momentum=0.7, total_steps=5, **SMALL),
    "mean_teacher": lambda b: MeanTeacher(b, 4, 10, momentum=0.7, total_steps=12, ramp_up=1.0),
    "nnclr": lambda b: NNCLR(b, 10, queue_size=8, **SMALL),
    "instdisc": lambda b: InstDisc(b, 12, 10, **SMALL),
    "pirl": lambda b: PIRL(nn.Sequential(nn.AdaptiveAvgPool2d(4), b), 12, 10, tile_size=1, **SMALL),
}


def made(name: str, dropout: float = 0.3) -> nn.Module:
    """The method in float64 around an encoder with dropout: the second run must draw the same numbers."""
    torch.manual_seed(5)
    return MADE[name](nn.Sequential(*normed(), nn.Dropout(dropout))).double()


def arguments(method: nn.Module, seed: int, batch: int = 5) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    views = [torch.rand(batch, 3, 4, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    if isinstance(method, InstDisc):
        return views[0], torch.randperm(12)[:batch]
    return (*views, torch.arange(batch) % 5 - 1) if isinstance(method, MeanTeacher) else tuple(views)


def run(method: nn.Module, call, steps: int = 4) -> list[torch.Tensor]:
    """Losses and input gradients of some steps of gradient descent; two batches are accumulated in each."""
    seen = []
    for step in range(steps):
        for part in range(2):
            given = arguments(method, 10 * step + part)
            loss = call(method, *given)
            loss.backward()
            seen += [loss.detach(), given[0].grad]
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.5)
                    p.grad = None
    return seen


def moves(method: nn.Module) -> dict[str, torch.Tensor]:
    """State that the method itself moves: all but the student's running statistics, which any second run moves again."""
    return {k: v for k, v in method.state_dict().items() if "teacher" in k or not ("running" in k or "num_batches" in k)}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_a_checkpointed_method_is_the_method(name, reentrant):
    plain, method = made(name), made(name)
    expected = run(plain, lambda method, *given: method(*given))
    got = run(method, lambda method, *given: checkpoint(method, *given, use_reentrant=reentrant))
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(moves(method), moves(plain), **CLOSE)
    if hasattr(method, "step"):
        assert int(method.step) == 8
    if name == "nnclr":
        assert int(method.queue_pointer) == 8 * 5 % 8


@pytest.mark.parametrize("part", ["backbone", "encoder"])
@pytest.mark.parametrize("name", ["moco", "byol", "nnclr"])
def test_a_checkpointed_part_is_the_part(name, part):
    """The usual way: the encoder's blocks, or the encoder, recompute by themselves, in student and teacher."""
    plain, method = made(name), made(name)
    for owner in {"backbone": ["encoder.backbone", "teacher.module.backbone", "backbone"], "encoder": ["encoder"]}[part]:
        try:
            module = method.get_submodule(owner)
        except AttributeError:
            continue
        module.forward = lambda x, own=module.forward: checkpoint(own, x, use_reentrant=False)
    expected = run(plain, lambda method, *given: method(*given))
    got = run(method, lambda method, *given: method(*given))
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(moves(method), moves(plain), **CLOSE)


@pytest.mark.parametrize("name", ["moco", "byol", "mean_teacher", "nnclr", "instdisc"])
def test_a_forward_that_is_not_the_last_is_refused(name):
    method = made(name)
    first, second = (checkpoint(method, *arguments(method, seed), use_reentrant=False) for seed in (0, 1))
    second.backward()
    with pytest.raises(NotImplementedError, match=f"{type(method).__name__}: activation checkpointing runs a forward again"):
        first.backward()


@pytest.mark.parametrize("name", ["moco", "byol", "mean_teacher", "nnclr", "instdisc"])
def test_two_forwards_of_the_same_views_are_refused(name):
    """Both would be given what the second one kept. The same tensors may serve again after a backward, or hold other views."""
    method, given = made(name), arguments(made(name), 0)
    for _ in range(2):
        checkpoint(method, *given, use_reentrant=False).backward()
    checkpoint(method, *given, use_reentrant=False)
    with torch.no_grad():
        given[0].mul_(0.5)
    checkpoint(method, *given, use_reentrant=False).backward()
    losses = [checkpoint(method, *given, use_reentrant=False) for _ in range(2)]
    with pytest.raises(NotImplementedError, match=f"{type(method).__name__}: activation checkpointing runs a forward again"):
        sum(losses).backward()


def test_the_second_run_may_be_asked_for_twice_and_copies_start_empty():
    method = made("moco")
    loss = checkpoint(method, *arguments(method, 0), use_reentrant=False)
    state = copy.deepcopy(method.state_dict())
    one, two = (torch.autograd.grad(loss, method.encoder.parameters(), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(one, two, **CLOSE)
    torch.testing.assert_close(moves(method), {key: state[key] for key in moves(method)}, rtol=0, atol=0)
    assert copy.deepcopy(method)._kept.result is None and method._kept.result is not None


def test_evaluation_may_be_checkpointed():
    method = made("moco").eval()
    given, state = arguments(method, 0), copy.deepcopy(method.state_dict())
    plain = torch.autograd.grad(method(*given), given[0])
    again = torch.autograd.grad(checkpoint(method, *given, use_reentrant=False), given[0])
    torch.testing.assert_close(again, plain, **CLOSE)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", ["mean_teacher", "nnclr", "instdisc"])
def test_compiled_it_moves_once_and_a_second_run_is_refused(name):
    """In a compiled graph the second run would see the moved state: refused with the checkpoint around it; with the checkpoint
    inside of it refused or right."""
    plain, method = made(name, dropout=0.0), made(name, dropout=0.0)
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True)
    given = arguments(method, 0)
    results = []
    for call, module in ((compiled, method), (plain, plain)):
        loss = call(*given)
        results.append((loss, *torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)))
    torch.testing.assert_close(*results, **CLOSE)
    torch.testing.assert_close(moves(method), moves(plain), **CLOSE)
    refused = f"{type(method).__name__}: activation checkpointing runs the method again"
    with pytest.raises(NotImplementedError, match=refused):
        checkpoint(compiled, *given, use_reentrant=False).backward()
    plain, method = made(name, dropout=0.0), made(name, dropout=0.0)
    inside = torch.compile(lambda *given: checkpoint(method, *given, use_reentrant=False), backend="aot_eager")
    try:
        inside(*given).backward()
    except NotImplementedError as error:
        assert re.search(refused, str(error))
    else:  # torch 2.11 runs nothing again there
        plain(*given).backward()
        for ours, theirs in zip(method.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)
        torch.testing.assert_close(moves(method), moves(plain), **CLOSE)

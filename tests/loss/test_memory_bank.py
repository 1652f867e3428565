"""MemoryBank and NTXentLoss with a bank, against lightly; refusals are in test_queue.py."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastssl.loss import NTXentLoss
from fastssl.momentum.queue import MemoryBank, MoCoQueue
from fastssl.testing.compare import assert_no_worse
from tests.momentum.test_queue import FLOATS, examples

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lightly():
    pytest.importorskip("lightly")
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    import lightly.loss
    import lightly.models.modules.memory_bank

    return lightly


def test_memory_bank_is_lightlys(lightly):
    @examples(60)
    @given(st.integers(1, 12), st.integers(1, 5), st.lists(st.tuples(st.integers(1, 15), st.booleans()), min_size=1, max_size=12))
    def pushes(size, width, steps):
        theirs = lightly.models.modules.memory_bank.MemoryBankModule((size, width), feature_dim_first=False)
        ours, queue = MemoryBank(size, width, overflow="truncate"), MoCoQueue(width, size, overflow="truncate")
        ours.bank.copy_(theirs.bank)
        queue.queue.copy_(theirs.bank.t())
        for count, update in steps:
            batch = torch.randn(count, width)
            (output, bank), (_, expected) = ours(batch, update=update), theirs(batch, update=update)
            if update:
                queue.push(batch)
            assert output is batch and torch.equal(bank, expected) and not bank.requires_grad
            assert all(torch.equal(rows, theirs.bank) for rows in (ours.bank, queue.keys))
            assert ours.bank_ptr.tolist() == queue.queue_ptr.tolist() == theirs.bank_ptr.tolist()

    pushes()


def test_memory_bank_wraps_keeps_labels_and_takes_the_width_of_the_first_batch():
    memory = MemoryBank(3, labels=True, dtype=torch.float64)
    assert memory.bank.shape == (3, 0)
    batch = torch.randn(5, 2, dtype=torch.float64)
    _, before = memory(batch, torch.arange(5), update=True)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(memory.bank, batch[[3, 4, 2]]) and memory.bank_labels.tolist() == [3, 4, 2]
    assert memory(batch)[1].data_ptr() == memory.bank.data_ptr() and memory.bank_ptr.tolist() == [2]
    resumed = MemoryBank(3, labels=True, dtype=torch.float64)
    resumed.load_state_dict(memory.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(resumed.buffers(), memory.buffers(), strict=True))
    for other in (MemoryBank(3, 4), MemoryBank(4)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            other.load_state_dict(MemoryBank(3, 2).state_dict())
    assert MemoryBank(0)(batch, update=True) == (batch, None) and not MemoryBank(0).state_dict()
    assert not MemoryBank(3, 2, persistent=False).state_dict()


def unit(rows: int, width: int, dtype=torch.float32):
    return torch.randn(rows, width).to(dtype).requires_grad_()


def run(loss, out0, out1):
    leaves = [t.detach().clone().requires_grad_() for t in (out0, out1)]
    value = loss(*leaves)
    value.backward()
    return value, *(t.grad for t in leaves)


@pytest.mark.parametrize("temperature", [0.1, 0.5, -1.0])
def test_nt_xent_with_a_bank_is_lightlys(lightly, temperature, isa):
    """Value, both gradients and the bank agree over six steps, for every batch from 1 to 16 and banks that fill up and truncate."""
    for batch in range(1, 17):
        size, width = 1 + (5 * batch) % 37, (8, 1, 3)[batch % 3]
        ours = NTXentLoss(temperature, memory_bank_size=(size, width))
        theirs = lightly.loss.NTXentLoss(temperature, memory_bank_size=(size, width))
        theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
        truth = copy.deepcopy(theirs).double()
        for step in range(6):
            out0, out1 = torch.randn(2, batch + step % 2, width)
            with torch.no_grad():
                torch.testing.assert_close(ours(out0, out1), theirs(out0, out1))
            rows = zip(run(ours, out0, out1), run(theirs, out0, out1), run(truth, out0.double(), out1.double()), strict=True)
            for name, (got, eager, exact) in zip(("loss", "dout0", "dout1"), rows, strict=True):
                assert_no_worse(name, got, eager, exact, torch.float32)
            bank = ours.memory_bank.bank
            assert_no_worse("bank", bank, theirs.memory_bank.bank, truth.memory_bank.bank, torch.float32)
            assert ours.memory_bank.bank_ptr.tolist() == theirs.memory_bank.bank_ptr.tolist()


def test_nt_xent_bank_stays_where_out0_needs_no_gradient():
    loss, out0, out1 = NTXentLoss(memory_bank_size=(9, 4)), unit(5, 4), unit(5, 4)
    before = loss.memory_bank.bank.clone()
    loss(out0.detach(), out1)
    with torch.no_grad():
        loss(out0, out1)
    assert torch.equal(loss.memory_bank.bank, before)
    loss(out0, out1.detach())
    torch.testing.assert_close(loss.memory_bank.bank[:5], F.normalize(out1.detach(), dim=1))
    assert torch.equal(loss.memory_bank.bank[5:], before[5:])


def test_nt_xent_with_the_size_alone_makes_its_bank_at_the_first_batch():
    lazy, sized = (NTXentLoss(memory_bank_size=size, persistent_bank=True) for size in (9, (9, 4)))
    batch = (unit(5, 4), unit(5, 4))
    with torch.no_grad():
        lazy(*batch)
    assert lazy.memory_bank.bank.shape == (9, 4)
    sized.load_state_dict(lazy.state_dict())
    for _ in range(3):
        assert torch.equal(lazy(*batch), sized(*batch)) and torch.equal(lazy.memory_bank.bank, sized.memory_bank.bank)
    NTXentLoss(memory_bank_size=9).load_state_dict(sized.state_dict())
    assert not NTXentLoss().state_dict() and not NTXentLoss(memory_bank_size=(0, 4)).state_dict()


def test_checkpoints_of_nt_xent_with_a_bank_go_both_ways(lightly):
    """They load with strict=True, as Lightning's ckpt_path= does. A state dict that has the bank, also an older version's, gives it
    back."""
    ours, theirs, kept = (
        nn.ModuleDict({"net": nn.Linear(2, 2), "criterion": loss})
        for loss in (
            NTXentLoss(0.3, (9, 4)),
            lightly.loss.NTXentLoss(0.3, (9, 4)),
            NTXentLoss(0.3, (9, 4), persistent_bank=True),
        )
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert kept.state_dict().keys() - ours.state_dict().keys() == {"criterion.memory_bank.bank", "criterion.memory_bank.bank_ptr"}
    kept["criterion"](unit(3, 4), unit(3, 4))
    bank = ours["criterion"].memory_bank.bank.clone()
    for source, target in ((theirs, ours), (ours, theirs), (theirs, kept)):
        target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(ours["criterion"].memory_bank.bank, bank)
    ours.load_state_dict(kept.state_dict(), strict=True)
    for name in ("bank", "bank_ptr"):
        assert torch.equal(getattr(ours["criterion"].memory_bank, name), getattr(kept["criterion"].memory_bank, name))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("dtype", FLOATS)
def test_nt_xent_bank_takes_every_dtype_and_a_learned_temperature(dtype):
    loss, out0, out1 = NTXentLoss(nn.Parameter(torch.tensor(0.3)), (9, 4)), unit(5, 4, dtype), unit(5, 4, dtype)
    bank = loss.memory_bank.bank.double()
    a, b = (F.normalize(t.double(), dim=1) for t in (out0, out1))
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ bank.t()], 1) / 0.3
    value = loss(out0, out1)
    torch.testing.assert_close(value.double(), F.cross_entropy(logits, torch.zeros(5).long()), rtol=1e-2, atol=1e-3)
    value.backward()
    assert out1.grad.isfinite().all() and loss.temperature.grad.isfinite() and loss.memory_bank.bank.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any op returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def test_nt_xent_with_a_bank_makes_no_logits():
    loss, out0, out1 = NTXentLoss(memory_bank_size=(4096, 8)), unit(64, 8), unit(64, 8)
    with Largest() as ours:
        loss(out0, out1).backward()
    with Largest() as eager:
        (out0 @ loss.memory_bank.bank.t()).sum().backward()
    assert ours.elements <= 4096 * 8 and eager.elements == 64 * 4096


def test_nt_xent_moves_its_bank_to_the_batch():
    loss = NTXentLoss(memory_bank_size=(9, 4))
    assert loss(torch.randn(5, 4, device="meta"), torch.randn(5, 4, device="meta")).device.type == "meta"
    assert loss.memory_bank.bank.device.type == loss.memory_bank.bank_ptr.device.type == "meta"


@pytest.mark.parametrize("how", ["forward", "push"])
def test_a_refused_first_batch_leaves_the_bank_without_a_width(how):
    bank = MemoryBank(9, labels=True)
    call = partial(bank, update=True) if how == "forward" else bank.push
    for labels in (torch.tensor([1.0, 2.0]), torch.arange(3), None):
        with pytest.raises((TypeError, ValueError), match="MemoryBank: labels"):
            call(torch.randn(2, 3), labels)
        assert bank.bank.shape == (9, 0) and bank.bank_ptr.tolist() == [0]
    call(torch.randn(2, 4), torch.arange(2))
    assert bank.bank.shape == (9, 4) and bank.bank_labels.tolist()[:2] == [0, 1]

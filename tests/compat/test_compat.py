"""Drop-ins beside what they replace: lightly itself; solo-learn, byol-pytorch and dino as published, in plain PyTorch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastssl.loss
from fastssl.compat import byol, dino, lightly, moco, solo
from tests.support.compat_nets import Net, library, state, wander

pytestmark = pytest.mark.usefixtures("one_thread")


# --- momentum updates: every face of the same average ------------------------------------------------------------------------


class _Holder(nn.Module):
    """What ``_momentum_update_key_encoder`` needs of a class that it is patched into."""

    _momentum_update_key_encoder = moco.MoCo._momentum_update_key_encoder

    def __init__(self, encoder_q, encoder_k, m):
        super().__init__()
        self.encoder_q, self.encoder_k, self.m = encoder_q, encoder_k, m


def _solo_update(student, teacher, m):
    updater = solo.MomentumUpdater(m)
    updater.update(student, teacher)


UPDATES = {
    "moco": lambda student, teacher, m: _Holder(student, teacher, m)._momentum_update_key_encoder(),
    "lightly": lightly.update_momentum,
    "solo": _solo_update,
    "byol": lambda student, teacher, m: byol.update_moving_average(byol.EMA(m), teacher, student),
    "dino": dino.update_teacher,
    "dino, wrapped": lambda student, teacher, m: dino.update_teacher(nn.DataParallel(student), teacher, m),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES.keys())
def test_updates_follow_the_published_line(update):
    """teacher * m + student * (1 - m): two rounded products there, one product and an fma here, so the last bit may differ."""
    student, teacher = Net(tied=True), Net(tied=True)
    eps = torch.finfo(torch.float32).eps
    for m in (0.0, 0.3, 0.9, 0.996, 0.9995, 1.0):
        wander(student)
        objects = list(teacher.parameters())
        before, places = state(teacher), [p.data_ptr() for p in objects]
        update(student, teacher, m)
        assert all(a is b for a, b in zip(objects, teacher.parameters(), strict=True))
        assert places == [p.data_ptr() for p in teacher.parameters()]
        for (name, p), q in zip(teacher.named_parameters(), student.parameters(), strict=True):
            pulled = q * (1 - m)
            want = before[name] * m + pulled
            assert ((p - want).abs() <= eps * (want.abs() + pulled.abs())).all(), (m, name)
        for name, buffer in teacher.named_buffers():
            assert torch.equal(buffer, before[name])
        if m == 0.0:
            assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True))


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES.keys())
def test_updates_refuse_and_change_nothing(update):
    teacher = Net()
    before = state(teacher)
    for student, m in ((Net(9), 0.9), (Net(tied=True), 0.9), (Net(), math.nan), (Net(), 1.5), (Net(), "0.9"), (None, 0.9)):
        with pytest.raises((TypeError, ValueError)):
            update(student, teacher, m)
        assert all(torch.equal(t, before[name]) for name, t in state(teacher).items())
    update(nn.Identity(), nn.Identity(), 0.9)  # as a loop over no parameters


def test_updates_over_two_devices_refuse_before_the_first():
    student, teacher = Net(), Net()
    teacher.fc.to("meta")
    student.fc.double().to("meta")
    before = teacher.conv.weight.clone()
    with pytest.raises(TypeError, match="float64"):
        lightly.update_momentum(student, teacher, 0.5)
    assert torch.equal(teacher.conv.weight, before)
    student.fc.float()
    lightly.update_momentum(student, teacher, 0.5)
    torch.testing.assert_close(teacher.conv.weight, (before + student.conv.weight) / 2)


def test_updates_notice_a_new_layer():
    student, teacher = Net(), Net()
    lightly.update_momentum(student, teacher, 0.5)
    student.fc, teacher.fc = nn.Linear(6, 3), nn.Linear(6, 3)
    lightly.update_momentum(student, teacher, 0.0)
    assert torch.equal(teacher.fc.weight, student.fc.weight)
    step = torch.compile(lambda: lightly.update_momentum(student, teacher, 0.25), fullgraph=True, backend="eager")
    wander(student)
    before = teacher.fc.weight.clone()
    step()
    torch.testing.assert_close(teacher.fc.weight, 0.25 * before + 0.75 * student.fc.weight)


def test_updates_name_the_first_difference():
    with pytest.raises(ValueError, match=r"update_momentum: parameter 'fc.weight' .* \(9, 6\) and \(8, 6\)"):
        lightly.update_momentum(Net(9), Net(), 0.9)


# --- lightly -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def their_lightly():
    return library("lightly.models.modules"), library("lightly.models.modules.memory_bank"), library("lightly.models.utils")


def twins(ours, theirs, *args, **kwargs):
    """Both made from the same random numbers."""
    made = []
    for cls in (ours, theirs):
        torch.manual_seed(7)
        made.append(cls(*args, **kwargs))
    return made


@pytest.mark.parametrize("first", [True, False])
def test_memory_bank_keeps_lightlys_contents(their_lightly, first):
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        size, width, steps = (int(torch.randint(1, high, (), generator=generator)) for high in (18, 5, 9))
        ours, theirs = twins(lightly.MemoryBankModule, their_lightly[1].MemoryBankModule, (size, width), feature_dim_first=first)
        for _ in range(steps):
            count, update = int(torch.randint(1, 22, (), generator=generator)), bool(torch.randint(4, (), generator=generator))
            rows = torch.randn(count, width).to((torch.float32, torch.bfloat16, torch.float64)[count % 3])
            (_, bank), (_, their_bank) = ours(rows, update=update), theirs(rows, None, update)
            assert torch.equal(bank, their_bank) and bank.shape == their_bank.shape and not bank.requires_grad
            assert torch.equal(ours.bank, theirs.bank) and torch.equal(ours.bank_ptr, theirs.bank_ptr)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()


@pytest.mark.parametrize("size", [0, -1, (5, 2), [5, 2], (5,), (0,), (0, 2), (5, -2), (5, 2, 3), (-5, 2), ()])
def test_memory_bank_sizes(their_lightly, size):
    try:
        want = their_lightly[1].MemoryBankModule(size)
    except ValueError:
        with pytest.raises(ValueError, match="size"):
            lightly.MemoryBankModule(size)
        return
    got = lightly.MemoryBankModule(size)
    assert got.size == want.size and got.bank.shape == want.bank.shape
    assert (got(torch.ones(3, 2))[1] is None) == (want(torch.ones(3, 2))[1] is None)


@pytest.mark.parametrize("cls", [lightly.MemoryBankModule, lightly.NNMemoryBankModule])
def test_memory_banks_of_a_size_alone_take_the_width_of_the_first_batch(cls):
    """As lightly's did up to 1.5: 1.6 refuses the size, and has no default."""
    with pytest.warns(UserWarning, match=rf"{cls.__name__}: size=7 leaves the width .* give \(7, D\)"):
        lazy, sized = cls(7), cls((7, 3))
    assert lazy.size == (7,) and not lazy.state_dict()
    with pytest.warns(UserWarning, match="size=65536"):
        assert cls().size == (2**16,)
    rows = torch.randn(4, 3)
    lazy(rows)
    assert lazy.bank.shape == (7, 3)
    torch.testing.assert_close(lazy.bank.norm(dim=1), torch.ones(7))
    sized.bank.copy_(lazy.bank)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(lazy(rows, update=True), sized(rows, update=True), strict=True))
        assert torch.equal(lazy.bank, sized.bank) and torch.equal(lazy.bank_ptr, sized.bank_ptr)
    with pytest.raises(ValueError, match="output must be 2-D"), pytest.warns(UserWarning):
        cls(7)(torch.ones(3))


def test_memory_bank_as_a_base_class():
    """The bank handed out is a copy: the loss' backward may come after the push."""

    class Loss(lightly.MemoryBankModule):
        def forward(self, output):
            output, negatives = super().forward(output, update=True)
            return (output @ negatives).logsumexp(1).sum()

    loss, rows = Loss((6, 4)), torch.randn(6, 4, requires_grad=True)
    old = loss.bank.clone()
    loss(rows).backward()
    again = rows.detach().clone().requires_grad_()
    (again @ old.T).logsumexp(1).sum().backward()
    assert torch.equal(rows.grad, again.grad) and torch.equal(loss.bank, rows.detach())
    for broken in (torch.ones(2, 1), torch.ones(2, 4, 1), torch.ones(2, 4).int(), torch.ones(0, 4)):
        with pytest.raises((TypeError, ValueError), match=r"queue_push_: keys|Loss: output"):
            loss._dequeue_and_enqueue(broken)
        assert torch.equal(loss.bank, rows.detach())


def test_nearest_neighbors_are_lightlys(their_lightly):
    ours, theirs = twins(lightly.NNMemoryBankModule, their_lightly[0].NNMemoryBankModule, (33, 5))
    for count in (4, 16, 1, 9, 40, 7):
        rows, update = torch.randn(count, 5, requires_grad=True), count != 9
        with torch.no_grad():
            want = theirs(rows, update)
        got = ours(rows, update)
        assert torch.equal(got, want) and not got.requires_grad and torch.equal(ours.bank, theirs.bank)
    with pytest.raises(ValueError, match="at least one row"):
        lightly.NNMemoryBankModule(0)(rows)


@pytest.mark.torch_fuses
def test_lightlys_momentum_bit_for_bit(their_lightly):
    student, teachers = Net(tied=True), [Net(tied=True) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    for step in range(30):
        wander(student)
        m = 1 - 0.1 * 0.7**step
        lightly.update_momentum(student, teachers[0], m)
        their_lightly[2].update_momentum(student, teachers[1], m)
        assert all(torch.equal(a, b) for a, b in zip(*(state(t).values() for t in teachers), strict=True))
    assert lightly.NTXentLoss is fastssl.loss.NTXentLoss


# --- solo-learn --------------------------------------------------------------------------------------------------------------


def test_solo_tau_and_first_copy():
    updater = solo.MomentumUpdater(0.99, 0.9995)
    assert updater.cur_tau == updater.base_tau == 0.99 and updater.final_tau == 0.9995
    for step in range(0, 101, 7):
        updater.update_tau(cur_step=step, max_steps=100)
        assert updater.cur_tau == 0.9995 - (0.9995 - 0.99) * (math.cos(math.pi * step / 100) + 1) / 2
    online, momentum = Net(), Net()
    wander(online)
    buffers = {name: t.clone() for name, t in momentum.named_buffers()}
    solo.initialize_momentum_params(online, momentum)
    assert all(torch.equal(p, q) and not q.requires_grad for p, q in zip(online.parameters(), momentum.parameters(), strict=True))
    assert all(torch.equal(t, buffers[name]) for name, t in momentum.named_buffers()) and online.fc.weight.requires_grad
    for taus in ((0.9, 0.8), (-0.1, 1.0), (0.5, 1.1), (math.nan, 1.0), ("0.9", 1.0)):
        with pytest.raises((TypeError, ValueError), match="_tau"):
            solo.MomentumUpdater(*taus)
    for steps in ((1, 0), (-1, 5), (None, 5)):
        with pytest.raises((TypeError, ValueError), match="_step"):
            updater.update_tau(*steps)


def test_lazy_parameters_are_named():
    student, teacher = nn.LazyLinear(4), nn.LazyLinear(4)
    calls = {
        "initialize_momentum_params": lambda: solo.initialize_momentum_params(student, teacher),
        "MomentumUpdater.update": lambda: solo.MomentumUpdater(0.9, 1.0).update(student, teacher),
        "MoCo": lambda: moco.MoCo(lambda num_classes: nn.LazyLinear(num_classes), 4, 8),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: parameter 'weight' must be initialised, got a lazy one"):
            call()


def solo_simclr(z, indexes, temperature):
    z = F.normalize(z, dim=1)
    share = (z @ z.T / temperature).exp() * (1 - torch.eye(len(z), dtype=z.dtype))
    same = indexes[:, None] == indexes
    return -((share * same).sum(1) / share.sum(1)).log().mean()


def solo_moco(query, key, queue, temperature):
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def assert_loss(ours, theirs, *inputs):
    """Value and gradients in float64."""
    results = []
    for call in (ours, theirs):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        loss = call(*leaves)
        loss.backward()
        results.append((loss.detach(), [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]))
    torch.testing.assert_close(*results)


INDEXES = {
    "two views": torch.arange(9).repeat(2) * 7 - 20,
    "pairs in any order": torch.randperm(30) // 2,
    "four views": torch.arange(5).repeat(4),
    "labels": torch.arange(24) // 3 % 5,
    "one label": torch.ones(6, dtype=torch.int64),
}


@pytest.mark.parametrize("indexes", INDEXES.values(), ids=INDEXES.keys())
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_solo_simclr_loss(indexes, temperature):
    z = torch.randn(len(indexes), 6, dtype=torch.float64)
    z[1] *= 50
    ours = lambda z: solo.simclr_loss_func(z, indexes=indexes, temperature=temperature)  # noqa: E731
    assert_loss(ours, lambda z: solo_simclr(z, indexes, temperature), z)
    torch.testing.assert_close(ours(z.float()), ours(z).float())


def test_solo_simclr_loss_is_nt_xent():
    z = torch.randn(40, 16)
    got = solo.simclr_loss_func(z, torch.arange(20).repeat(2), 0.01)
    torch.testing.assert_close(got, fastssl.loss.NTXentLoss(0.01)(z[:20], z[20:]))
    for alone in (torch.arange(40), torch.tensor([0] * 39 + [1])):
        assert solo.simclr_loss_func(z, alone) == solo_simclr(z, alone, 0.1) == math.inf
    for broken in (torch.arange(39), torch.rand(40)):
        with pytest.raises((TypeError, ValueError), match="ind"):
            solo.simclr_loss_func(z, broken)
    with pytest.raises(ValueError, match="temperature"):
        solo.simclr_loss_func(z, torch.arange(20).repeat(2), math.nan)


def test_solo_moco_and_byol_losses():
    unit = lambda *shape, dim: F.normalize(torch.randn(*shape, dtype=torch.float64), dim=dim)  # noqa: E731
    query, key, queue = unit(7, 5, dim=1), unit(7, 5, dim=1), unit(5, 33, dim=0)
    ours = lambda query, key: solo.mocov2plus_loss_func(query, key, queue, temperature=0.2)  # noqa: E731
    assert_loss(ours, lambda query, key: solo_moco(query, key, queue, 0.2), query, key)
    p, z = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    for simplified in (True, False):
        ours = lambda p, z: solo.byol_loss_func(p, z, simplified)  # noqa: B023, E731
        assert_loss(ours, lambda p, z: 2 - 2 * F.cosine_similarity(p, z.detach()).mean(), p, z)


def test_solo_losses_in_one_process_and_of_more_dimensions():
    """MoCo v3's gradient goes to both in one process; SimSiam's and BYOL's forms take (..., D)."""
    query, key = torch.randn(2, 7, 5, dtype=torch.float64)

    def published(factor):
        def loss(query, key):
            logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.3
            return factor * F.cross_entropy(logits, torch.arange(7))

        return loss

    assert_loss(lambda query, key: solo.mocov3_loss_func(query, key, temperature=0.3), published(0.6), query, key)
    assert_loss(lambda nn, p: solo.nnclr_loss_func(nn, p, temperature=0.3), published(1.0), query, key)
    p, z = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    for simplified in (True, False):
        ours = lambda p, z: solo.simsiam_loss_func(p, z, simplified)  # noqa: B023, E731
        assert_loss(ours, lambda p, z: -F.cosine_similarity(p, z.detach(), dim=-1).mean(), p, z)
    assert_loss(solo.byol_loss_func, lambda p, z: 2 - 2 * F.cosine_similarity(p, z.detach(), dim=-1).mean(), p, z)
    for call in (solo.mocov3_loss_func, solo.nnclr_loss_func):
        with pytest.raises(ValueError, match=f"{call.__name__}: .* must have the same shape"):
            call(query, key[:3])


# --- byol-pytorch and dino ---------------------------------------------------------------------------------------------------


def test_byol_average():
    old, new = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(byol.EMA(0.99).update_average(old, new), old * 0.99 + (1 - 0.99) * new)
    assert byol.EMA(0.99).update_average(None, new) is new
    for beta in (math.nan, 1.1, "0.9"):
        with pytest.raises((TypeError, ValueError), match="beta"):
            byol.EMA(beta)


@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
def test_dino_schedule(warmup):
    got = dino.cosine_scheduler(0.996, 1, 10, 7, warmup_epochs=warmup, start_warmup_value=0.2)
    cosine = 70 - 7 * warmup
    want = [0.2 + (0.996 - 0.2) * i / (7 * warmup - 1) for i in range(7 * warmup)]
    want += [1 + 0.5 * (0.996 - 1) * (1 + math.cos(math.pi * i / cosine)) for i in range(cosine)]
    assert isinstance(got, np.ndarray) and got.dtype == np.float64 and got.shape == (70,)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_dino_schedule_refuses():
    for arguments in (
        (math.inf, 1, 10, 7),
        (0.9, 1, 0, 7),
        (0.9, 1, 10, 0),
        (0.9, 1, 10, 7, 11),
        (0.9, 1, 10, 7.5),
        (0.9, 1, 10, 7, -1),
    ):
        with pytest.raises((TypeError, ValueError), match="cosine_scheduler"):
            dino.cosine_scheduler(*arguments)

"""The losses of DINO, iBOT and SwAV against their definitions in float64: extreme logits, heads, weights, centres, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.testing import assert_close

from fastssl.functional import dino_loss, ibot_loss, patch_weights, sinkhorn, swav_loss, update_center
from fastssl.loss import DINOLoss, IBOTPatchLoss, IBOTPlusPlusPatchLoss, SwaVLoss
from fastssl.testing.compare import relative_error
from fastssl.testing.crops import plan

pytestmark = pytest.mark.usefixtures("one_thread")

K = 24


def draw(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_grad(loss: torch.Tensor, leaf: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), torch.autograd.grad(loss, leaf)[0]]


def defined(student, targets, temperature: float = 0.1, diagonal: bool = True) -> torch.Tensor:
    """The mean over pairs of different crops, by loops over crops."""
    terms = [
        -(targets[t] * F.log_softmax(student[s] / temperature, -1)).sum(-1).mean()
        for t in range(len(targets))
        for s in range(len(student))
        if s != t or not diagonal
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("crops", [(2, 1), (2, 2), (5, 2), (2, 3)], ids=str)
def test_dino_is_the_mean_over_pairs(crops):
    student, teacher = draw(crops[0], 3, K).requires_grad_(), draw(crops[1], 3, K, seed=1)
    center, exact = draw(K, seed=2), student.detach().double().requires_grad_()
    targets = torch.softmax((teacher.double() - center.double()) / 0.04, -1)
    for diagonal in (True, False):
        found = value_and_grad(dino_loss(student, teacher, center, ignore_diagonal=diagonal), student)
        wanted = value_and_grad(defined(exact, targets, diagonal=diagonal), exact)
        assert all(relative_error(f, w) < 1e-6 for f, w in zip(found, wanted, strict=True))


def test_balanced_targets_take_the_place_of_a_centre():
    student, teacher = draw(4, 6, K, dtype=torch.float64), draw(2, 6, K, seed=1, dtype=torch.float64)
    together = dino_loss(student, teacher, potential=sinkhorn(teacher, 0.3), teacher_temperature=0.3)
    targets = plan(teacher.flatten(0, 1), 0.3, 3).view_as(teacher)
    assert_close(together, defined(student, targets))
    each = dino_loss(student, teacher, potential=sinkhorn(teacher, 0.3, separate=0), teacher_temperature=0.3)
    assert_close(each, defined(student, torch.stack([plan(crop, 0.3, 3) for crop in teacher])))
    assert_close(dino_loss(student, targets, teacher_temperature=None), together)


def test_right_to_1e_5_at_logits_of_100():
    """Here exp(x / T) is beyond float64 as well: the truth is computed in log space."""
    student, teacher = 100 * draw(3, 8, K), 100 * draw(2, 8, K, seed=1)
    exact, x = student.double().requires_grad_(), teacher.double() / 0.04
    student.requires_grad_()
    codes = x.flatten(0, 1)
    rows = codes.new_zeros(len(codes), 1)
    for _ in range(3):
        columns = -torch.logsumexp(codes + rows, 0)
        rows = -torch.logsumexp(codes + columns, 1, keepdim=True)
    center = teacher.mean((0, 1))
    targets = {
        "center": (center, torch.softmax(x - center.double() / 0.04, -1)),
        "potential": (sinkhorn(teacher, 0.04), torch.exp(codes + rows + columns).view_as(x)),
    }
    for name, (given, target) in targets.items():
        found = value_and_grad(dino_loss(student, teacher, **{name: given}), student)
        wanted = value_and_grad(defined(exact, target), exact)
        assert all(relative_error(f, w) < 1e-5 for f, w in zip(found, wanted, strict=True)), name


def test_nested_heads_are_added():
    student, teacher, heads = draw(4, 3, K), draw(2, 3, K, seed=1), [12, 8, 4]
    parts = list(zip(student.split(heads, 2), teacher.split(heads, 2), strict=True))
    assert_close(dino_loss(student, teacher, heads=heads), sum(dino_loss(s, t) for s, t in parts))
    criterion = DINOLoss(K, center_mode="sinkhorn_knopp", heads=heads, teacher_temp=0.3)
    wanted = sum(DINOLoss(s.shape[2], center_mode="sinkhorn_knopp", teacher_temp=0.3)(t, s) for s, t in parts)
    assert_close(criterion(teacher, student), wanted)
    rows, of_teacher, mask = draw(5, K), draw(5, K, seed=1), torch.ones(1, 5, dtype=torch.bool)
    parts = list(zip(rows.split(heads, 1), of_teacher.split(heads, 1), strict=True))
    wanted = sum(IBOTPatchLoss(s.shape[1])(t, s, mask) for s, t in parts)
    assert_close(IBOTPatchLoss(K, heads=heads)(of_teacher, rows, mask), wanted)


def test_what_a_patch_counts():
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    assert_close(patch_weights(mask), torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [1 / 3] * 3]))
    assert_close(patch_weights(mask, 0.5), torch.tensor([[0.5, 0.5, 0.5], [1 / 6] * 3, [1 / 3] * 3]))
    assert_close(patch_weights(mask, rows=5), patch_weights(mask)[mask])
    assert patch_weights(mask.view(3, 1, 3)).shape == (3, 1, 3)
    student, teacher = draw(5, K).requires_grad_(), draw(5, K, seed=1)
    losses = -(torch.softmax(teacher / 0.04, 1) * F.log_softmax(student / 0.1, 1)).sum(1)
    weight = patch_weights(mask, rows=5)
    for how, wanted in (
        ({}, losses.mean()),
        ({"images": 3}, losses.sum() / 3),
        ({"weight": weight, "images": 3}, (losses * weight).sum() / 3),
        ({"weight": weight}, (losses * weight).sum() / 2),  # images that have masked patches
        ({"weight": 0 * weight}, 0 * losses.sum()),
    ):
        assert_close(ibot_loss(student, teacher, **how), wanted)
    empty = draw(0, K).requires_grad_()
    for how in ({}, {"images": 2}):
        assert_close(value_and_grad(ibot_loss(empty, empty.detach(), **how), empty), [torch.tensor(0.0), empty.detach()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_centres_of_16_bit_logits_are_sums_in_float32(dtype):
    teacher, center = 0.5 + draw(2, 100, K, dtype=dtype), draw(1, 1, K, seed=1)
    wanted = 0.7 * center + 0.3 * teacher.double().mean((0, 1))
    place = center.data_ptr()
    update_center(center, teacher.transpose(0, 1), 0.7)
    assert center.data_ptr() == place and relative_error(center, wanted) < 1e-6
    update_center(center, teacher[:, :0])  # without rows it stays
    assert relative_error(center, wanted) < 1e-6
    half = center.to(dtype)
    update_center(half, teacher)
    assert half.dtype == dtype


def test_the_gradient_may_take_the_place_of_the_logits():
    weight, teacher = draw(7, K).requires_grad_(), draw(2, 3, K, seed=1)
    x = draw(4, 3, 7, seed=2)
    plain, in_place = (value_and_grad(dino_loss(x @ weight, teacher, in_place=flag), weight) for flag in (False, True))
    assert_close(in_place, plain)
    plain, in_place = (value_and_grad(ibot_loss(x[0] @ weight, teacher[0], in_place=flag), weight) for flag in (False, True))
    assert_close(in_place, plain)


def test_modules_in_one_graph():
    """With the centre moved inside; results and centres are those of plain calls."""
    student, teacher = draw(3, 4, K).requires_grad_(), draw(2, 4, K, seed=1)
    mask = patch_mask = draw(4, 5, seed=2) > 0
    rows, of_teacher = draw(int(mask.sum()), K).requires_grad_(), draw(int(mask.sum()), K, seed=1)
    results = []
    for compiled in (False, True):
        dino, ibot, swav = DINOLoss(K, teacher_temp=0.07), IBOTPatchLoss(K), SwaVLoss()

        def step(student, rows):
            return dino(teacher, student) + ibot(of_teacher, rows, patch_mask) + swav(student[:2].unbind(), [student[2]])  # noqa: B023

        call = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        for _ in range(2):
            loss = call(student, rows)
        results.append([loss.detach(), *torch.autograd.grad(loss, (student, rows)), dino.center, ibot.center.value])
    assert_close(results[1], results[0])


def test_targets_are_constants():
    student, teacher = draw(3, 4, K), draw(2, 4, K, seed=1).requires_grad_()
    with pytest.raises(NotImplementedError, match="dino_loss: teacher must not require a gradient"):
        dino_loss(student, teacher)
    assert not DINOLoss(K)(teacher, student).requires_grad  # lightly sends a gradient to the teacher, which has no use of it
    logits = student.requires_grad_()
    teacher = logits.detach()[:2].double()
    targets = torch.stack([plan(crop, 0.3, 3) for crop in teacher])
    exact = logits.detach().double().requires_grad_()
    found = value_and_grad(swav_loss(logits, teacher_temperature=0.3), logits)
    wanted = value_and_grad(defined(exact, targets), exact)
    assert all(relative_error(f, w) < 1e-6 for f, w in zip(found, wanted, strict=True))


def test_temperatures_of_a_warm_up():
    criterion = DINOLoss(K, 0.02, 0.05, 4)
    assert [criterion._temperature(None, epoch) for epoch in (0, 3, 4, None)] == pytest.approx([0.02, 0.05, 0.05, 0.05])
    numpys = DINOLoss(np.int64(K), np.float32(0.02), 0.05, np.int8(4), center_momentum=np.float64(0.9))
    student, teacher = draw(3, 4, K), draw(2, 4, K, seed=1)
    assert numpys(teacher, student, epoch=np.int64(1)) == criterion(list(teacher), list(student), epoch=1)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(DINOLoss(K, 0.02, 0.05, 4), backend="eager", fullgraph=True)
    plain = DINOLoss(K, 0.02, 0.05, 4)
    for epoch in range(6):
        assert_close(compiled(teacher, student, epoch=epoch), plain(teacher, student, epoch=epoch))
    assert counters["stats"]["unique_graphs"] <= 3  # a constant epoch, any epoch of the warm-up, any after it


CALLS = {
    "dino_loss: student must be .*; rows crop after crop": lambda: dino_loss(draw(3, K), draw(2, 3, K)),
    "dino_loss: teacher must be .*, got list; torch.stack": lambda: dino_loss(draw(2, 3, K), list(draw(2, 3, K))),
    "dino_loss: student must have at least two crops": lambda: dino_loss(draw(1, 3, K), draw(1, 3, K)),
    "dino_loss: center must have": lambda: dino_loss(draw(2, 3, K), draw(2, 3, K), draw(K + 1)),
    "dino_loss: heads must": lambda: dino_loss(draw(2, 3, K), draw(2, 3, K), heads=[K, 1]),
    "ibot_loss: student and teacher must have the same shape": lambda: ibot_loss(draw(3, K), draw(4, K)),
    "ibot_loss: images must be in": lambda: ibot_loss(draw(3, K), draw(3, K), images=0),
    "ibot_loss: weight must hold numbers that are at least 0 and finite, got -2": lambda: ibot_loss(
        draw(2, K), draw(2, K), weight=torch.tensor([1.0, -2.0])
    ),
    "ibot_loss: weight must hold numbers that are at least 0 and finite, got inf": lambda: ibot_loss(
        draw(2, K), draw(2, K), weight=torch.tensor([1.0, torch.inf]), images=2
    ),
    "ibot_loss: weight must have shape": lambda: ibot_loss(draw(3, K), draw(3, K), weight=draw(2)),
    "swav_loss: queue must have shape": lambda: swav_loss(draw(2, 3, K), draw(1, 3, K)),
    "swav_loss: logits must have at least two crops": lambda: swav_loss(draw(1, 3, K), assigned=1),
    "swav_loss: iterations must be in": lambda: swav_loss(draw(2, 3, K), iterations=2**31 - 1),
    "sinkhorn: iterations must be in": lambda: sinkhorn(draw(3, K), iterations=2**31 - 1),
    "SwaVLoss: sinkhorn_iterations must be in": lambda: SwaVLoss(sinkhorn_iterations=2**31 - 1),
    "swav_loss: assigned must be in": lambda: swav_loss(draw(2, 3, K), assigned=3),
    "swav_loss: teacher_temperature must be": lambda: swav_loss(draw(2, 3, K), teacher_temperature=-1.0),
    "patch_weights: mask must have rows = 3": lambda: patch_weights(torch.ones(2, 2, dtype=torch.bool), rows=3),
    "update_center: center must have shape": lambda: update_center(draw(2, K), draw(2, K)),
    "update_center: momentum must be in": lambda: update_center(draw(K), draw(2, K), 1.1),
    "update_center: center must not be expanded": lambda: update_center(draw(1).expand(K), draw(2, K)),
    "DINOLoss: center_mode must be one of": lambda: DINOLoss(K, center_mode="median"),
    "DINOLoss: teacher_out must": lambda: DINOLoss(K)([], [draw(3, K)]),
    "DINOLoss: teacher_out must have output_dim = 9 columns": lambda: DINOLoss(9)(draw(2, 3, K), draw(2, 3, K)),
    "IBOTPatchLoss: teacher_out must have output_dim = 9": lambda: IBOTPatchLoss(9)(draw(2, K), draw(2, K), torch.ones(1, 2) > 0),
    "DINOLoss: student_out must hold": lambda: DINOLoss(K)([draw(3, K)], [draw(3, K), draw(2, K)]),
    "IBOTPatchLoss: student_temp must be above 0": lambda: IBOTPatchLoss(K, student_temp=0),
    "IBOTPlusPlusPatchLoss: mask must be given": lambda: IBOTPlusPlusPatchLoss(K)(draw(6, K), draw(6, K)),
    "IBOTPlusPlusPatchLoss: mask must have 6": lambda: IBOTPlusPlusPatchLoss(K)(draw(6, K), draw(6, K), torch.ones(1, 5) > 0),
    "SwaVLoss: sinkhorn_epsilon must be": lambda: SwaVLoss(sinkhorn_epsilon=0),
}


@pytest.mark.parametrize("words", CALLS)
def test_refusals(words):
    with pytest.raises((TypeError, ValueError), match=words):
        CALLS[words]()


def test_a_refused_call_moves_no_centre():
    for criterion, call in (
        (DINOLoss(K), lambda c: c(draw(2, 3, K), draw(2, 4, K))),
        (IBOTPatchLoss(K), lambda c: c(draw(3, K), draw(3, K + 1), torch.ones(1, 3) > 0)),
    ):
        with pytest.raises(ValueError):
            call(criterion)
        assert not any(value.any() for value in criterion.state_dict().values())

"""Drop-ins for DINO, iBOT and SwAV beside what they replace: lightly itself; the published formulas of the repositories, in plain
PyTorch. Where lightly is wrong, the truth is the same formula in float64, and the test says by how much."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import fastssl
from fastssl import loss as ours
from fastssl.compat import dino, dinov2, dinov3, solo, swav
from fastssl.compat import lightly as as_lightly
from fastssl.compat._soft_targets import crops_of
from fastssl.testing.crops import plan
from tests.compat.test_patch import assert_same_bindings, bindings
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")

K = 40


def draw(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(*shape: int, seed: int = 0) -> list[torch.Tensor]:
    return [crop.requires_grad_() for crop in draw(*shape, seed=seed).unbind()]


def value_and_grads(loss: torch.Tensor, inputs) -> tuple:
    return loss.detach().reshape(()), torch.autograd.grad(loss.sum(), inputs, retain_graph=True)


def masks(images: int = 5, patches: int = 9) -> torch.Tensor:
    found = draw(images, patches, seed=9) > 0.2
    found[1] = False  # an image without a masked patch
    return found


# --- lightly -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    return library("lightly.loss")


def both(theirs, name: str, *arguments):
    modules = getattr(theirs, name)(*arguments), getattr(as_lightly, name)(*arguments)
    modules[1].load_state_dict(modules[0].state_dict())
    return modules


@pytest.mark.parametrize("how", [{"epoch": 0}, {"epoch": 2}, {"epoch": 7}, {}, {"teacher_temp": 0.1}], ids=str)
def test_lightly_dino(theirs, how):
    student, teacher = leaves(4, 5, K), list(draw(2, 5, K, seed=1))
    results = []
    for module in both(theirs, "DINOLoss", K, 0.02, 0.05, 3, 0.2, 0.8):
        steps = [value_and_grads(module(teacher, student, **how), student) for _ in range(2)]
        results.append((steps, module.state_dict()))
    assert_close(results[1], results[0])
    assert list(results[0][1]) == ["center"] and results[1][1]["center"].abs().max() > 0


@pytest.mark.parametrize("name", ["IBOTPatchLoss", "IBOTPlusPlusPatchLoss"])
def test_lightly_ibot(theirs, name):
    mask = masks().view(5, 3, 3)
    rows = int(mask.sum()) if name == "IBOTPatchLoss" else 45
    student, teacher = draw(rows, K).requires_grad_(), draw(rows, K, seed=1)
    calls = [{}] if name == "IBOTPatchLoss" else [{}, {"visible_loss_weight": 0.3}, {"visible_loss_weight": 0.0}]
    results = []
    for module in both(theirs, name, K, 0.07, 0.2):
        steps = [value_and_grads(module(teacher, student, mask, **how), [student]) for how in (*calls, {"teacher_temp": 0.1})]
        if name != "IBOTPatchLoss":
            steps.append(value_and_grads(module(teacher.view(5, 9, K), student.view(5, 9, K)), [student]))
        results.append((steps, module.state_dict()))
    assert_close(results[1], results[0])
    assert list(results[0][1]) == ["center.center"]
    with pytest.raises(ValueError, match="masked patches"):
        ours.IBOTPatchLoss(K)(teacher[:-1], student[:-1], mask)


@pytest.mark.parametrize("queue", [None, 11], ids=["alone", "queue"])
def test_lightly_swav(theirs, queue):
    high, low = leaves(2, 5, K), leaves(3, 5, K, seed=1)
    queue = None if queue is None else list(0.3 * draw(2, queue, K, seed=2))
    results = []
    for module in both(theirs, "SwaVLoss", 0.2, 2, 0.3):
        loss = module(high, low, queue)
        assert loss.shape == (1,)
        results.append((value_and_grads(loss, high + low), module.subloss(high[0], torch.softmax(low[0], 1))))
    assert_close(results[1], results[0])
    assert ours.SwAVLoss is ours.SwaVLoss and ours.SwaVLoss(0.2, 2, 0.3)(high, low, queue) == results[1][0][0]


def test_lightly_rounds_log_probabilities_under_autocast(theirs):
    """Its einsum of targets and log-probabilities is a product, which autocast computes in bfloat16."""
    student, teacher = leaves(4, 16, 512), list(draw(2, 16, 512, seed=1))
    exact = [crop.detach().double().requires_grad_() for crop in student]
    truth, gradient = value_and_grads(theirs.DINOLoss(512)([t.double() for t in teacher], exact), exact)
    errors = []
    for module in both(theirs, "DINOLoss", 512):
        with torch.autocast("cpu", torch.bfloat16):
            value, grads = value_and_grads(module(teacher, student), student)
        apart = [(g - t).norm() / t.norm() for g, t in zip(grads, gradient, strict=True)]
        errors.append((((value - truth) / truth).abs().item(), max(apart).item()))
    (loss, grad), (our_loss, our_grad) = errors
    assert 1e-4 < loss < 2e-2 and 1e-3 < grad < 2e-2  # about 7.5e-4 and 3e-3 at 65,536 prototypes
    assert our_loss < 1e-6 and our_grad < 1e-5


def test_lightly_rounds_the_centre_of_16_bit_logits(theirs):
    teacher = 0.5 + draw(2, 33, K, seed=1, dtype=torch.bfloat16)
    wanted = 0.1 * teacher.double().mean((0, 1))
    errors = []
    for module in both(theirs, "DINOLoss", K):
        module.update_center(teacher)
        errors.append(((module.center.flatten() - wanted).norm() / wanted.norm()).item())
    assert errors[0] > 1e-3 and errors[1] < 1e-6


def test_lightly_overflows_in_sinkhorn(theirs):
    """Logits of 5 and an epsilon of 0.05 give exp(100)."""
    high, low = leaves(2, 5, K), leaves(1, 5, K, seed=1)
    far = [100.0 * crop for crop in high]
    codes = [plan_in_float64(crop, 0.05) for crop in far]
    wanted = swapped(far, low, codes, 0.1)
    assert not theirs.SwaVLoss()(far, low).isfinite().all()
    assert ours.SwaVLoss()(far, low).item() == pytest.approx(wanted.item(), rel=1e-5)


def plan_in_float64(logits: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Sinkhorn's assignment in log space."""
    x = logits.detach().double() / epsilon
    rows = x.new_zeros(len(x), 1)
    for _ in range(3):
        columns = -torch.logsumexp(x + rows, 0)
        rows = -torch.logsumexp(x + columns, 1, keepdim=True)
    return torch.exp(x + rows + columns)


def swapped(high, low, codes, temperature: float) -> torch.Tensor:
    """SwAV's loop over crops: codes of crop i, predictions of every other."""
    crops, total = [*high, *low], 0.0
    for i, code in enumerate(codes):
        others = [v for v in range(len(crops)) if v != i]
        each = [-(code * F.log_softmax(crops[v].to(code.dtype) / temperature, 1)).sum(1).mean() for v in others]
        total = total + sum(each) / len(others)
    return total / len(codes)


def test_lightly_is_swapped_and_put_back(theirs):
    library("lightly.utils.lars")  # which the patch imports
    student, teacher = leaves(3, 5, K), list(draw(2, 5, K, seed=1))
    before = bindings("lightly")
    wanted = theirs.DINOLoss(K)(teacher, student), theirs.SwaVLoss(sinkhorn_epsilon=0.3)(student[:2], student[2:])
    with fastssl.patch("lightly"):
        assert theirs.DINOLoss is ours.DINOLoss and theirs.IBOTPlusPlusPatchLoss is ours.IBOTPlusPlusPatchLoss
        assert theirs.ibot_loss.IBOTPatchLoss is ours.IBOTPatchLoss and theirs.SwaVLoss is as_lightly.SwaVLoss
        found = theirs.DINOLoss(K)(teacher, student), theirs.SwaVLoss(sinkhorn_epsilon=0.3)(student[:2], student[2:])
    assert_close(found, wanted)
    assert_same_bindings(bindings("lightly"), before)


# --- DINO, and solo-learn ----------------------------------------------------------------------------------------------------


class DINOLoss(nn.Module):
    """The loss of main_dino.py as its paper and code define it, in one process."""

    def __init__(self, out_dim, ncrops, warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, nepochs):
        super().__init__()
        self.student_temp, self.center_momentum, self.ncrops = 0.1, 0.9, ncrops
        self.register_buffer("center", torch.zeros(1, out_dim))
        warm = np.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.teacher_temp_schedule = np.append(warm, [teacher_temp] * (nepochs - warmup_teacher_temp_epochs))

    def forward(self, student_output, teacher_output, epoch):
        student = [F.log_softmax(crop, 1) for crop in (student_output / self.student_temp).chunk(self.ncrops)]
        teacher = ((teacher_output - self.center) / self.teacher_temp_schedule[epoch]).softmax(1).detach().chunk(2)
        terms = [-(q * p).sum(1).mean() for t, q in enumerate(teacher) for s, p in enumerate(student) if s != t]
        self.update_center(teacher_output)
        return sum(terms) / len(terms)

    @torch.no_grad()
    def update_center(self, teacher_output):
        mean = teacher_output.mean(0, keepdim=True)
        self.center = self.center * self.center_momentum + (1 - self.center_momentum) * mean


def steps_of(module, *epochs) -> list:
    student, teacher = draw(4 * 5, K).requires_grad_(), draw(2 * 5, K, seed=1)
    found = []
    for epoch in epochs:
        loss = module(student, teacher, epoch) if not isinstance(module, solo.DINOLoss) else module(student, teacher)
        found.append((value_and_grads(loss, [student]), module.center.clone()))
    return found


def test_dino_and_its_state():
    arguments = (K, 4, 0.04, 0.07, 3, 10)
    wanted = steps_of(DINOLoss(*arguments), 0, 2, 9)
    module = dino.DINOLoss(*arguments)
    assert_close(steps_of(module, 0, 2, 9), wanted)
    other = DINOLoss(*arguments)
    other.load_state_dict(module.state_dict())
    module.load_state_dict(other.state_dict())
    with fastssl.patch("dino", DINOLoss) as patch:
        assert patch.names == ("DINOLoss.forward", "DINOLoss.update_center")
        assert_close(steps_of(DINOLoss(*arguments), 0, 2, 9), wanted)
    assert DINOLoss.forward.__module__ == __name__
    with pytest.raises(ValueError, match="student_output must be"):
        module(draw(21, K), draw(10, K), 0)
    with pytest.raises(ValueError, match="warmup_teacher_temp_epochs must be at most"):
        dino.DINOLoss(K, 4, 0.04, 0.07, 11, 10)


def test_solo_dino_and_swav():
    module = solo.DINOLoss(K, 0.04, 0.07, 3, 10, num_large_crops=4)
    module.epoch = 2
    assert_close(steps_of(module, None, None), steps_of(DINOLoss(K, 4, 0.04, 0.07, 3, 10), 2, 2))
    preds = leaves(2, 5, K)
    codes = [plan(crop, 0.3, 3) for crop in draw(2, 5, K, seed=1)]
    found = value_and_grads(solo.swav_loss_func(preds, codes, 0.2), preds)
    assert_close(found, value_and_grads(swapped(preds, [], codes, 0.2), preds))


# --- DINOv2 and DINOv3 -------------------------------------------------------------------------------------------------------


def cross_entropies(student, targets, temperature: float) -> torch.Tensor:
    return -(targets * F.log_softmax(student / temperature, -1)).sum(-1)


def assigned(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    return plan_in_float64(rows, temperature).float()


@pytest.mark.parametrize("module", [dinov2, dinov3], ids=["v2", "v3"])
def test_dino_centres_wait_for_the_next_call(module):
    criterion, teacher = module.DINOLoss(K), draw(10, K)
    if module is dinov3:
        assert criterion.center.isnan().all() and module.iBOTPatchLoss(K).center.isnan().all()
        criterion.init_weights()
    assert criterion.center.shape == (1, K) and list(criterion.state_dict()) == ["center"]
    assert_close(criterion.softmax_center_teacher(teacher, 0.07), torch.softmax(teacher / 0.07, 1))
    criterion.update_center(teacher)
    assert not criterion.updated and not criterion.center.any()
    if module is dinov3:
        criterion.softmax_center_teacher(teacher, 0.07, update_centers=False)
        assert not criterion.center.any()
    center = 0.1 * teacher.mean(0)
    assert_close(criterion.softmax_center_teacher(teacher, 0.07), torch.softmax((teacher - center) / 0.07, 1))
    assert criterion.updated
    assert_close(criterion.center[0], center)
    assert_close(criterion.sinkhorn_knopp_teacher(teacher, 0.07), assigned(teacher, 0.07))
    half, rows = criterion.to(torch.float16), teacher.half()  # probabilities are float32 whatever the module is
    assert_close(half.softmax_center_teacher(rows, 0.07), torch.softmax((rows.float() - half.center.float()) / 0.07, 1))
    criterion.to(torch.float32)
    far = criterion.sinkhorn_knopp_teacher(100 * teacher, 0.04)  # theirs has exp(2500)
    assert (far - plan_in_float64(100 * teacher, 0.04)).abs().sum(1).max() < 1e-2 and (far.sum(1) - 1).abs().max() < 1e-5


def test_dinov2_sums_and_dinov3_averages():
    logits, targets = draw(1, 4 * 5, K).requires_grad_(), torch.softmax(draw(2, 5, K, seed=1) / 0.1, -1)
    crops = logits.squeeze(0).chunk(4)
    pairs = cross_entropies(logits.view(4, 1, 5, K), targets, 0.1)
    for student in (crops, [crop.clone() for crop in crops], logits.view(4, 5, K)):
        for teacher in (targets, targets.unbind()):
            found = value_and_grads(dinov2.DINOLoss(K)(student, teacher), [logits])
            assert_close(found, value_and_grads(pairs.mean(2).sum(), [logits]))
    joined = crops_of("", "", crops)
    assert joined.data_ptr() == logits.data_ptr() and joined.requires_grad  # chunks of one tensor are not copied
    constant = crops_of("", "", [crop.detach() for crop in crops])
    assert not constant.requires_grad
    alone = [crop.detach().requires_grad_() for crop in crops]  # leaves that share memory
    assert all(g is not None for g in torch.autograd.grad(crops_of("", "", alone).sum(), alone))
    base = draw(16, K)  # crops that begin within a row of the tensor that they are parts of
    within = [base.view(-1)[K // 2 + i * 5 * K :][: 5 * K].view(5, K) for i in range(2)]
    assert torch.equal(crops_of("", "", within), torch.stack(within))
    for diagonal in (False, True):
        found = value_and_grads(dinov3.DINOLoss(K)(logits.view(4, 5, K), targets, diagonal), [logits])
        kept = pairs[~torch.eye(4, 2, dtype=torch.bool)] if diagonal else pairs
        assert_close(found, value_and_grads(kept.mean(), [logits]))


def test_dinov2_gives_a_part_of_the_logits_a_gradient_of_its_size():
    """Its trainer splits what one head makes of local crops, global crops and patches; zeros around a part would be as large."""
    rows = draw(20 + 10 + 7, K).requires_grad_()
    crops, both, patches = (rows * 1.0).split([20, 10, 7])
    targets = torch.softmax(draw(2, 5, K, seed=1), -1)
    loss = dinov2.DINOLoss(K)(crops.chunk(4), targets) + dinov2.DINOLoss(K)([both], [targets.flatten(0, 1)])
    mask = torch.ones(7, 1, dtype=torch.bool)
    loss = loss + dinov2.iBOTPatchLoss(K).forward_masked(patches, targets.flatten(0, 1)[:7], mask, n_masked_patches=7)
    assert "SplitWithSizesBackward0" in nodes(loss.grad_fn) and "SliceBackward0" not in nodes(loss.grad_fn)
    (found,) = torch.autograd.grad(loss, rows)
    wanted = [softmax_gradient(rows[:20].view(4, 1, 5, K), targets, 5), softmax_gradient(rows[20:30], targets.flatten(0, 1), 10)]
    wanted = [wanted[0].sum(1).flatten(0, 1), wanted[1], softmax_gradient(rows[30:], targets.flatten(0, 1)[:7], 7)]
    assert_close(found, torch.cat(wanted))
    (found,) = torch.autograd.grad(crops_of("", "", (2.0 * rows).chunk(37)).sum(), rows)  # all of a tensor
    assert_close(found, torch.full_like(rows, 2.0))


def test_dinov2_takes_the_first_rows_of_targets_that_are_more():
    """Targets of a buffer of fixed size, where the student's rows are already those that count."""
    student, targets, mask = draw(5, K), torch.softmax(draw(9, K, seed=1), -1), torch.ones(5, 1, dtype=torch.bool)
    found = dinov2.iBOTPatchLoss(K).forward_masked(student, targets, mask, n_masked_patches=5)
    assert_close(found, dinov2.iBOTPatchLoss(K).forward_masked(student, targets[:5], mask))


def softmax_gradient(logits, targets, count: int) -> torch.Tensor:
    """That of the mean over ``count`` rows of the cross-entropy at a temperature of 0.1, where targets add up to 1."""
    return (torch.softmax(logits.detach() / 0.1, -1) - targets) / (0.1 * count)


def nodes(node) -> set[str]:
    """The names in the graph behind a node."""
    return {node.name()}.union(*(nodes(earlier) for earlier, _ in node.next_functions if earlier is not None))


@pytest.mark.parametrize("module", [dinov2, dinov3], ids=["v2", "v3"])
def test_patches_of_dinov2_and_dinov3(module):
    criterion, mask = module.iBOTPatchLoss(K), masks()
    assert criterion.center.shape == (1, 1, K)
    student, teacher = draw(5, 9, K).requires_grad_(), torch.softmax(draw(5, 9, K, seed=1) / 0.1, -1)
    losses = cross_entropies(student, teacher, 0.1)
    wanted = ((losses * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    of_all = value_and_grads(wanted, [student])
    assert_close(value_and_grads(criterion(student, teacher, mask), [student]), of_all)
    assert_close(value_and_grads(criterion.forward_masked(student[mask], teacher[mask], mask), [student]), of_all)
    rows, count = torch.cat([student[mask], student[0]]), int(mask.sum())  # an upper bound of rows
    targets = torch.cat([teacher[mask], teacher[0]])
    weight = (1 / mask.sum(1).clamp(min=1.0))[:, None].expand_as(mask)[mask]
    for given in (None, weight):
        assert_close(value_and_grads(criterion.forward_masked(rows, targets, mask, count, given), [student]), of_all)
    number = torch.tensor(count)
    assert_close(criterion.sinkhorn_knopp_teacher(rows.detach(), 0.5, number), assigned(rows, 0.5))  # alone, without a group
    assert number == count
    criterion.center.zero_()
    criterion.update_center(rows.detach()[None])
    criterion.softmax_center_teacher(rows.detach()[None], 0.07)
    assert_close(criterion.center.flatten(), 0.1 * rows.detach().mean(0))
    if module is dinov3:
        assert isinstance(criterion.sinkhorn_knopp_teacher, dinov3.SinkhornKnoppTeacher)


def test_koleo_and_gram_of_dinov3():
    rows = draw(8, 16).requires_grad_()
    unit = F.normalize(rows)
    near = (unit @ unit.T).fill_diagonal_(-1).topk(2, 1).indices
    apart = nn.PairwiseDistance(eps=1e-8)
    for module, count in ((dinov2.KoLeoLoss(), 1), (dinov3.KoLeoLoss(), 1), (dinov3.KoLeoLossDistributed(2), 2)):
        distances = torch.stack([apart(unit, unit[near[:, k]]) for k in range(count)])
        assert_close(value_and_grads(module(rows), [rows]), value_and_grads(-(distances + 1e-8).log().mean(), [rows]))
    student, teacher = draw(3, 6, 16).requires_grad_(), draw(3, 6, 24, seed=1)
    for flags in ({}, {"remove_neg": False}, {"remove_neg": False, "remove_only_teacher_neg": True}, {"apply_norm": False}):
        for images in (True, False):
            criterion = dinov3.GramLoss(**flags)
            s, t = (x if images else x.flatten(0, 1) for x in (student, teacher))
            s, t = (F.normalize(x, dim=-1) if criterion.apply_norm else x for x in (s, t))
            s, t = (x @ x.mT for x in (s, t))
            if criterion.remove_neg:
                s, t = s.clamp(min=0), t.clamp(min=0)
            elif criterion.remove_only_teacher_neg:
                s, t = s.masked_fill((s < 0) & (t < 0), 0.0), t.clamp(min=0)
            found = value_and_grads(criterion(student, teacher, img_level=images), [student])
            assert_close(found, value_and_grads(F.mse_loss(s, t), [student]))
    with pytest.raises(ValueError, match="must not both be True"):
        dinov3.GramLoss(remove_only_teacher_neg=True)


# --- SwAV --------------------------------------------------------------------------------------------------------------------


def test_swavs_sinkhorn_and_its_loop():
    output, bs = draw(5 * 6, K).requires_grad_(), 6
    Q = torch.exp(output.detach()[:bs] / 0.3).t().contiguous()
    kept = Q.clone()
    assert_close(swav.distributed_sinkhorn(Q, 3), plan(output.detach()[:bs], 0.3, 3))
    assert torch.equal(Q, kept)
    Q[0] = 0.0  # a prototype that underflowed: NaN there
    assert (swav.distributed_sinkhorn(Q, 3).sum(1) - 1).abs().max() < 1e-5
    crops, queue = output.view(5, bs, K), 0.3 * draw(2, 17, K, seed=1)
    for chosen in ((0, 1), (1, 0), (3, 1), (2,)):
        for earlier in (None, queue[: len(chosen)]):
            codes = []
            for i, crop in enumerate(chosen):
                rows = crops[crop].detach()
                rows = rows if earlier is None else torch.cat([earlier[i], rows])  # before the batch, as there
                codes.append(plan(rows, 0.3, 2)[-bs:])
            order = [*chosen, *(v for v in range(5) if v not in chosen)]
            wanted = swapped([crops[v] for v in order], [], codes, 0.2)
            how = {"temperature": 0.2, "epsilon": 0.3, "sinkhorn_iterations": 2}
            found = swav.swav_loss(output, [2, 3], chosen, earlier, **how)
            assert_close(value_and_grads(found, [output]), value_and_grads(wanted, [output]))
    with pytest.raises(ValueError, match="output must be a tensor"):
        swav.swav_loss(output, [2, 2])

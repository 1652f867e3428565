"""MoCo, MoCo v3, BYOL, SimSiam, mean teacher: their equations in float64, teachers, queues, shuffling, refusals."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.methods import BYOL, MeanTeacher, MoCo, MoCoV3, SimSiam
from tests.support.formulas import cross_entropy64, gradients_agree, rows64, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def views(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 3, 4, 4), torch.rand(batch, 3, 4, 4)


def normed(width: int = 10) -> nn.Module:
    """images (B, 3, 4, 4) -> (B, width), with batch normalisation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.BatchNorm1d(width), nn.Tanh())


def make(kind: type, **how) -> nn.Module:
    """The method around ``normed()``, its teacher moved away from the encoder."""
    first = (normed(), 4, 10) if kind is MeanTeacher else (normed(), 10)
    method = kind(*first, **({} if kind is MeanTeacher else {"projection_dim": 6}), **how)
    if hasattr(method, "teacher"):
        with torch.no_grad():
            for p in method.teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return method


def arguments(method: nn.Module, batch: int = 6) -> tuple[torch.Tensor, ...]:
    return (*views(batch), torch.arange(batch) % 5 - 1) if isinstance(method, MeanTeacher) else views(batch)


MADE = {
    "moco": lambda **how: make(MoCo, queue_size=16, **how),
    "moco_v3": lambda **how: make(MoCoV3, **how),
    "byol": lambda **how: make(BYOL, **how),
    "mean_teacher": lambda **how: make(MeanTeacher, **how),
}


# --- equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_moco_is_a_softmax_over_the_key_and_the_queue(mlp, symmetric):
    method = make(MoCo, queue_size=16, temperature=0.2, mlp=mlp, symmetric=symmetric).eval()
    a, b = views()

    def loss(x, y):
        q, k = rows64(method.encoder(x)), rows64(method.teacher(y))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.queue.double()], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))

    gradients_agree(method, method(a, b), (loss(a, b) + loss(b, a)) / 2 if symmetric else loss(a, b))


def test_moco_v3_is_its_algorithm():
    method = make(MoCoV3, temperature=0.3).eval()
    a, b = views()
    (q0, q1), (k0, k1) = [method.prediction_head(method.encoder(x)) for x in (a, b)], [method.teacher(x) for x in (a, b)]
    expected = 2 * 0.3 * (cross_entropy64(q0, k1, 0.3) + cross_entropy64(q1, k0, 0.3))
    gradients_agree(method, method(a, b), expected)


def test_byol_is_its_equation():
    method = make(BYOL).eval()
    a, b = views()

    def loss(x, y):
        return (rows64(method.prediction_head(method.encoder(x))) - rows64(method.teacher(y))).square().sum(1).mean()

    gradients_agree(method, method(a, b), loss(a, b) + loss(b, a))


def test_simsiam_stops_the_gradient_of_its_targets():
    method = make(SimSiam).eval()
    a, b = views()
    z = [method.encoder(x) for x in (a, b)]
    p = [method.prediction_head(rows) for rows in z]

    def loss(i, j):
        return -(rows64(p[i]) * rows64(z[j].detach())).sum(1).mean()

    gradients_agree(method, method(a, b), (loss(0, 1) + loss(1, 0)) / 2)
    assert [type(layer).__name__ for layer in method.encoder.head][-1] == "BatchNorm1d"


@pytest.mark.parametrize("labels", [[-1, 2, 0, -1, 3, 1], [-1] * 6, [0] * 6])
def test_mean_teacher_is_its_equation(labels):
    method = make(MeanTeacher, consistency_weight=7.0).eval()
    (a, b), labels = views(), torch.tensor(labels)
    student, teacher = method.encoder(a).double(), method.teacher(b).double()
    expected = 7.0 * (student.softmax(1) - teacher.softmax(1)).square().mean()
    if (labels >= 0).any():
        expected = expected + F.cross_entropy(student[labels >= 0], labels[labels >= 0])
    gradients_agree(method, method(a, b, labels), expected)
    assert torch.equal(method.classify(a), method.teacher(a))
    assert torch.equal(method.embed(a), method.teacher.module.backbone(a))


def test_mean_teachers_weight_grows_as_published():
    method = make(MeanTeacher, consistency_weight=3.0, total_steps=40, ramp_up=0.5)
    weights = []
    for step in (0, 5, 20, 30):
        method.step.fill_(step)
        weights.append(float(method.current_weight()))
    assert weights == pytest.approx([3.0 * math.exp(-5.0 * (1 - u) ** 2) for u in (0.0, 0.25, 1.0, 1.0)])


# --- the teacher -----------------------------------------------------------------------------------------------------


def a_step(method: nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    parameters = [p for p in method.parameters() if p.requires_grad]
    loss = method(*given)
    with torch.no_grad():
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.sub_(g, alpha=0.1)
    return loss.detach()


@pytest.mark.parametrize("final", [None, 1.0])
@pytest.mark.parametrize("name", MADE)
def test_the_teacher_follows_its_schedule_before_each_loss_and_keeps_its_own_statistics(name, final):
    method = MADE[name](momentum=0.6, final_momentum=final, total_steps=4)
    expected = [p.clone() for p in method.teacher.parameters()]
    for step in range(6):
        u = min(step / 4, 1.0)
        m = 0.6 if final is None else 1.0 - 0.4 * (1 + math.cos(math.pi * u)) / 2
        for teacher, student in zip(expected, method.encoder.parameters(), strict=True):
            teacher.lerp_(student.detach(), 1.0 - m)
        a_step(method, arguments(method))
        for teacher, p in zip(expected, method.teacher.parameters(), strict=True):
            torch.testing.assert_close(p, teacher, rtol=1e-6, atol=1e-7)
    assert int(method.step) == 6 and not any(p.requires_grad for p in method.teacher.parameters())
    before = [buffer.clone() for buffer in method.teacher.buffers()]
    method.move_teacher()
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.buffers(), before, strict=True))
    assert not torch.allclose(method.teacher.module.backbone[2].running_var, method.encoder.backbone[2].running_var)


@pytest.mark.parametrize("name", MADE)
def test_evaluation_changes_nothing(name):
    method = MADE[name]().eval()
    before = copy.deepcopy(method.state_dict())
    method(*arguments(method))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("how", ["state dict", "deep copy", "pickle"])
@pytest.mark.parametrize("name", MADE)
def test_a_copy_goes_on_as_the_original_would(name, how):
    options = {"momentum": 0.9, "final_momentum": 1.0, "total_steps": 8}
    method = MADE[name](**options)
    a_step(method, arguments(method))
    if how == "state dict":
        other = MADE[name](**options)
        other.load_state_dict(method.state_dict())
    else:
        other = copy.deepcopy(method) if how == "deep copy" else pickle.loads(pickle.dumps(method))
    for _ in range(2):
        given = arguments(method)
        assert torch.equal(a_step(method, given), a_step(other, given))
    ours, theirs = method.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- MoCo's queue and shuffling --------------------------------------------------------------------------------------


def test_moco_pushes_its_keys_after_the_loss_and_the_gradient_does_not_see_it():
    method = MADE["moco"](momentum=1.0)
    a, b = views()
    before, parameters = method.queue.queue.clone(), [p for p in method.parameters() if p.requires_grad]
    loss = method(a, b)
    torch.testing.assert_close(method.queue.queue[:, :6].T, F.normalize(method.teacher(b)))
    assert torch.equal(method.queue.queue[:, 6:], before[:, 6:]) and method.queue.queue_ptr.tolist() == [6]
    method.queue.queue.copy_(before)
    untouched = torch.autograd.grad(method(a, b), parameters)
    method.queue.queue.fill_(torch.nan)
    for x, y in zip(torch.autograd.grad(loss, parameters), untouched, strict=True):
        assert torch.equal(x, y)


def seen_by(backbone: nn.Module, images: torch.Tensor, run) -> list[list[int]]:
    """Which of ``images`` (B, ...) go through ``backbone`` together while ``run()`` runs."""
    groups = []

    def note(_, inputs, __):
        same = (inputs[0][:, None] == images).flatten(2).all(2)
        groups.append(same.int().argmax(1).tolist())

    hook = backbone.register_forward_hook(note)
    run()
    hook.remove()
    return groups


def test_moco_keeps_its_products_in_the_dtype_of_its_queue():
    """A queue in autocast's dtype: queries and keys in it too, the loss that of the same numbers in float64."""
    method = make(MoCo, queue_size=16, queue_dtype=torch.bfloat16).eval()
    a, b = views()
    with torch.autocast("cpu", torch.bfloat16):
        q, k = method.unit(method.encoder(a)), method.keys(b)
        loss = method(a, b)
    assert q.dtype == k.dtype == method.state_dict()["queue.queue"].dtype == torch.bfloat16
    q, k, queue = q.double(), k.double(), method.queue.queue.double()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / method.temperature
    torch.testing.assert_close(loss.double(), F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.long)), rtol=2e-2, atol=0)
    method.train()(a, b).backward()
    assert all(p.grad.isfinite().all() for p in method.encoder.parameters())
    with pytest.raises(TypeError, match="dtype"):
        MoCo(tiny(), 10, queue_size=16, queue_dtype=torch.int32)


def test_shuffling_changes_who_shares_statistics_and_keys_come_back_in_order():
    method = make(MoCo, queue_size=32, bn_splits=2)
    images = torch.rand(12, 3, 4, 4)
    keys = []
    halves = seen_by(method.teacher.module.backbone, images, lambda: keys.append(method.keys(images)))
    assert sorted(halves[0] + halves[1]) == list(range(12)) and len(halves[0]) == 6
    assert set(halves[0]) not in ({*range(6)}, {*range(6, 12)})
    for half in halves:
        torch.testing.assert_close(keys[0][half], F.normalize(method.teacher(images[half])))
    assert not torch.allclose(keys[0], F.normalize(method.teacher(images)), atol=1e-3)
    queries = seen_by(method.encoder.backbone, images, lambda: method(images, images))
    assert queries == [[*range(6)], [*range(6, 12)]]
    method.shuffle_bn = False
    assert seen_by(method.teacher.module.backbone, images, lambda: method.keys(images)) == queries
    method.eval()
    assert seen_by(method.encoder.backbone, images, lambda: method(images, images)) == [[*range(12)]]


IMAGES, LABELS = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, -1, 2])
BAD_INPUT = [
    (lambda: MoCo(tiny(), 10, temperature=0.0), "MoCo: temperature must be above 0"),
    (lambda: MoCo(tiny(), 10, queue_size=0), "MoCo: queue_size"),
    (lambda: MoCo(tiny(), 10, bn_splits=0), r"MoCo: bn_splits must be in \[1, "),
    (lambda: MoCo(tiny(), 10, momentum=1.5), "MoCo: momentum must be in"),
    (lambda: MoCo(tiny(), 10, bn_splits=3, queue_size=8)(IMAGES, IMAGES), "bn_splits=3 needs .* 6 .* got 4"),
    (lambda: MoCoV3(tiny(), 10, temperature=-1.0), "MoCoV3: temperature"),
    (lambda: MoCoV3(tiny(), 10)(IMAGES, IMAGES[:3]), "MoCoV3: view0 and view1 must have the same shape"),
    (lambda: BYOL(tiny(), 10, momentum=math.nan), "BYOL: momentum must be in"),
    (lambda: BYOL(tiny(), 10, final_momentum=-0.1), "BYOL: final_momentum must be in"),
    (lambda: BYOL(tiny(), 10, total_steps=0), "BYOL: total_steps"),
    (
        lambda: BYOL(tiny(), 7)(IMAGES[..., :4, :4], IMAGES[..., :4, :4]),
        "BYOL: .* gives 10 features, expected feature_dim=7",
    ),
    (lambda: SimSiam(tiny(), 10)(IMAGES[:1], IMAGES[:1]), "SimSiam: .* B of at least 2"),
    (lambda: MeanTeacher(tiny(), 1, 10), "MeanTeacher: num_classes"),
    (lambda: MeanTeacher(tiny(), 3, 10, consistency_weight=math.inf), "MeanTeacher: consistency_weight"),
    (lambda: MeanTeacher(tiny(), 3, 10, ramp_up=2.0), "MeanTeacher: ramp_up"),
    (lambda: MeanTeacher(tiny(), 3, 10)(IMAGES, IMAGES, LABELS[:3]), r"labels must have shape \(4,\)"),
    (lambda: MeanTeacher(tiny(), 2, 10)(IMAGES, IMAGES, LABELS), r"labels must lie in -1 to 1 .* got -1 to 2"),
]


@pytest.mark.parametrize("call, words", BAD_INPUT)
def test_bad_input_is_refused_with_a_message(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("kind", [MoCo, MoCoV3, BYOL, SimSiam, MeanTeacher])
def test_under_autocast_the_loss_is_wide_and_every_parameter_learns(kind):
    method = make(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(*arguments(method))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    missing = {name for name, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())}
    assert not missing


def test_a_refused_call_moves_nothing():
    method = MADE["moco"](bn_splits=2)
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(ValueError, match="bn_splits"):
        method(*views(3))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())

"""Entropy minimisation, FixMatch and noisy student: formulas, what they refuse, pseudo-labels that stay."""

import copy

import pytest
import torch
from torch import nn

from fastssl.methods import EntropyMinimization, FixMatch, NoisyStudent

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh())


def views(count: int = 2) -> tuple[torch.Tensor, ...]:
    return torch.randn(count, 6, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()


LABELS = torch.tensor([0, -1, 2, -1, -1, 1])


def log_probabilities(method: nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = method.classifier(method.backbone(images))
    return logits - logits.exp().sum(1, keepdim=True).log()


def supervised(log_p: torch.Tensor) -> torch.Tensor:
    return -(log_p[0, 0] + log_p[2, 2] + log_p[5, 1]) / 3


def test_entropy_minimization_is_its_formula():
    method, (images,) = EntropyMinimization(encoder(), 3, entropy_weight=0.7).double(), views(1)
    log_p = log_probabilities(method, images)
    torch.testing.assert_close(method(images, LABELS), supervised(log_p) - 0.7 * (log_p.exp() * log_p).sum() / 6)
    none = method(images, torch.full((6,), -1))
    torch.testing.assert_close(none, -0.7 * (log_p.exp() * log_p).sum() / 6)


def test_fixmatch_is_its_formula_and_the_weak_view_of_its_second_part_has_no_gradient():
    method, (weak, strong) = FixMatch(encoder(), 3, threshold=0.4, unlabelled_weight=0.5).double(), views()
    weak, other = weak.requires_grad_(), strong.requires_grad_()
    of_weak, of_strong = log_probabilities(method, weak), log_probabilities(method, other)
    best, which = of_weak.detach().exp().max(1)
    trusted = best >= 0.4
    assert 0 < int(trusted.sum()) < 6
    second = -(of_strong[torch.arange(6), which] * trusted).sum() / 6
    loss = method(weak, other, LABELS)
    torch.testing.assert_close(loss, supervised(of_weak) + 0.5 * second)
    found = torch.autograd.grad(loss, (weak, other))
    wanted = torch.autograd.grad(supervised(of_weak), weak)[0], torch.autograd.grad(0.5 * second, other)[0]
    torch.testing.assert_close(found, wanted)


def test_noisy_student_is_its_formula_and_has_the_labels_alone_before_the_first_round():
    method, (images, clean) = NoisyStudent(encoder(), 3, 10, dropout=0.0, unlabelled_weight=2.0).double(), views()
    index = torch.tensor([9, 1, 2, 3, 7, 5])
    log_p = log_probabilities(method, images)
    torch.testing.assert_close(method(images, LABELS, index), supervised(log_p))
    method.start_round(method.classify(clean), index)
    believed = log_probabilities(method, clean).exp().detach()
    best = believed.amax(1)
    method.threshold = float(best.sort().values[1:3].mean())  # between the second and the third
    trusted = best >= method.threshold
    assert 0 < int(trusted.sum()) < 6 and int(method.round) == 1
    assert (method.pseudo[[0, 4, 6, 8]] == 0).all()
    second = -((believed * log_p).sum(1) * trusted).sum() / 6
    torch.testing.assert_close(method(images, LABELS, index), supervised(log_p) + 2.0 * second, rtol=1e-6, atol=1e-6)  # float32


def test_the_dropout_of_noisy_student_is_noise_of_training_only():
    method, (images,) = NoisyStudent(encoder(), 3, 6, dropout=0.5).double(), views(1)
    index = torch.arange(6)
    torch.manual_seed(0)
    first, second = (method(images, LABELS, index) for _ in range(2))
    assert first != second
    method.eval()
    assert method(images, LABELS, index) == method(images, LABELS, index)
    assert torch.equal(method.classify(images), method.classifier(method.embed(images)))


MADE = {
    "EntropyMinimization": lambda: (EntropyMinimization(encoder(), 3).double(), (*views(1), LABELS)),
    "FixMatch": lambda: (FixMatch(encoder(), 3).double(), (*views(), LABELS)),
    "NoisyStudent": lambda: (NoisyStudent(encoder(), 3, 10).double(), (*views(1), LABELS, torch.arange(6))),
}


@pytest.mark.parametrize("name", MADE)
def test_what_does_not_fit_is_refused_and_changes_nothing(name):
    method, arguments = MADE[name]()
    before = copy.deepcopy(method.state_dict())
    place = next(i for i, value in enumerate(arguments) if value is LABELS)
    for labels, error, words in (
        (LABELS.float(), TypeError, "labels must have an integer dtype"),
        (LABELS[:4], ValueError, "labels must have shape"),
        (LABELS.clamp_min(3), ValueError, "labels must lie in -1 to 2"),
        (LABELS - 1, ValueError, "got -2 to 1"),
    ):
        with pytest.raises(error, match=words):
            method(*arguments[:place], labels, *arguments[place + 1 :])
    with pytest.raises(ValueError, match="at least 2"):
        method(*(value[:1] for value in arguments))
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key])
    with pytest.raises(ValueError, match=f"{name}: num_classes"):
        type(method)(encoder(), 1, *([10] if name == "NoisyStudent" else []))


def test_the_views_of_fixmatch_must_be_alike():
    method, (weak, strong) = FixMatch(encoder(), 3).double(), views()
    with pytest.raises(ValueError, match="strong must have the shape of weak"):
        method(weak, strong[:, :, :1], LABELS)
    with pytest.raises(TypeError, match="strong must have dtype and device of weak"):
        method(weak, strong.float(), LABELS)
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            FixMatch(encoder(), 3, threshold=threshold)


def test_a_round_of_noisy_student_refuses_what_does_not_fit():
    method = NoisyStudent(encoder(), 3, 10)
    for logits, index, words in (
        (torch.zeros(9, 3), None, r"must have shape \(10, 3\)"),
        (torch.zeros(10, 4), None, r"must have shape \(10, 3\)"),
        (torch.full((10, 3), float("nan")), None, "finite"),
        (torch.zeros(2, 3), torch.tensor([0, 10]), "index must lie in 0 to 9"),
    ):
        with pytest.raises(ValueError, match=words):
            method.start_round(logits, index)
    assert int(method.round) == 0 and (method.pseudo == 0).all()

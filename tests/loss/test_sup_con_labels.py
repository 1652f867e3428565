"""The labels that ``sup_con`` and ``SupConLoss`` take, which are all that SupContrast takes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastssl import functional, loss


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0.5, 1.25, 1.25, 3.0, 0.5, -math.inf, 7.0, -math.inf], dtype=torch.float64),
        torch.tensor([0.0, -0.0, 0.1, 0.2, 0.1, 0.0, 3.0, 3.0], dtype=torch.bfloat16),
        torch.tensor([True, False, False, True, True, False, True, True]),
        torch.tensor([[0], [1], [1], [3], [0], [3], [3], [8]]),
        torch.tensor([0, 1, 1, 65535, 0, 65535, 3, 1], dtype=torch.uint16),
        torch.tensor([0, 1, 1, 2**63 - 1, 0, 2**63 - 1, 3, 1]).view(torch.uint64),
        torch.tensor([[0.5], [1.5], [1.5], [0.5], [2.5], [2.5], [2.5], [9.0]]),
    ],
    ids=["float64", "bfloat16", "bool", "column", "uint16", "uint64", "float column"],
)
def test_sup_con_takes_labels_of_every_kind(labels):
    """As in SupContrast, it only matters which labels are equal."""
    features = F.normalize(torch.randn(8, 2, 5, dtype=torch.float64), dim=2)
    mask = (labels.reshape(-1, 1) == labels.reshape(1, -1)).double()
    for call in (loss.SupConLoss(0.8), partial(functional.sup_con, temperature=0.8)):
        torch.testing.assert_close(call(features, labels), call(features, mask=mask), rtol=1e-12, atol=0)


def test_sup_con_refuses_labels_that_tell_nothing():
    features = torch.randn(3, 2, 4)
    for labels, error, match in (
        (torch.tensor([0.0, math.nan, 1.0]), ValueError, "sup_con: labels must not be NaN"),
        (torch.zeros(3, 2), ValueError, r"sup_con: labels must have shape \(3,\), .*, got \(3, 2\)"),
        (torch.zeros(2, 1), ValueError, r"sup_con: labels must have shape \(3,\), .*, got \(2,\)"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "sup_con: labels must have an integer, bool or float dtype"),
        ([0, 1, 1], TypeError, "sup_con: labels must be a tensor"),
    ):
        with pytest.raises(error, match=match):
            functional.sup_con(features, labels)


def _one_positive(case: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Unit rows (B, V, D) in float64, labels and contrast mode: clusters of two rows each, and one class of three samples."""
    corners = torch.eye(12, dtype=torch.float64)
    near = lambda: F.normalize(corners + 0.01 * torch.randn(12, 12, dtype=torch.float64), dim=1)  # noqa: E731
    if case == "two samples":
        features, labels, mode = torch.cat([near(), near()])[:, None], torch.arange(12).repeat(2) * 2**40, "all"
        order = torch.randperm(24)
        features, labels = features[order], labels[order]
    else:
        features, labels, mode = torch.stack([near(), near()], 1), torch.arange(12), case
    features, labels = torch.cat([features, features[:3] + features[3:6]]), torch.cat([labels, labels.new_full((3,), -7)])
    return F.normalize(features, dim=2), labels, mode


@pytest.mark.parametrize("case", ["two samples", "all", "one"])
@pytest.mark.parametrize("temperature", [0.1, 0.05])
def test_a_small_loss_keeps_its_digits(case, temperature):
    """Anchors with one positive have losses of 1e-3 and 1e-7 beside logits of 10 and 20, so a difference of logits loses them."""
    features, labels, mode = _one_positive(case)
    options = {"temperature": temperature, "contrast_mode": mode, "reduction": "none"}
    narrow = features.float().requires_grad_()
    wide = narrow.detach().double().requires_grad_()
    anchors = wide.transpose(0, 1).flatten(0, 1)
    label = labels.repeat(features.shape[1])
    itself = torch.eye(len(label), dtype=torch.bool)
    s = (anchors @ anchors.T / temperature).masked_fill(itself, -math.inf)
    positive = (label[:, None] == label) & ~itself
    log_p = torch.log_softmax(s, 1).masked_fill(~positive, 0.0)
    want = -(log_p.sum(1) / positive.sum(1).clamp_min(1))[: len(label) if mode == "all" else len(labels)]
    got = functional.sup_con(narrow, labels, **options)
    small = want < 0.02
    assert small.sum() >= 6 and (positive.sum(1)[: len(want)][small] == 1).all()
    # A logit is off by a few roundings of 1 / temperature; log(1 + e^-u) is then off by that share of itself, whatever its size.
    torch.testing.assert_close(got.double(), want, rtol=16 * 2**-24 / temperature, atol=0)
    (grad,) = torch.autograd.grad(got[small].sum(), narrow)
    (true,) = torch.autograd.grad(want[small].sum(), wide)
    assert (grad.double() - true).norm() <= 64 * 2**-24 / temperature * true.norm()


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("given", ["labels", "mask"])
def test_a_huge_row_does_not_spoil_the_sum_of_its_class(views, given):
    """One row is 1e6 times the others. Its term is the mean over its positives, and must be what it is without the row itself."""
    features = torch.randn(9, views, 5)
    features[0, 0] *= 1e6
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 0])
    same = (labels[:, None] == labels).float()
    positives = {"labels": labels} if given == "labels" else {"mask": same}
    rows = functional.sup_con(features, **positives, temperature=1.0, reduction="none")
    z = features.double().transpose(0, 1).flatten(0, 1)
    positive = same.repeat(views, views).bool() & ~torch.eye(9 * views, dtype=torch.bool)
    s = (z @ z.T).masked_fill(torch.eye(9 * views, dtype=torch.bool), -math.inf)
    want = s.logsumexp(1) - torch.where(positive, s, 0.0).sum(1) / positive.sum(1)
    largest = torch.where(s.isfinite(), s.abs(), 0.0).amax(1)
    assert ((rows.double() - want).abs() <= 32 * 2**-24 * largest + 1e-6).all()


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        (torch.tensor([1, 1, 2], dtype=torch.uint8), -1),
        (torch.tensor([1, 1, 2**64 - 1], dtype=torch.uint64), -1),
        (torch.tensor([2048.0, 1, 1], dtype=torch.float16), 2049),
        (torch.tensor([2.0**24, 1, 1]), 2**24 + 1),
        (torch.tensor([True, False, False]), 2),
    ],
    ids=["uint8", "uint64", "float16", "float32", "bool"],
)
def test_an_ignored_label_that_no_label_can_be_is_refused(labels, ignore):
    """Rounded or wrapped to the dtype of the labels, the number would be another one."""
    features = F.normalize(torch.randn(3, 2, 4), dim=2)
    with pytest.raises(
        ValueError, match=f"sup_con: ignore_label must be a number that labels of {labels.dtype} can hold, got {ignore}"
    ):
        functional.sup_con(features, labels, ignore_label=ignore)

"""What may be a label of ``sup_con`` and ``SupConLoss``: everything that SupContrast takes."""

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
    """As SupContrast does: what counts is which labels are equal."""
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

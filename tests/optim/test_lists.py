"""Lists of values and versions of the ops lars_ and adamw_: the quick yes to a list refuses what the look at each entry does."""

import math

import numpy as np
import pytest
import torch

from fastssl.ops.lars import lars_
from tests.support.optim_common import equal


@pytest.mark.parametrize(
    "name, wrong, error, words",
    [
        ("weight_decay", math.nan, ValueError, "must be finite in torch.float32 and at least 0, got nan"),
        ("weight_decay", math.inf, ValueError, "must be finite in torch.float32 and at least 0, got inf"),
        ("weight_decay", 1e39, ValueError, r"must be finite in torch.float32 and at least 0, got 1e\+39"),
        ("weight_decay", -0.1, ValueError, "must be finite in torch.float32 and at least 0, got -0.1"),
        ("weight_decay", True, TypeError, "must be a number or a sequence of them, got bool"),
        ("adapt", 1, TypeError, "must be True or False or a sequence of them, got int"),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_wrong_entry_of_a_list_is_refused_wherever_it_stands(position, name, wrong, error, words):
    params, grads, mu = ([torch.ones(2) for _ in range(3)] for _ in range(3))
    values = [0.1] * 3 if name == "weight_decay" else [True] * 3
    values[position] = wrong
    with pytest.raises(error, match=f"lars_: {name} {words}"):
        lars_(params, grads, mu, lr=0.1, **{name: values})
    assert all(torch.equal(p, torch.ones(2)) for p in params)


def test_entries_whose_sum_overflows_and_entries_of_numpy_are_numbers_like_all():
    runs = []
    for decay in ([1e-3, 0.25], [np.float64(1e-3), np.float32(0.25)], (1e-3, 0.25)):
        p, g, mu = ([torch.ones(2) for _ in range(2)] for _ in range(3))
        lars_(p, g, mu, lr=0.1, weight_decay=decay, form="larc")
        runs.append(p)
    assert all(equal(runs[0], other) for other in runs[1:])
    most = torch.finfo(torch.float32).max
    p, g, mu = ([torch.ones(2), torch.ones(1)] for _ in range(3))
    lars_(p, g, mu, lr=0.0, weight_decay=[most, most])
    assert equal(p, g)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_every_written_tensor_has_a_new_version(mode):
    p, g, mu = ([torch.ones(3) for _ in range(2)] for _ in range(3))
    with mode():
        lars_(p, g, mu, lr=0.1)
    assert [t._version for t in (*p, *mu, *g)] == [1, 1, 1, 1, 0, 0]

"""Under ``torch.compile`` a size that changes makes two graphs at most, of what the table of cases does not hold; its rows are
asked in ``test_ops.py``. A size that enters a number or a text (math.log, range, an f-string) becomes a constant of its graph."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from fastssl import functional, masking


def z(n: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6), dim=1)


def pairs(n: int) -> torch.Tensor:
    return torch.arange(n) // 2


CALLS = {
    "info_nce with statistics": (lambda a, b: functional.info_nce(a, b, return_stats=True), lambda n: (z(n), z(n))),
    "moco_v3_loss": (functional.moco_v3_loss, lambda n: (z(n), z(n))),
    "sup_con without some labels": (
        lambda f, labels: functional.sup_con(f, labels, ignore_label=-1),
        lambda n: (torch.stack([z(n), z(n)], 1), pairs(n) - 1),
    ),
    "matryoshka": (lambda a, b: functional.matryoshka(functional.nt_xent, a, b, dims=(2, 6)), lambda n: (z(n), z(n))),
    "nearest_neighbor": (
        lambda q, bank, rows: functional.nearest_neighbor(q, bank, exclude=rows),
        lambda n: (z(n), z(30), torch.arange(n)),
    ),
    "n_pair": (functional.n_pair, lambda n: (z(n), z(n))),
    "uniformity": (functional.uniformity, lambda n: (z(n),)),
    "contrastive": (functional.contrastive, lambda n: (z(n), z(n), torch.arange(n) % 2)),
    "contrastive_pairs": (functional.contrastive_pairs, lambda n: (z(n), pairs(n))),
    "triplet_batch": (functional.triplet_batch, lambda n: (z(n), pairs(n))),
    "lifted_structured": (functional.lifted_structured, lambda n: (z(n), pairs(n))),
    "soft_nearest_neighbor": (functional.soft_nearest_neighbor, lambda n: (z(n), pairs(n))),
    "nce_log_z": (lambda q, noise: functional.nce_log_z(q, noise, n=99), lambda n: (z(n), z(n + 2))),
    "random_masking": (
        lambda x, noise: masking.random_masking(x, 0.75, noise=noise),
        lambda n: (z(4 * n).view(n, 4, 6), torch.rand(n, 4)),
    ),
    "soft_cross_entropy of float16": (
        functional.soft_cross_entropy,
        lambda n: (torch.randn(n, 6).half().requires_grad_(), torch.randn(n, 6).half()),
    ),
    "mask_ids": (lambda noise: functional.mask_ids(noise.shape, 0.5, noise=noise), lambda n: (torch.rand(n, 8),)),
}


@pytest.mark.parametrize("name", CALLS)
def test_two_graphs_serve_all_sizes(name):
    call, inputs = CALLS[name]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    for n in (8, 10, 14, 20):
        given = inputs(n)
        torch.testing.assert_close(compiled(*given), call(*given))
    assert counters["stats"]["unique_graphs"] <= 2

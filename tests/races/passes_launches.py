"""The launches whose compilation ``passes.py`` checks: each main kernel once, in float16, at a size of a few tiles."""

import torch
from torch.nn.functional import normalize

from fastssl.kernels import sigmoid_pair, similarity, similarity_cross, sinkhorn, soft_cross_entropy, soft_rows
from fastssl.kernels.soft_rows import RowTile
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig

N, M, D = 20, 37, 16


def main() -> None:
    plan.pick_config = lambda *args: TileConfig(16, 16, 4, 2)
    for module in (plan, sigmoid_pair):
        module.pick_splits = lambda rows, columns, *args: (1, 16 * -(-columns // 16))
    similarity_cross.pick_groups = lambda rows, columns, *args: (1, 16 * -(-rows // 16), 1, 16 * -(-columns // 16))
    gen = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(rows, D, generator=gen), dim=1).half() for rows in (N, M))
    x_id, y_id = torch.arange(N) % 3, torch.arange(M) % 3
    g, need = torch.rand(N, generator=gen), (True, True, False, True)
    for other, ids in ((y, y_id), (None, None)):
        args = (x, other, 10.0, None, x_id, ids, None)
        *_, state, peak = similarity.similarity_fwd(*args, None)
        similarity.similarity_bwd(g, state, peak, *args, need)
    similarity.similarity_one_pass(x, y, 10.0, None, x_id, y_id, None, None)
    similarity_cross.similarity_cross_fwd(x, y, 10.0, None, x_id, y_id, None, 0)
    sigmoid_pair.sigmoid_pair(x, y, 10.0, None, -5.0, None, x_id, y_id, None, None, (True, False, True, True))
    distil(gen)


def distil(gen: torch.Generator) -> None:
    """Row against row in one launch, and a step of Sinkhorn."""
    for module in (soft_rows, soft_cross_entropy):
        module.row_tile = lambda rows, *_: RowTile(rows, 32, 4, 1)
    k, t = 200, torch.tensor([0.1, 0.04])
    student, teacher = torch.randn(2, 8, k, generator=gen).half()
    bias = torch.randn(1, k, generator=gen)
    soft_cross_entropy.soft_cross_entropy_fwd(student, teacher, bias, None, t, [k], 8, 1, False, False, True)
    sinkhorn.sinkhorn_step(student, bias, t[1:].clone(), [k], 1)


if __name__ == "__main__":
    main()

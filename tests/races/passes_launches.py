"""The launches whose compilation ``passes.py`` checks: each main kernel once, in float16, at a size of a few tiles."""

import torch
from torch.nn.functional import normalize

from fastssl.kernels import sigmoid_pair, similarity, similarity_cross
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


if __name__ == "__main__":
    main()

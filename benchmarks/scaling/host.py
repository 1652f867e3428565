"""How long Python takes for one step of a ring, however small its kernels:  python -m benchmarks.scaling.host

A step calls the kernels of one part and joins what they return with the parts before; 33 steps without any transfer, of rows and
columns that cost nothing, less one step, are 32 times that. On a GPU the same calls start kernels, which costs the host about as
much, and the GPU waits where its kernels are shorter. The model's ``HOST`` comes from here. Imports ``fastssl``.
"""

import sys
import time

import torch

from fastssl.distributed import similarity

ROWS, WIDTH, STEPS = 32, 32, 33


class _NoWay:
    """Stands for ``Route``: visits the own columns again and again, as if they were those of ``STEPS`` or of one process."""

    steps = 1

    def __init__(self, *_):
        pass

    def visit(self, columns, visit) -> list:
        for _ in range(self.steps):
            visit(0, columns)
        return []

    def collect(self, columns, visit, *_) -> list:
        for _ in range(self.steps):
            made = visit(0, columns)
        return made


def seconds(rounds: int = 30) -> tuple[float, float]:
    """Of a step, forward and backward: the least of several rounds."""
    x, y = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    operands = x, y, 1.0, None, None, None, None
    route = torch.tensor([ROWS]), "ring", "none"
    found = []
    kept, similarity.Route = similarity.Route, _NoWay
    try:
        for backward in (False, True):
            least = {}
            for _NoWay.steps in (1, STEPS):
                _, _, state, peak, _ = similarity._forward(*operands, None, False, *route)
                grads = torch.ones(ROWS), state, peak, [], *operands, [True, True, False, False]
                for _ in range(rounds):
                    begin = time.perf_counter()
                    if backward:
                        similarity._backward(*grads, *route)
                    else:
                        similarity._forward(*operands, None, False, *route)
                    taken = time.perf_counter() - begin
                    least[_NoWay.steps] = min(taken, least.get(_NoWay.steps, taken))
            found.append((least[STEPS] - least[1]) / (STEPS - 1))
    finally:
        similarity.Route = kept
    return found[0], found[1]


def main() -> int:
    torch.set_num_threads(1)
    forward, backward = seconds()
    print(f"{1e6 * forward:.0f} us for a step of the forward, {1e6 * backward:.0f} us for one of the backward")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Processes and threads beside each other: loaders that fork and spawn, two Python threads in the losses, OpenMP beside MKL.

Every result must be, bit for bit, that of the same call made alone. The loaders are started after the kernels and torch have used
their teams of OpenMP threads, which a child of fork lacks.
"""

import tempfile
import threading
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from fastssl.testing.cases import CASES

from .runs import write_grey_classes
from .soak import once

THREADS = 2


def alike(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def given_of(case, seed: int) -> dict[str, torch.Tensor]:
    return case.inputs(case.shapes[-1], torch.float32, "cpu", seed)


def side_by_side(work: list) -> list:
    """What each function gives, called at the same time in a thread of its own; an exception is what it gave."""
    found: list = [None] * len(work)
    together = threading.Barrier(len(work))

    def call(number: int) -> None:
        together.wait()
        try:
            found[number] = work[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def in_threads(times: int) -> tuple[int, list[str]]:
    """Each case in one thread, with other inputs in a second and products by MKL in a third -> calls, and what differed."""
    bad, calls = [], 0
    a, b = torch.randn(2, 192, 192).unbind()
    product = a @ b
    for name, case in CASES.items():
        inputs = [given_of(case, seed) for seed in range(THREADS)]
        alone = [once(case, given) for given in inputs]

        def loss(number: int, case=case, inputs=inputs, alone=alone) -> bool:
            return all(alike(once(case, inputs[number]), alone[number]) for _ in range(times))

        def products() -> bool:
            return all(torch.equal(a @ b, product) for _ in range(4 * times))

        work = [*(lambda number=number: loss(number) for number in range(THREADS)), products]
        found = side_by_side(work)
        bad += [f"{name}, thread {number}: {what}" for number, what in enumerate(found) if what is not True]
        calls += times * THREADS
    return calls, bad


def by_loaders(images: Path) -> tuple[int, list[str]]:
    """The batches of worker processes of each kind against those read in this process."""
    from fastssl.train.data import _as_is, load_data

    data, bad, count = load_data(f"folder:{images}", 16).train, [], 0
    alone = [data.__getitems__(list(range(at, at + 8))) for at in range(0, 24, 8)]
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(data, 8, num_workers=2, collate_fn=_as_is, multiprocessing_context=method, timeout=120)
        for number, batch in enumerate(loader):
            if not alike(list(batch), list(alone[number])):
                bad.append(f"{method}: batch {number} is another one")
            count += 1
    return count, bad


def main(options) -> int:
    torch.set_num_threads(THREADS)
    calls, bad = in_threads(options.times)
    print(
        f"workers: {calls} calls of {len(CASES)} cases in {THREADS} threads beside products by MKL, {len(bad)} with other bits",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place:
        write_grey_classes(Path(place) / "images")
        count, wrong = by_loaders(Path(place) / "images")
    print(f"workers: {count} batches of loaders that fork, spawn and ask a fork server, after the kernels ran: {len(wrong)} others")
    bad += wrong
    print(*bad, sep="\n", end="\n" * bool(bad))
    return len(bad)

"""Kills of a random process at a random time, in a run of three that train with DistributedDataParallel and a loss of all.

    python -m tests.distributed.kills --kills 50

Each trial starts three processes, kills one of them with SIGKILL within the first steps or later, and looks at how the others
end: within the timeout of their group, and with an error that says that another process is gone. The program prints a line for each
trial, and ends with 1 if any process hung, ended without an error, or with an error that does not name the cause.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

WORLD, TIMEOUT, GRACE = 3, 15, 8  # processes; seconds of the group; seconds that an error may take beyond
#: What a process may say: fastssl's own error, or that of torch where the gradients of DistributedDataParallel were exchanged.
CAUSES = re.compile(
    r"RanksError: .*(rank [\d, ]+ did not take part|has probably ended|every process failed alike)"
    r"|losed by peer|reset by peer|Timed out|refused"
)


def train(rank: int, store: str, transport: str, out: str) -> None:
    """Steps without end; what ends them is written to ``out``."""
    from fastssl.distributed import Ranks
    from fastssl.functional import clip_loss, nt_xent

    torch.set_num_threads(1)
    path = Path(out) / f"{rank}"
    try:
        distributed.init_process_group("gloo", f"file://{store}", timedelta(seconds=TIMEOUT), WORLD, rank)
        model = nn.parallel.DistributedDataParallel(nn.Linear(16, 8))
        path.with_suffix(".started").touch()
        generator = torch.Generator().manual_seed(rank)
        while True:
            a, b = (model(torch.randn(5 + rank, 16, generator=generator)) for _ in range(2))
            loss = nt_xent(a, b, group=Ranks(transport=transport)) + clip_loss(
                a, b, 2.0, normalize=True, group=Ranks(transport=transport)
            )
            loss.backward()
    except BaseException as error:
        path.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def trial(folder: Path, chance: random.Random) -> list[str]:
    """What is wrong with how the survivors of one kill ended."""
    transport, victim, after = chance.choice(("gather", "ring")), chance.randrange(WORLD), chance.uniform(0, 1.5)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fastssl", "fastssl.functional", "fastssl.distributed"])
    processes = [
        context.Process(target=train, args=(rank, str(folder / "store"), transport, str(folder)), daemon=True)
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all((folder / f"{rank}.started").exists() for rank in range(WORLD)):
        time.sleep(0.02)
    time.sleep(after)
    os.kill(processes[victim].pid, signal.SIGKILL)
    start, wrong = time.monotonic(), []
    for rank, process in enumerate(processes):
        if rank == victim:
            continue
        process.join(max(0.1, start + TIMEOUT + GRACE - time.monotonic()))
        if process.is_alive():
            wrong.append(f"rank {rank} still runs")
            process.kill()
            continue
        said = (folder / f"{rank}").read_text() if (folder / f"{rank}").exists() else "nothing"
        if not CAUSES.search(said):
            wrong.append(f"rank {rank} said: {said}")
        print(f"  rank {rank}: {said[:230]}")
    print(
        f"{transport}, rank {victim} killed after {after:.2f} s: the others ended within {time.monotonic() - start:.1f} s",
        flush=True,
    )
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Kill processes of a run and see how the others end.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance, failures = random.Random(options.seed), []
    for number in range(options.kills):
        with tempfile.TemporaryDirectory() as folder:
            failures += [f"trial {number}: {problem}" for problem in trial(Path(folder), chance)]
    print("\n".join(failures) or f"{options.kills} kills: every other process ended with an error that names the cause")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Work for several processes that talk over gloo, for the tests of losses, queues and averages across processes."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch import distributed, multiprocessing, set_num_threads


def _of_rank(rank: int, work, world: int, store: str, arguments: tuple) -> None:
    set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", timedelta(seconds=150), world, rank)
    work(rank, world, *arguments)
    distributed.barrier()
    distributed.destroy_process_group()
    # Past this line nothing is left to do, and Python is not shut down: one of gloo's threads may still hold the last tensor of
    # a gather, and to free it while Python ends makes torch abort ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_processes(work, world: int, folder: Path, *arguments, seconds: float = 300) -> None:
    """Run ``work(rank, world, *arguments)`` in each of ``world`` processes of one thread; raise what one of them raised.

    Args:
        work: a function of a module, since the processes import it.
        world: how many processes.
        folder: an empty one, for the file where they meet.
        seconds: after these the processes are stopped, and the test fails.
    """
    start_method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():  # its server imports torch once for all tests of this process
        start_method = "forkserver"
        once = ["torch", "torch._dynamo", "fastssl", "fastssl.functional"]  # several tests compile in each process
        multiprocessing.get_context(start_method).set_forkserver_preload(once)
    arguments = (work, world, str(folder / "store"), arguments)
    context = multiprocessing.start_processes(_of_rank, arguments, world, join=False, daemon=True, start_method=start_method)
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=5, grace_period=5):
            assert time.monotonic() < deadline, f"{world} processes did not finish in {seconds:g} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()

"""The processes of a run: who starts them, how many there are on how many machines, whether this is a restart, whether all agree.

Lightning starts the processes of one machine itself (``--devices 4``), or joins those that torchrun or SLURM's srun have started.
Those say in the environment how many there are; ``--devices`` and ``--num-nodes`` may be left out then. A run's folder lies on a
file system that all machines share, and the first process of the first machine writes there.
"""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from fastssl._aside import no_link, replace_text
from fastssl._ending import Failure
from fastssl.train import UsageError
from fastssl.train.settings import flag

MOST_OF_JOB = 1000  # characters
JOB = ".job"  # in the folder of a run: the SLURM job that began it, so that the job knows it when it is started again
STARTERS = "start it with torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each machine"


@dataclass(frozen=True)
class Launch:
    """What the program that started this process says about it.

    Args:
        by: "torchrun", "srun" or "": nobody, so that Lightning starts the other processes of this machine.
        devices: processes on this machine.
        nodes: machines.
    """

    by: str = ""
    devices: int = 1
    nodes: int = 1


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """Who started this process, by its environment. torchrun inside of a SLURM job is torchrun.

    Raises:
        UsageError: a job of several SLURM tasks without srun, or tasks that are not spread evenly over the machines.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        world, devices = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        if world % devices:
            raise UsageError(f"torchrun has started {world} processes, and {devices} on this machine; each machine needs as many")
        return Launch("torchrun", devices, world // devices)
    tasks = int(environment.get("SLURM_NTASKS", "0"))
    if not tasks or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return Launch()
    if tasks > 1 and "SLURM_STEP_ID" not in environment:
        raise UsageError(f"SLURM has {tasks} tasks for this job, and the command runs without srun; write srun before it")
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1")
    if tasks % nodes:
        raise UsageError(f"SLURM spreads {tasks} tasks over {nodes} machines; each machine needs as many, see --ntasks-per-node")
    return Launch("srun", tasks // nodes, nodes)


def with_processes(given: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """``given`` with the numbers of devices and machines that the launch has, where the command line leaves them out.

    Raises:
        UsageError: a command line that says otherwise than the launch, or several machines that nobody has told of each other.
    """
    nodes = given["num_nodes"]
    if not launch.by:
        missing = [name for name in ("MASTER_ADDR", "NODE_RANK") if name not in os.environ]
        if nodes is not None and nodes > 1 and missing:
            raise UsageError(
                f"--num-nodes {nodes}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {STARTERS}"
            )
        return given | {"num_nodes": nodes or 1}
    if nodes not in (None, launch.nodes):
        raise UsageError(f"--num-nodes {nodes}: {launch.by} has started processes on {launch.nodes}; leave the option out")
    devices = given["devices"]
    if devices == "auto":
        devices = str(launch.devices)
    elif devices.isdigit() and int(devices) != launch.devices:
        raise UsageError(f"--devices {devices}: {launch.by} has started {launch.devices} on each machine; leave the option out")
    if launch.by == "srun":  # lightning reads the number there, and srun sets it only where the job was asked for by it
        os.environ["SLURM_NTASKS_PER_NODE"] = str(launch.devices)
    return given | {"devices": devices, "num_nodes": launch.nodes}


class Meeting:
    """The processes of one start of torchrun find each other in the store that torchrun keeps for the whole launch.

    torchrun starts all processes again when one of them fails. The store then still has the keys of those that ended, so that
    torch.distributed would look for these. And torchrun's own count of restarts differs between machines. So the first process
    writes a name of its own, each other process answers with one under that name, and the first one answers each of them: a process
    that ended answers nobody. The name becomes the prefix of the keys of this start.

    Args:
        store: a ``torch.distributed.Store`` that all processes share.
        rank, world: which of how many processes this one is.
        seconds: for which a process waits for the others.
    """

    BEGUN, FIRST = "fastssl/begun", "fastssl/first"

    def __init__(self, store: Any, rank: int, world: int, seconds: float = 1800.0):
        self.store, self.deadline = store, time.monotonic() + seconds
        own = uuid.uuid4().hex
        if rank == 0:
            self.name = own
            self.began = store.check([self.BEGUN])
            store.set(self.FIRST, own)
            for other in range(1, world):
                self.wait(f"{own}/{other}", f"process {other}")
                store.set(f"{own}/{store.get(f'{own}/{other}').decode()}", str(int(self.began)))
            return
        while True:
            self.wait(self.FIRST, "the first process")
            self.name = store.get(self.FIRST).decode()
            store.set(f"{self.name}/{rank}", own)
            while (same := store.get(self.FIRST).decode() == self.name) and not store.check([f"{self.name}/{own}"]):
                self.pause("the first process")
            if same:
                self.began = store.get(f"{self.name}/{own}") == b"1"
                return

    def wait(self, key: str, whom: str) -> None:
        while not self.store.check([key]):
            self.pause(whom)

    def pause(self, whom: str) -> None:
        if time.monotonic() > self.deadline:
            raise Failure(f"{whom} of the run did not start in time")
        time.sleep(0.05)  # between two looks, so that a signal is heard

    def begin(self) -> None:
        """Notes that the launch has begun its run: what a later start finds in the folder of the run is its own."""
        self.store.set(self.BEGUN, "1")

    def own_keys(self) -> Any:
        """The store with the keys of this start alone, for ``torch.distributed.init_process_group``."""
        return distributed.PrefixStore(self.name, self.store)


def met() -> Meeting | None:
    """Meets the other processes of this start of torchrun; None without torchrun, or where it keeps no store."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Meeting(distributed.TCPStore(host, port, is_master=False), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def join_processes(trainer: Any, meeting: Meeting | None) -> None:
    """Makes the process group of processes that have met; lightning makes that of others, and uses this one."""
    if meeting is None or trainer.world_size == 1:
        return
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        distributed.Backend.default_device_backend_map.get(device.type, "gloo"),
        store=meeting.own_keys(),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        device_id=None if device.type == "cpu" else device,
    )


def leave_processes() -> None:
    """Ends the process group after the training: the first process evaluates alone, and the others are done."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def share_of_rows(rows: int, device: torch.device) -> Tensor:
    """W N / (N of all W processes together), (): with it the mean over processes is the mean over the rows of all of them.

    A file that cannot be read makes the batch of one process shorter.
    """
    total = torch.tensor(rows, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    distributed.all_reduce(total)
    return distributed.get_world_size() * rows / total


def requeued(out: Path) -> bool:
    """Whether SLURM has started the job again that left its name in ``out``, for example because a machine failed."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    try:
        with open(out / JOB, encoding="utf-8", errors="replace", opener=no_link) as file:
            return file.read(MOST_OF_JOB) == os.environ.get("SLURM_JOB_ID")
    except OSError:
        return False


def note_job(out: Path) -> None:
    """Leaves the name of the SLURM job in ``out``, for ``requeued``."""
    if job := os.environ.get("SLURM_JOB_ID"):
        replace_text(out / JOB, job)
    else:
        (out / JOB).unlink(missing_ok=True)


def refuse_differences(of_each: list[dict[str, Any]]) -> None:
    """Raises UsageError, the same in every process, where the processes of a run were not given the same.

    Args:
        of_each: what each process was given: the settings by name, ``prints``, the fingerprints of the data's halves, and ``done``,
            the finished epochs of the checkpoint that it goes on from, or None.
    """
    first = of_each[0]
    for rank, other in enumerate(of_each):
        for name, value in first.items():
            if other.get(name) == value:
                continue
            if name == "done":
                found = [f"{n} finished epochs" if n is not None else "no checkpoint" for n in (value, other.get(name))]
                what = f"--out: process 0 found {found[0]} there, and process {rank} {found[1]}"
                raise UsageError(f"{what}; the folder of a run has to lie on a file system that all machines share")
            if name == "prints":
                what = (
                    f"--data: process {rank} found other {' and '.join(differing_halves(value, other[name]))} data than process 0"
                )
                raise UsageError(f"{what}; every machine needs the same files")
            ours, theirs = ("its default" if it is None else it for it in (value, other.get(name)))
            what = f"{flag(name)}: process 0 has {ours}, and process {rank} has {theirs}"
            raise UsageError(f"{what}; give every machine the same options")


def differing_halves(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    names = {"train": "training", "test": "test"}
    return [names.get(key, key) for key in ours if ours[key] != theirs.get(key)]

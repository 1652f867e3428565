"""Runs of several processes: started by torchrun and by srun, told apart, killed and started again, given different things."""

import os
import signal
import socket
import threading
import uuid
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from fastssl.train import UsageError
from fastssl.train.processes import Launch, Meeting, launched, note_job, refuse_differences, requeued, with_processes
from tests.support.rotation import every
from tests.support.training import needs_train, write_grey_classes

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not distributed.is_available(), reason="torch is built without torch.distributed"),
]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, Launch()),
        (TORCHRUN | SRUN, Launch("torchrun", 4, 2)),
        (SRUN, Launch("srun", 4, 2)),
        (SRUN | {"SLURM_STEP_NUM_NODES": "1"}, Launch("srun", 8, 1)),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, Launch()),
        ({"SLURM_NTASKS": "1"}, Launch("srun", 1, 1)),
    ],
)
def test_who_started_the_processes(environment, launch):
    assert launched(environment) == launch


@pytest.mark.parametrize(
    "environment, given, said",
    [
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, {}, "torchrun has started 8 processes, and 3 on this machine; each machine needs"),
        (SRUN | {"SLURM_NTASKS": "7"}, {}, "SLURM spreads 7 tasks over 2 machines; each machine needs as many"),
        ({"SLURM_NTASKS": "2"}, {}, "SLURM has 2 tasks for this job, and the command runs without srun; write srun before it"),
        (TORCHRUN, {"devices": "2"}, "--devices 2: torchrun has started 4 on each machine; leave the option out"),
        (SRUN, {"num_nodes": 3}, "--num-nodes 3: srun has started processes on 2; leave the option out"),
        ({"MASTER_ADDR": "a"}, {"num_nodes": 2}, "--num-nodes 2: NODE_RANK is missing; start it with torchrun or srun, or set"),
    ],
)
def test_processes_that_do_not_fit_are_refused(environment, given, said, monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as refused:
        with_processes({"devices": "auto", "num_nodes": None} | given, launched())
    assert said in str(refused.value)


def test_options_left_out_are_what_the_launch_has(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "99")
    auto = {"devices": "auto", "num_nodes": None, "out": 1}
    assert with_processes(auto, Launch()) == {"devices": "auto", "num_nodes": 1, "out": 1}
    assert with_processes(auto, Launch("srun", 4, 2)) == {"devices": "4", "num_nodes": 2, "out": 1}
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"
    assert with_processes(auto | {"devices": "1,3"}, Launch("torchrun", 2, 1))["devices"] == "1,3"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"lr": 0.1}, "--lr: process 0 has its default, and process 1 has 0.1; give every machine the same options"),
        ({"done": None}, "--out: process 0 found 3 finished epochs there, and process 1 no checkpoint; the folder of a run"),
        ({"prints": {"train": 1, "test": 3}}, "--data: process 1 found other test data than process 0; every machine"),
    ],
)
def test_processes_that_were_given_different_things_are_refused(change, said):
    same = {"lr": None, "done": 3, "prints": {"train": 1, "test": 2}}
    refuse_differences([same, dict(same)])
    with pytest.raises(UsageError) as refused:
        refuse_differences([same, same | change])
    assert str(refused.value).startswith(said)


def test_processes_meet_though_the_store_has_the_keys_of_those_that_ended():
    """Three starts of one launch: the second one loses its first process before it answers anybody."""
    store, started = distributed.HashStore(), []

    def start(ranks: list[int], seconds: float = 20.0) -> list[Meeting]:
        made = {}

        def meet(rank: int) -> None:
            try:
                made[rank] = Meeting(store, rank, 3, seconds)
            except Exception as error:
                made[rank] = error

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [made[rank] for rank in ranks]

    for ranks in ([2, 0, 1], [2, 1], [1, 2, 0]):
        if len(ranks) == 2:
            assert all("the first process of the run did not start in time" in str(error) for error in start(ranks, 0.2))
            continue
        made = start(ranks)
        assert len({meeting.name for meeting in made}) == 1 and {meeting.began for meeting in made} == {bool(started)}
        next(meeting for rank, meeting in zip(ranks, made, strict=True) if rank == 0).begin()
        started.append(made[0].name)
    assert len(set(started)) == 2


def test_a_slurm_job_knows_the_run_that_it_has_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    note_job(tmp_path)
    assert not requeued(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeued(tmp_path) and not requeued(tmp_path / "other")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert not requeued(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID")
    note_job(tmp_path)
    assert not list(tmp_path.iterdir())


def options(images: Path, out: Path) -> list[str]:
    """A run of 4 epochs of 3 steps, in which each of two processes has batches of 4, but for the file that cannot be read."""
    size = ["--image-size", "16", "--batch-size", "4", "--epochs", "4", "--knn-every", "3", "--hidden-dim", "16"]
    where = ["--data", f"folder:{images}", "--accelerator", "cpu", "--workers", "0", "--map", "none", "--out", str(out)]
    return ["train", "simclr", *where, *size]


def write_into(said: Path) -> None:
    """Appends what this process prints to a file: a server that forks processes may have been started with other streams."""
    with said.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def by_torchrun(said: Path, argv: list[str]) -> None:
    """A process of torchrun. In the first start the second process is killed in its second epoch."""
    from fastssl.__main__ import main
    from fastssl.train import loop

    write_into(said)
    torch.set_num_threads(1)
    step = loop.MethodModule.training_step

    def deadly(module, arguments, batch_idx):
        if (module.current_epoch, batch_idx, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (1, 1, "1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, arguments, batch_idx)

    loop.MethodModule.training_step = deadly
    if code := main(argv):
        raise SystemExit(code)


def by_srun(rank: int, port: int, said: Path, argv: list[str]) -> None:
    """A process as srun starts it."""
    from fastssl.__main__ import main

    write_into(said)
    torch.set_num_threads(1)
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    os.environ.update(SRUN | {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "MASTER_PORT": str(port)} | own)
    if code := main(argv):
        raise SystemExit(code)
    os._exit(0)


@needs_train
@every(3)
def test_a_killed_process_is_started_again_and_the_run_is_the_one_that_was_not_killed(tmp_path, capfd):
    """torchrun starts both processes again, and they go on after the last finished epoch, bit for bit. Then one process goes on."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "grey")
    (tmp_path / "grey" / "dark" / "3.png").write_bytes(b"no image")
    killed, whole = options(tmp_path / "grey", tmp_path / "killed"), options(tmp_path / "grey", tmp_path / "whole")
    file = tmp_path / "said"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fastssl", "fastssl.functional", "fastssl.train.cli", "fastssl.train.loop"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = multiprocessing.start_processes(by_srun, (port, file, whole), 2, join=False, daemon=True, start_method="forkserver")
    heeded = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    how = {"max_restarts": 1, "monitor_interval": 0.1, "start_method": "forkserver", "run_id": uuid.uuid4().hex}
    try:
        elastic_launch(LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", **how), by_torchrun)(file, killed)
        while not both.join(timeout=5):
            pass
    finally:
        for signum, handler in heeded.items():
            signal.signal(signum, handler)
        for process in both.processes:
            process.kill()
    said = file.read_text()
    assert "the processes were started again" in said and "resume: 1 of 4 epochs were finished" in said
    assert said.count("scores of the untrained encoder") == 2 and said.count("trained for 4 epochs") == 2
    assert "1 of 30 files cannot be used and is skipped" in said
    ours, theirs = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("killed", "whole"))
    assert ours["fastssl"] == theirs["fastssl"] and ours["global_step"] == theirs["global_step"] == 12
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())
    assert main([*whole, "--epochs", "5", "--resume"]) == 0
    said, alone = capfd.readouterr(), torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert "warning: an epoch has 6 steps now, in 1 process; the learning rate keeps its peak and goes on" in said.err
    peak, last = theirs["lr_schedulers"][0]["base_lrs"][0], alone["lr_schedulers"][0]["_last_lr"][0]
    assert alone["global_step"] == 18 and abs(last) < 1e-9 * peak

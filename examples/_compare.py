"""What the examples share: their options, the measurement of a training loop, and the comparison of two runs.

    python -m examples.lightly.simclr               the framework alone
    python -m examples.lightly.simclr --fastssl     the same script with fastssl
    python -m examples.lightly.simclr --compare     both, each in a process of its own, and how far they differ

Both runs start from one seed. Their first losses differ by rounding. Later ones may differ by more in float32, since each step of
training makes a difference of roundings larger. ``--float64`` shows that it is rounding: the difference stays near 1e-15.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed

#: Largest relative difference of the first loss in float32, and of every number in float64, that is taken for rounding.
ROUNDING = {"float32": 1e-5, "float64": 1e-9}
#: With these variables the C library gives freed memory back at once, so that a peak is one of tensors that exist.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "2"}


def arguments(page: str, batch: int, steps: int = 5, processes: int = 1, **choices: tuple) -> argparse.Namespace:
    """The options of a script; ends the process after a comparison. Draws the seed and sets the default dtype.

    Args:
        page: the script's docstring, for ``--help``.
        batch: rows of a batch, the default of ``--batch``.
        steps: the default of ``--steps``.
        processes: how many processes ``--compare`` starts for each run.
        choices: options of this script alone, each with its values, of which the first is the default.
    """
    parser = argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastssl", action="store_true", help="train with fastssl in the place of the framework's own code")
    parser.add_argument("--compare", action="store_true", help="run without and with fastssl, and compare the two runs")
    parser.add_argument("--float64", action="store_true", help="train in double precision")
    parser.add_argument("--batch", type=int, default=batch, help="images of a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=steps, help="steps of training (default: %(default)s)")
    parser.add_argument("--save", type=Path, help="a file for the losses, the times and the peak memory")
    for name, values in choices.items():
        default = "(default: %(default)s)"
        parser.add_argument(f"--{name}", choices=values, default=values[0], type=type(values[0]), help=default)
    args = parser.parse_args()
    if args.compare:
        raise SystemExit(compare(sys.modules["__main__"].__spec__.name, sys.argv[1:], processes))
    with contextlib.suppress(ImportError):  # lightly, open_clip and transformers import torchvision, for transforms of images
        from benchmarks.peers import ready_torchvision

        ready_torchvision()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64 if args.float64 else torch.float32)
    args.dtype = torch.get_default_dtype()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


class Run:
    """Collects the losses, the times and the peak memory of a training loop, and prints or saves them at its end.

    with Run(args) as run:
        for images in loader:
            ...
            run.step(loss)
    """

    def __init__(self, args: argparse.Namespace):
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.others: dict[str, float] = {}
        self.peak_mb = 0.0
        self._args, self._last, self._before = args, 0.0, 0.0

    def __enter__(self) -> "Run":
        self._before = _start_of_peak(self._args.device)
        self._last = time.perf_counter()
        return self

    def step(self, loss: torch.Tensor | float) -> None:
        """Notes the loss at the end of a step."""
        self.losses.append(_number(loss))
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def also(self, name: str, value: torch.Tensor | float) -> None:
        """Notes another number that both runs must agree in."""
        self.others[name] = _number(value)

    def __exit__(self, kind, *_) -> None:
        if kind is not None or (distributed.is_initialized() and distributed.get_rank() > 0):
            return
        self.peak_mb = max(0.0, _peak(self._args.device) - self._before)
        if self._args.save:
            self._args.save.write_text(json.dumps(self.result()))
            return
        for number, loss in enumerate(self.losses):
            print(f"step {number}: loss {loss:.7f}, {1e3 * self.seconds[number]:.0f} ms")
        for name, value in self.others.items():
            print(f"{name}: {value:.7f}")
        print(f"peak memory of the loop: {self.peak_mb:.0f} MB above what was there before")

    def result(self) -> dict:
        return {"losses": self.losses, "others": self.others, "seconds": self.seconds, "peak_mb": self.peak_mb}


def _number(value: torch.Tensor | float) -> float:
    return value.detach().item() if isinstance(value, torch.Tensor) else value


def differences(plain: dict, ours: dict) -> list[float]:
    """The relative difference of each loss, then of each other number, of two results of ``Run.result``."""
    pairs = list(zip(plain["losses"], ours["losses"], strict=True))
    pairs += [(plain["others"][name], ours["others"][name]) for name in plain["others"]]
    return [abs(a - b) / max(abs(a), 1e-30) for a, b in pairs]


def compare(module: str, argv: list[str], processes: int) -> int:
    """Runs a script without and with fastssl and prints both. Returns 1 where they differ by more than rounding, else 0."""
    argv = [word for word in argv if word not in ("--compare", "--fastssl")]
    plain, ours = _run_apart(module, argv, processes), _run_apart(module, [*argv, "--fastssl"], processes)
    apart = differences(plain, ours)
    print("step     unchanged       fastssl    relative difference")
    for number, (a, b) in enumerate(zip(plain["losses"], ours["losses"], strict=True)):
        print(f"{number:>4}  {a:12.7f}  {b:12.7f}    {apart[number]:.1e}")
    for name, value in plain["others"].items():
        print(f"{name}: {value:.7f} and {ours['others'][name]:.7f}")
    times = [1e3 * statistics.median(each["seconds"][1:] or each["seconds"]) for each in (plain, ours)]
    print(f"median step: {times[0]:.0f} ms and {times[1]:.0f} ms")
    print(f"peak memory of the loop: {plain['peak_mb']:.0f} MB and {ours['peak_mb']:.0f} MB")
    dtype = "float64" if "--float64" in argv else "float32"
    worst = max(apart) if dtype == "float64" else apart[0]
    where = "of all steps" if dtype == "float64" else "of the first step"
    equal = worst <= ROUNDING[dtype]
    words = "equal to rounding" if equal else f"more than {ROUNDING[dtype]:.0e}, which is not rounding"
    print(f"largest difference: {max(apart):.1e}; {where}: {worst:.1e}, {words}")
    return 0 if equal else 1


def _run_apart(module: str, argv: list[str], processes: int) -> dict:
    """The result of a script in a fresh process, or of its first rank in several."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, *torchrun, "-m", module, *argv, "--save", str(file)]
        subprocess.run(command, env=os.environ | GIVE_BACK, check=True)
        return json.loads(file.read_text())


def _start_of_peak(device: str) -> float:
    """Sets the peak to what is in use, and returns that in MB (1e6 bytes)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # some containers do not allow it: the peak then includes what came before
            Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")
    return 0.0


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _status_mb("VmHWM") if sys.platform == "linux" else 0.0


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6

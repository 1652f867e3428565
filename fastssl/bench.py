"""``fastssl bench``: runs the benchmarks of a source checkout, compares with the peers, prints tables and targets."""

import importlib
import itertools
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ._ending import UsageError, ended
from ._options import Parser, add_config, closest, directory, number, one_of, takes

_ROOT = Path(__file__).resolve().parents[1]


def _benchmarks() -> ModuleType:
    """The ``benchmarks`` package beside ``fastssl``; ImportError with the reason where this is no source checkout."""
    if not (_ROOT / "benchmarks" / "core" / "registry.py").is_file():
        raise ImportError(f"bench: no benchmarks folder beside {_ROOT / 'fastssl'}; run it from a source checkout of fastssl")
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    found = importlib.import_module("benchmarks")
    if Path(found.__file__ or "").resolve().parent != _ROOT / "benchmarks":
        raise ImportError(f"bench: another package named benchmarks hides this checkout's: {found.__file__}")
    return found


def _dtypes(text: str) -> list[str]:
    one = one_of("float32", "float64", "bfloat16", "float16")["type"]
    return [one(name) for name in text.split(",")]


def _workload(*names: str) -> Callable[[str], str]:
    """An argparse type: the name of a workload."""

    @takes(*names)
    def parse(text: str) -> str:
        if text not in names:
            hint = closest(text, names) or f"; known: {', '.join(names)}"
            raise ArgumentTypeError(f"unknown workload '{text}'{hint}")
        return text

    return parse


def _parser(workloads: tuple[str, ...], peers: tuple[str, ...]) -> Parser:
    what = "Runs the benchmarks of a source checkout, compares with the peers, prints tables and targets."
    parser = Parser("fastssl bench", description=what)
    parser.add_argument(
        "workloads",
        nargs="*",
        type=_workload(*workloads),
        metavar="WORKLOAD",
        help=f"what is timed; default: all of {', '.join(workloads)}",
    )
    listed = "print the workloads, their shapes, and the peers with the reason where one is absent"
    parser.add_argument("--list", action="store_true", help=listed)
    parser.add_argument("--shapes", nargs="+", metavar="BxD", help="for example 4096x128; default: the workload's own")
    parser.add_argument("--scale", action="store_true", help="add the workload's very large shapes (minutes each)")
    parser.add_argument("--quick", action="store_true", help="only the workload's small shapes")
    parser.add_argument(
        "--peers", nargs="+", type=one_of(*peers, "none")["type"], metavar="PEER", help=f"of {', '.join(peers)}; or none"
    )
    parser.add_argument("--device", **one_of("cpu", "cuda"), help="default: cuda where there is one")
    dtypes = (
        "as float32,bfloat16: one after the other; default: float32, bfloat16 on cuda. On a CPU, 16 bits have shapes of their own"
    )
    parser.add_argument("--dtype", type=_dtypes, metavar="DTYPE[,DTYPE]", help=dtypes)
    parser.add_argument("--rounds", type=number(int, 1), default=7, help="least number of times that each implementation runs")
    parser.add_argument(
        "--budget", type=number(float, 0, above=True), default=20.0, metavar="SECONDS", help="time for the runs of each case"
    )
    runs = "measure each case so often, one case after the other, and keep the medians; memory in the first run only"
    parser.add_argument("--runs", type=number(int, 1), default=1, help=runs)
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory (a process for each implementation)")
    parser.add_argument("--graphs", action="store_true", help="on cuda: also time replays of CUDA graphs")
    parser.add_argument("--out", type=directory, metavar="DIR", help="write result files and pictures there")
    parser.add_argument("--save", action="store_true", help="write them to benchmarks/results/<device>")
    add_config(parser)
    return parser


def _list(registry: Any, peers: Any) -> None:
    for workload in registry.WORKLOADS.values():
        shapes = ", ".join(map(registry.shape_name, workload.shapes + workload.scale))
        sixteen = ", ".join(map(registry.shape_name, getattr(workload, "sixteen", ())))
        print(f"{workload.name}: {workload.title}\n  {workload.axes}: {shapes}" + (f"; in 16 bits: {sixteen}" if sixteen else ""))
    print("peers:")
    for name in peers.NAMES:
        peer = peers.load(name)
        reason = peer.absent()
        state = f"absent: {reason}" if reason else f"{peer.version()}, {' and '.join(peer.devices)}"
        print(f"  {name:26}{', '.join(peer.forms)}  ({state})")


def _options(args: Namespace, runner: Any, peers: Any) -> list[Any]:
    """How to measure, once for each dtype."""
    import torch

    from ._devices import why_no_gpu

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: cannot be used here: {why_no_gpu()}")
    chosen = peers.NAMES if args.peers is None else tuple(p for p in args.peers if p != "none")
    return [
        runner.Options(
            device=device,
            dtype=getattr(torch, dtype),
            peers=chosen,
            rounds=args.rounds,
            budget_s=args.budget,
            memory=not args.no_memory,
            graphs=args.graphs,
        )
        for dtype in args.dtype or ["bfloat16" if device == "cuda" else "float32"]
    ]


def _shapes(args: Namespace, registry: Any, workload: Any, options: Any) -> tuple:
    if args.shapes:
        return tuple(registry.parse_shape(text, workload) for text in args.shapes)
    usual = workload.quick if args.quick else workload.gpu if options.device == "cuda" else workload.cpu_shapes(options.dtype)
    return usual + (workload.scale if args.scale else ())


def _cases(args: Namespace, registry: Any, workload: Any, dtypes: list[Any]) -> list[tuple[Any, tuple]]:
    """(options, shape) of each case, one dtype after the other; once where a workload is measured in one dtype only."""
    by_dtype = {workload.dtype(options.dtype): options for options in reversed(dtypes)}
    return [(options, shape) for options in reversed(by_dtype.values()) for shape in _shapes(args, registry, workload, options)]


def _write(found: dict, folder: Path, runner: Any, plots: Any) -> None:
    path = runner.save(found, folder)
    print(f"wrote {path}")
    try:
        for picture in plots.draw(runner.read(path), folder):
            print(f"wrote {picture}")
    except ModuleNotFoundError as missing:  # the figures are worth having without pictures
        print(f"pictures left out: {missing}")


def run(args: Namespace) -> int:
    """0, or 1 where our own code failed its accuracy check or did not run."""
    from benchmarks import peers
    from benchmarks.core import machine, registry, runner, runs
    from benchmarks.report import plots
    from benchmarks.report import tables as report

    if args.list:
        _list(registry, peers)
        return 0
    dtypes = _options(args, runner, peers)
    device = dtypes[0].device
    folders = [args.out] if args.out else []
    folders += [report.RESULTS / machine.slug(device)] if args.save else []
    for folder in folders:  # before hours of work
        folder.mkdir(parents=True, exist_ok=True)
    bad = False
    for name in args.workloads or registry.WORKLOADS:
        workload = registry.WORKLOADS[name]
        print(report.machine_line(machine.describe(device)), flush=True)
        cases = _cases(args, registry, workload, dtypes)
        measured: dict[tuple, list[dict]] = {}
        for turn, (options, shape) in itertools.product(range(args.runs), cases):
            so_far = measured.setdefault((options.dtype, shape), [])
            so_far.append(runner.run_case(workload, shape, replace(options, memory=options.memory and turn == 0)))
            found = runner.result(workload, device, [runs.joined(workload, so_far)])
            print("\n" + report.case_table(found, found["cases"][0]) + "\n", flush=True)
            bad |= found["cases"][0]["entries"][0]["status"] != "ok"
            for folder in folders:
                _write(found, folder, runner, plots)
    return int(bad)


def parser() -> Parser:
    """The options of ``fastssl bench``. Raises ImportError where this is no source checkout."""
    _benchmarks()
    from benchmarks import peers
    from benchmarks.core import registry

    return _parser(tuple(registry.WORKLOADS), peers.NAMES)


def main(argv: list[str] | None = None) -> int:
    """``fastssl bench [WORKLOAD ...]``; the exit code is 1 where our own code fails. Raises UsageError for a wrong command."""
    try:
        return run(parser().parse_args_and_file(argv))
    except (ImportError, ValueError) as error:
        raise UsageError(str(error).removeprefix("bench: ")) from error


if __name__ == "__main__":
    sys.exit(ended("bench", main))

"""The command line: ``fastssl train | eval | info | bench``, also as ``python -m fastssl``."""

import os
import sys

USAGE = """usage: fastssl COMMAND ...

  train METHOD   train an encoder (train --help lists the methods)
  eval RUN       weighted kNN, linear probe and pictures of a trained encoder
  info           what is built and what this machine can run
  bench          time the ops on this machine

fastssl COMMAND --help lists the options of a command."""

TRAIN_PACKAGES = (
    "lightning",
    "lightning_utilities",
    "kornia",
    "skimage",
    "sklearn",
    "matplotlib",
    "tensorboard",
    "PIL",
    "torchmetrics",
)


def _train(command: str, argv: list[str]) -> int:
    try:
        from fastssl.train import cli

        return cli.run(command, argv)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAIN_PACKAGES:
            raise
        print(f"fastssl {command}: error: {error.name} is not installed; pip install fastssl[train]", file=sys.stderr)
        return 2


def _with_patient_threads() -> None:
    """Starts this process again with ``OMP_WAIT_POLICY=passive``, which OpenMP reads only when torch loads it.

    By default idle OpenMP threads spin. On cores that other work wants too, a training step then took six times as long.
    """
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "passive"})


def main(argv: list[str] | None = None) -> int:
    """Runs one command -> exit code; 2 for a wrong command or option."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("train", "eval"):
        if argv is None:
            _with_patient_threads()
        return _train(command, rest)
    if command == "info":
        from fastssl.info import main as info

        return info(rest)
    if command == "bench":
        from fastssl.bench import main as bench

        return bench(rest)
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        from fastssl import __version__

        print(__version__)
        return 0
    print(f"fastssl: error: unknown command '{command}'; known: train, eval, info, bench" if command else USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

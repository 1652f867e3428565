"""The command line: ``fastssl train | eval | export | report | compare | info | bench``, also as ``python -m fastssl``."""

import difflib
import sys
from importlib import import_module

from fastssl._ending import UsageError, ended, lines_at_once, patient_restart

USAGE = """usage: fastssl COMMAND ...

  train METHOD   train an encoder (train --help lists the methods)
  eval RUN       weighted kNN, linear probe and pictures of a trained encoder; few labels, fine-tuning, retrieval
  export RUN     write the trained encoder for torch, timm, torchvision, safetensors, Hugging Face or ONNX
  report RUN     report.html of a run, made anew from what is in its folder
  compare RUN... runs side by side: a table, and a plot of their scores against time and epochs
  info           what is built and what this machine can run
  bench          time the ops on this machine

fastssl COMMAND --help lists the options of a command; docs/training.md tells how a run is stopped, resumed and used."""
TRAIN_COMMANDS = {  # the module of fastssl.train and the function in it
    "train": ("cli", "train"),
    "eval": ("cli", "evaluate_run"),
    "export": ("export", "export"),
    "report": ("report_command", "report"),
    "compare": ("compare", "compare"),
}
COMMANDS = (*TRAIN_COMMANDS, "info", "bench")

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
    "tqdm",
    "yaml",
)


def _train(command: str, argv: list[str]) -> int:
    try:
        module, function = TRAIN_COMMANDS[command]
        return getattr(import_module(f"fastssl.train.{module}"), function)(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAIN_PACKAGES:
            raise
        hint = 'in a clone of fastssl: pip install --no-build-isolation ".[train]"'
        raise UsageError(f"{error.name} is not installed; {hint}") from None


def _info(argv: list[str]) -> int:
    from fastssl.info import main

    return main(argv)


def _bench(argv: list[str]) -> int:
    from fastssl.bench import main

    return main(argv)


def _usage(command: str) -> int:
    """What is printed where no command was named."""
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command == "--version":
        from fastssl import __version__

        print(__version__)
        return 0
    if not command:
        print(USAGE, file=sys.stderr)
        return 2
    close = difflib.get_close_matches(command, COMMANDS, 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
    print(f"fastssl: error: unknown command '{command}'; {hint}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Runs one command -> exit code: 0 done, 1 an error, 2 a wrong command or option, 128 and more: stopped by a signal."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if argv is None:
        lines_at_once()
    if command in TRAIN_COMMANDS:
        if argv is None:
            patient_restart()
        return ended(command, lambda: _train(command, rest), resume=command == "train")
    other = {"info": _info, "bench": _bench}.get(command)
    return ended(command, lambda: other(rest) if other else _usage(command))


if __name__ == "__main__":
    sys.exit(main())

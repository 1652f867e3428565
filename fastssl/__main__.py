"""The command line: ``fastssl COMMAND ...``, also as ``python -m fastssl``."""

import sys
from importlib import import_module

from fastssl._ending import UsageError, ended, lines_at_once, patient_restart
from fastssl._options import closest

USAGE = """usage: fastssl COMMAND ...

  train METHOD    train an encoder (train --help lists the methods)
  eval RUN        weighted kNN, linear probe and pictures of a trained encoder;
                  few labels, fine-tuning, retrieval
  export RUN      write the trained encoder for torch, timm, torchvision,
                  safetensors, Hugging Face or ONNX
  report RUN...   report.html of each run, made anew from what is in its folder
  compare RUN...  runs side by side: a table, and a plot of their scores against
                  time and epochs
  runs [FOLDER]   the runs in a folder: what they are, how far they came, scores
  info            what is built and what this machine can run
  bench           time the ops on this machine
  completion SHELL
                  what makes bash, zsh or fish complete commands and options

fastssl COMMAND --help lists the options of a command; docs/training.md tells
how a run is stopped, resumed and used."""
COMMANDS = {  # the module and the function of each
    "train": ("fastssl.train.cli", "train"),
    "eval": ("fastssl.train.cli", "evaluate_run"),
    "export": ("fastssl.train.export", "export"),
    "report": ("fastssl.train.report_command", "report"),
    "compare": ("fastssl.train.compare", "compare"),
    "runs": ("fastssl.train.runs", "runs"),
    "info": ("fastssl.info", "main"),
    "bench": ("fastssl.bench", "main"),
    "completion": ("fastssl.completion", "main"),
}
HEAVY = ("train", "eval", "export", "compare")  # that compute with all cores

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
    "shtab",
)


def _run(command: str, argv: list[str]) -> int:
    module, function = COMMANDS[command]
    try:
        return getattr(import_module(module), function)(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAIN_PACKAGES:
            raise
        hint = 'in a clone of fastssl: pip install --no-build-isolation ".[train]"'
        raise UsageError(f"{error.name} is not installed; {hint}") from None


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
    hint = closest(command, (*COMMANDS, "--help", "--version")) or f"; known: {', '.join(COMMANDS)}"
    print(f"fastssl: error: unknown command '{command}'{hint}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Runs one command -> exit code: 0 done, 1 an error, 2 a wrong command or option, 128 and more: stopped by a signal."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command == "help" and rest and rest[0] in COMMANDS:
        command, *rest = *rest, "--help"
    if argv is None:
        lines_at_once()
        if command in HEAVY:
            patient_restart()
    return ended(command, lambda: _run(command, rest) if command in COMMANDS else _usage(command), resume=command == "train")


if __name__ == "__main__":
    sys.exit(main())

"""The options of ``fastssl train METHOD`` and ``fastssl eval RUN``. A wrong one is named in one line, with the nearest right one.

The options that define a run are the fields of the method's settings (``settings.py``). Here are those that say where and how a
command runs.
"""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fastssl._options import Parser, add_config, add_json, closest, number, one_of, options_of_file, path, takes
from fastssl.train import TrainConfig, UsageError
from fastssl.train.recipes import RECIPES
from fastssl.train.settings import MOST_SEED, Setting, data_name, flag, settings_of

PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # what the evaluation of a run works in too
MOST_WORKERS = 256
NO_STRATEGY = {  # beginnings of names that lightning knows, and why they are refused
    "fsdp": "a method's teacher, queue and scores need whole weights, and FSDP cuts them up",
    "deepspeed": "a method's teacher, queue and scores need whole weights, and DeepSpeed keeps them to itself",
    "spawn": "the history of the run would stay in processes that end with the training",
    "fork": "the history of the run would stay in processes that end with the training",
    "notebook": "it is for notebooks",
}
OF_TASK = {  # of eval, and which of its tasks use it
    "labels": ("few_shot",),
    "draws": ("few_shot",),
    "top": ("retrieve",),
    "labels_per_class": ("fine_tune",),
    "lr": ("fine_tune",),
    "seed": ("few_shot", "fine_tune"),
}
OF_EVAL = ("pixel_range", "knn_k", "knn_t")  # settings of a run that its evaluation may have otherwise


@takes(*RECIPES)
def method_name(text: str) -> str:
    """An argparse type: the name of a method."""
    if text not in RECIPES:
        hint = closest(text, RECIPES) or f"; known: {', '.join(RECIPES)}"
        raise argparse.ArgumentTypeError(f"unknown method '{text}'{hint}")
    return text


def named(what: str) -> Callable[[str], str]:
    """An argparse type: a name of ``what``, which lightning checks later."""

    def parse(text: str) -> str:
        if not text.strip():
            raise argparse.ArgumentTypeError(f"must name {what}, got '{text}'")
        return text

    return parse


def devices(text: str) -> str:
    """A number of devices or a list of them, as lightning takes it."""
    named("devices")(text)
    if text.strip() in ("0", "-0", "+0"):
        raise argparse.ArgumentTypeError(f"must be at least 1, or -1 for all, got {text}; '0,' is the list of the first alone")
    return text


def strategy(text: str) -> str:
    """A strategy of lightning; which of the others there are, lightning checks later."""
    named("a strategy")(text)
    for begin, why in NO_STRATEGY.items():
        if text.startswith(begin) or (text.startswith("ddp_") and begin in text):
            raise argparse.ArgumentTypeError(f"{text} cannot be used: {why}; use ddp")
    return text


@takes(*PRECISIONS)
def precision(text: str) -> str:
    short = next((short for short, long in PRECISIONS.items() if text in (short, long)), None)
    if short is None:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(PRECISIONS)}, got '{text}'{closest(text, PRECISIONS)}")
    return short


def all_settings() -> dict[str, Setting]:
    """A setting of each name that any method has."""
    return {name: setting for recipe in RECIPES.values() for name, setting in settings_of(recipe.settings).items()}


def negatives_of(method: str) -> str:
    """Where the negatives of a method come from when several processes train together."""
    recipe, several = RECIPES[method], "When several processes train together"
    if "negatives" in settings_of(recipe.settings):
        return f"{several}, the negatives of {method} are global: those of all processes. --negatives local takes a process's own."
    if "statistics" in settings_of(recipe.settings):
        return f"{several}, the statistics of the loss are over the rows of all of them. --statistics local takes a process's own."
    if recipe.negatives:
        return f"{several}, the negatives of {method} are global: {recipe.negatives}."
    return f"{several}, the loss of {method} is the mean over the {recipe.unit} of all processes; it has no negatives."


def train_parser(method: str = "simclr") -> Parser:
    """The options that ``method`` takes. Settings default to SUPPRESS: their dataclass has the defaults, and ``--resume`` has to
    know which ones were given."""
    parser, recipe = Parser("fastssl train", description=f"Train an encoder. {negatives_of(method)}"), RECIPES[method]
    kinds = {"photos": "images", "captions": "images with captions", "sentences": "text", "clips": "video", "speech": "sound"}
    groups: dict[str, list[str]] = {kind: [] for kind in kinds.values()}
    for name, each in RECIPES.items():
        groups[kinds[each.settings.data]].append(name)
    listed = "; ".join(f"of {kind}: {', '.join(names)}" for kind, names in groups.items())
    names = f"{listed}. METHOD --help lists the options of that method, --help alone those of simclr"
    parser.add_argument("method", type=method_name, metavar="METHOD", help=names)
    own = settings_of(recipe.settings)
    group = parser.add_argument_group(f"settings of {method}")
    for setting in own.values():
        text = setting.help(recipe.unit, recipe.loss).replace("%", "%%")
        group.add_argument(setting.flag, default=argparse.SUPPRESS, help=text, **setting.how())
    for name in all_settings().keys() - own.keys():
        takers = [other for other, its in RECIPES.items() if name in settings_of(its.settings)]
        parser.instead[flag(name)] = f"only {', '.join(takers)} {'takes' if len(takers) == 1 else 'take'} it"
    _run_options(parser, method)
    parser.instead["--device"] = "no option of train; --accelerator gpu chooses the kind of device, --devices how many"
    return parser


def _method_of(argv: list[str]) -> str | None:
    """Which method the words of a command line name. Only the options' names and whether they take a value matter for that."""
    parser = Parser("fastssl train", add_help=False)
    parser.add_argument("method", type=method_name, nargs="?")
    for setting in all_settings().values():
        parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction if setting.hint is bool else "store")
    _run_options(parser, "simclr")
    return parser.parse_known_args(argv)[0].method


def _run_options(parser: Parser, method: str) -> None:
    """Adds the options that say where and how a run runs. They are not part of what a run is, and no checkpoint holds them."""
    group = parser.add_argument_group("where and how it runs")
    group.add_argument("--out", type=path, default=Path("runs", method), help="directory of the run")
    group.add_argument("--resume", action="store_true", help="go on where the run in --out was left, if there is one")
    dry = "say what would run, where, and about how long, by a few timed steps; write nothing"
    group.add_argument("--dry-run", action="store_true", help=dry)
    group.add_argument("--accelerator", type=named("an accelerator"), default="auto", help="for lightning: auto, cpu, gpu, ...")
    each = "number or list of devices of each machine, whose kind --accelerator chooses, with a process for each; auto: as many as "
    group.add_argument("--devices", type=devices, default="auto", help=f"{each}torchrun or srun has started, else all, of CPUs one")
    machines = "number of machines (default: as many as torchrun or srun has started the command on, else 1)"
    group.add_argument("--num-nodes", type=number(int, 1), default=None, help=machines)
    group.add_argument("--strategy", type=strategy, default="auto", help="how the processes work together: auto or ddp")
    precise = "precision of the training step: 32 bits, or mixed with bf16 or 16"
    group.add_argument("--precision", type=precision, metavar="{32,bf16,16}", default="32", help=precise)
    _common_options(group)


def _common_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options that training and evaluation both take."""
    workers = f"processes that decode images, at most {MOST_WORKERS} (default: 0 for data in memory, else up to 8)"
    parser.add_argument("--workers", type=number(int, 0, most=MOST_WORKERS), default=None, help=workers)
    parser.add_argument("--map", **one_of("tsne", "pca", "none"), default="tsne", help="how the picture of the embeddings is made")
    _file_and_debug(parser)


def _file_and_debug(parser: argparse._ActionsContainer) -> None:
    """Adds the options that every command on runs takes."""
    add_config(parser)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an unexpected error")


def train_options(argv: list[str]) -> dict[str, Any]:
    """The options of ``fastssl train`` by name; of the method's settings only those that were given, in a file too."""
    method, (file, entries) = _method_of(argv), options_of_file(argv)
    there = entries.pop("method", None)
    if method is None and there is not None:
        try:
            method = method_name(str(there))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--config {file}: {error}") from None
        argv = [method, *argv]
    given = vars(train_parser(method or "simclr").parse_args_after(file, entries, argv))
    return {name: value for name, value in given.items() if name != "config"}


def refuse_unused(given: Collection[str], config: TrainConfig) -> None:
    """Raises UsageError for a setting that the command line gives and the run would not use, or not to its end."""
    settings = settings_of(type(config))
    for option, name in ((settings[name].option, name) for name in given if name in settings):
        if option.only_with is not None:
            other, wanted = option.only_with
            if (found := getattr(config, other)) != wanted:
                raise UsageError(f"{flag(name)}: only {flag(other)} {wanted} uses it, and {flag(other)} is {found}")
        if option.unused_at is not None:
            other, value = option.unused_at
            if isinstance(value, str) and getattr(config, other) == (same := getattr(config, value)):
                both = f"{flag(other)} and {flag(value)}, which are both {same:g}"
                raise UsageError(f"{flag(name)}: a run does not use it without a difference between {both}")
            if getattr(config, other) == value:
                raise UsageError(f"{flag(name)}: a run with {flag(other)} {value:g} does not use it")
    if "warmup_epochs" in given and config.warmup_epochs > config.epochs:
        raise UsageError(f"--warmup-epochs {config.warmup_epochs:g}: must be at most the {config.epochs} of --epochs")


def refuse_unused_of_eval(given: argparse.Namespace, method: str) -> None:
    """Raises UsageError for a setting that ``fastssl eval`` was given and a run of ``method`` would not use."""
    for name in OF_EVAL:
        if getattr(given, name) is not None and name not in settings_of(RECIPES[method].settings):
            raise UsageError(f"{flag(name)}: RUN {given.run} is one of {method}, which does not use it")


def refuse_unused_of_tasks(given: argparse.Namespace) -> None:
    """Raises UsageError for an option of a task that ``fastssl eval`` was not asked for."""
    for name, tasks in OF_TASK.items():
        if getattr(given, name) is not None and not any(getattr(given, task) for task in tasks):
            raise UsageError(f"{flag(name)}: is used with {' or '.join(map(flag, tasks))} only")


def refused_setting(config: dict[str, Any]) -> str | None:
    """Which setting of a stored run the method does not take, and why; None where it takes them all."""
    for name, setting in settings_of(RECIPES[config["method"]].settings).items():
        earlier = name == "seed" and config.get(name) in range(2**64)  # earlier versions took larger seeds
        if name in config and not earlier and (why := setting.refusal(config[name])):
            return f"its setting {name} {why}"
    return None


def eval_parser() -> Parser:
    parser = Parser("fastssl eval", description="Evaluate a trained encoder: kNN, linear probe, pictures.")
    parser.add_argument("run", type=path, metavar="RUN", help="run directory or checkpoint file")
    parser.add_argument("--data", type=data_name, help="other data than the run's: photos, digits, or folder:PATH")
    for name in OF_EVAL:
        setting = all_settings()[name]
        parser.add_argument(setting.flag, help=f"{setting.option.help} (default: as in the run)", **setting.how())
    parser.add_argument("--device", default="cpu", help="where the encoder runs, for example cuda")
    _common_options(parser)
    _task_options(parser)
    return parser


def _task_options(parser: argparse.ArgumentParser) -> None:
    """Adds what asks ``fastssl eval`` for downstream tasks."""
    what = "the encoder at work beside the untrained one, in place of scores and map; docs/evaluation.md tells of it"
    group = parser.add_argument_group("downstream tasks", what)
    group.add_argument("--few-shot", action="store_true", help="kNN and linear probe that know a few labels of each class")
    group.add_argument("--labels", type=whole_numbers, help="labels a class of --few-shot, such as 1,5,10,20 (default: those)")
    group.add_argument("--draws", type=number(int, 2), help="times that the labels of --few-shot are drawn (default: 20)")
    group.add_argument(
        "--retrieve", action="store_true", help="training images nearest to test images, as a picture and in numbers"
    )
    group.add_argument("--top", type=number(int, 1), help="nearest images of --retrieve that count and are shown (default: 10)")
    group.add_argument("--fine-tune", type=number(int, 1), metavar="EPOCHS", help="train encoder and linear layer on the labels")
    group.add_argument("--labels-per-class", type=number(int, 1), help="labels a class of --fine-tune (default: all)")
    group.add_argument("--lr", type=number(float, 0, above=True), help="peak learning rate of --fine-tune (default: 0.001)")
    seed = "seed of the drawn labels, and of the training of --fine-tune (default: 0)"
    group.add_argument("--seed", type=number(int, 0, most=MOST_SEED), help=seed)


def whole_numbers(text: str) -> list[int]:
    """An argparse type: whole numbers above 0, separated by commas, in rising order."""
    return sorted({number(int, 1)(part) for part in text.split(",")})


def export_parser() -> Parser:
    parser = Parser(
        "fastssl export", description="Write the trained encoder alone, for another library, and a card that says what it is."
    )
    parser.add_argument("run", type=path, metavar="RUN", help="run directory or checkpoint file")
    what = "the library or format; hf is a folder as Hugging Face's hub has them, for timm and transformers"
    targets = one_of("torch", "timm", "torchvision", "safetensors", "hf", "onnx")
    parser.add_argument("--to", required=True, help=what, **targets)
    parser.add_argument("--out", type=path, help="folder of the files (default: export/TARGET beside the checkpoint)")
    _file_and_debug(parser)
    return parser


def runs_parser() -> Parser:
    parser = Parser("fastssl runs", description="List the runs below a folder: those that are running first, then the newest.")
    parser.add_argument("folder", nargs="?", type=path, default=Path("runs"), metavar="FOLDER", help="where the runs lie")
    parser.add_argument("--sort", **one_of("newest", "name", "score", "size"), default="newest", help="what they are sorted by")
    add_json(parser, "the list, with sizes in bytes and times in seconds,")
    _file_and_debug(parser)
    return parser


def compare_parser() -> Parser:
    parser = Parser("fastssl compare", description="Put runs side by side: a table, and a plot of their scores.")
    runs = "run directories, checkpoint files, or patterns such as 'runs/*'"
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help=runs)
    picture = "the picture (default: compare.png; with --json alone none is drawn)"
    parser.add_argument("--out", type=path, help=picture)
    add_json(parser, "the table, with the scores of all epochs,")
    _file_and_debug(parser)
    return parser


def report_parser() -> Parser:
    about = "Make the report of a run anew, from what is in its folder; of several runs also a page that compares them."
    parser = Parser("fastssl report", description=about)
    runs = "run directories, checkpoint files, or patterns such as 'runs/*'"
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help=runs)
    where = "the page (default: report.html in the run's folder; of several runs: compare.html here)"
    parser.add_argument("--out", type=path, help=where)
    _file_and_debug(parser)
    return parser

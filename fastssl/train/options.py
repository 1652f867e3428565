"""Options of ``fastssl train METHOD`` and ``fastssl eval RUN``. A wrong one is named in one line, with the nearest right one."""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastssl._options import Parser, closest, number, one_of, share
from fastssl.train import Recipe, TrainConfig, UsageError
from fastssl.train.recipes import RECIPES

COMMON = ("method", "data", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "knn_every", "seed")
PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # what the evaluation of a run works in too
MOST_SEED = 2**32 - 1  # torch's generator of the CPU takes no more bits: a larger seed would be the run of a smaller one
MOST_WORKERS = 256
MOST_PIXELS = 8192  # of a side
WITH = (  # an option, and the other one with the value without which a method that has both does not use it
    ("sigma", "corruption", "noise"),
    ("mask_ratio", "corruption", "blocks"),
    ("mask_size", "corruption", "blocks"),
    ("hidden_dim", "head", "mlp"),
)
PIXEL_RANGE = (
    "pixels that become 0 and 1, in folders of files with more than 8 bits; --pixel-range=-1000,3000 where LOW is negative"
)


def method_name(text: str) -> str:
    if text not in RECIPES:
        hint = closest(text, RECIPES) or f"; known: {', '.join(RECIPES)}"
        raise argparse.ArgumentTypeError(f"unknown method '{text}'{hint}")
    return text


def data_name(text: str) -> str:
    if not text.strip().removeprefix("folder:"):
        raise argparse.ArgumentTypeError(f"must name a data set, got '{text}'")
    return text


def pixel_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH, such as 0,4095, got '{text}'") from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH, got '{text}'")
    return low, high


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got '{text}'")
    return Path(text)


def named(what: str) -> Callable[[str], str]:
    """An argparse type: a name of ``what`` that lightning knows, or not."""

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


def precision(text: str) -> str:
    short = next((short for short, long in PRECISIONS.items() if text in (short, long)), None)
    if short is None:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(PRECISIONS)}, got '{text}'{closest(text, PRECISIONS)}")
    return short


def train_parser(method: str | None = "simclr") -> Parser:
    """The options that ``method`` takes, or for None those of all methods. They default to SUPPRESS: recipe and TrainConfig own the
    defaults, and --resume sees which ones were given."""
    parser = Parser("fastssl train", description="Train an encoder.", add_help=method is not None)
    recipe = RECIPES[method or "simclr"]
    run = TrainConfig(**recipe.defaults)

    def option(name: str, help: str, **how) -> None:
        if method is not None and name not in (*COMMON, *recipe.options):
            takers = [other for other, its in RECIPES.items() if name in its.options]
            parser.instead[flag(name)] = f"only {', '.join(takers)} {'takes' if len(takers) == 1 else 'take'} it"
            return
        default = getattr(run, name)
        help = recipe.help.get(name, help)
        shown = help if default is None else f"{help} (default: {default})"
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=shown, **how)

    how = {"help": f"one of {', '.join(RECIPES)}; --help after it shows its own options", "metavar": "METHOD"}
    parser.add_argument("method", type=method_name, **(how if method else {"nargs": "?", "default": "simclr"}))
    _data_options(option, recipe, run)
    _method_options(option, recipe)
    option("knn_every", "epochs between evaluations during training", type=number(int, 1))
    option("knn_k", "neighbours that vote", type=number(int, 1))
    option("knn_t", "temperature of the kNN vote", type=number(float, 0, above=True))
    option("seed", "of initialisation, shuffling and augmentation", type=number(int, 0, most=MOST_SEED))
    _run_options(parser, method)
    parser.instead["--device"] = "no option of train; --accelerator gpu chooses the kind of device, --devices how many"
    return parser


def _data_options(option: Callable[..., None], recipe: Recipe, run: TrainConfig) -> None:
    """What is learned from, with which encoder, and the optimizer."""
    option("data", "photos, digits, or folder:PATH (class subfolders, or flat)", type=data_name)
    option("backbone", "conv, vit, or a timm or torchvision model where installed (also timm:NAME, torchvision:NAME)")
    option(
        "image_size",
        f"side of the views in pixels, at most {MOST_PIXELS} (default: 32; 64 for folders)",
        type=number(int, 8, most=MOST_PIXELS),
    )
    patch = "side in pixels of the patches of --backbone vit (default: from 4 on the smallest that makes at most 16 x 16 patches)"
    option("patch_size", patch, type=number(int, 1))
    option("channels", "bands of a picture that the encoder takes: 3, 1 for grey, or all of a file's", type=number(int, 1))
    option("pixel_range", PIXEL_RANGE, type=pixel_range, metavar="LOW,HIGH")
    option("epochs", f"passes over the training {recipe.unit}", type=number(int, 1))
    batch = f"{recipe.unit} per step and device; without it at most all that train; a rest of an epoch that fills none is left out"
    option("batch_size", batch, type=number(int, 2))
    option("optimizer", "adamw, sgd, or lars in MoCo v3's form", **one_of("adamw", "sgd", "lars"))
    rule = " (default: 0.002 for adamw, 0.1 for sgd, 0.3 for lars, times the images per step / 256)" if run.lr is None else ""
    option("lr", f"peak learning rate{rule}", type=number(float, 0, above=True))
    option("weight_decay", "of matrices and filters", type=number(float, 0))
    option("warmup_epochs", "epochs of linear warm-up before the cosine", type=number(float, 0))


def _method_options(option: Callable[..., None], recipe: Recipe) -> None:
    """What one method takes and others do not."""
    option("temperature", f"of {recipe.loss}", type=number(float, 0, above=True))
    option("hidden_dim", "hidden width of the projection head (default: the encoder's)", type=number(int, 1))
    option("projection_dim", "width of the embeddings that the loss compares", type=number(int, 1))
    option("queue_size", "embeddings in the queue (default: by the data)", type=number(int, 1))
    option("head", "mlp (two layers, v2), or linear (v1)", **one_of("mlp", "linear"))
    option("momentum", "share of the teacher that a step keeps, at first", type=share)
    option("final_momentum", "the share that it keeps at the end, reached along half a cosine", type=share)
    option("bn_splits", "parts of the batch that batch normalisation sees apart; keys are shuffled over them", type=number(int, 1))
    option("symmetric", "contrast both views with the keys of the other", action="store_true")
    option("labels_per_class", "training images a class whose label may be used", type=number(int, 1))
    option("consistency_weight", "of the agreement with the teacher, after its ramp", type=number(float, 0))
    option("pooler", "mean over the tokens, or cls: the first one", **one_of("cls", "mean"))
    option("mask_ratio", "share of the patches that is removed", type=share)
    option("mask_size", "side in pixels of the squares that are removed", type=number(int, 1))
    option("norm_pix_loss", "pixels normalised patch by patch; leaves out the error of removed patches", action="store_true")
    option("decoder_dim", "width of the decoder", type=number(int, 4))
    option("decoder_depth", "blocks of the decoder", type=number(int, 0))
    option("corruption", "blocks: squares are removed; noise: added to the pixels", **one_of("blocks", "noise"))
    option("sigma", "standard deviation of the noise, pixels in [0, 1]", type=number(float, 0, above=True))
    option("min_scale", "smallest share of an image that a crop keeps", type=share)
    option("jitter", "strength of the colour jitter, 0 for none", type=number(float, 0))


def _run_options(parser: Parser, method: str | None) -> None:
    """Where and how a run runs; not part of what it is."""
    parser.add_argument("--out", type=path, default=Path("runs", method or "simclr"), help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out was left, if there is one")
    parser.add_argument(
        "--accelerator", type=named("an accelerator"), default="auto", help="passed to lightning: auto, cpu, gpu, ..."
    )
    parser.add_argument(
        "--devices",
        type=devices,
        default="auto",
        help="passed to lightning: number or list of devices (--accelerator chooses their kind)",
    )
    ddp = "passed to lightning, for example ddp; each process contrasts with its own images only (and moco with a queue of all)"
    parser.add_argument("--strategy", type=named("a strategy"), default="auto", help=ddp)
    precise = "of the training step: 32, or mixed with bf16 or 16"
    parser.add_argument("--precision", type=precision, metavar="{32,bf16,16}", default="32", help=precise)
    _common_options(parser)


def _common_options(parser: Parser) -> None:
    workers = f"processes that decode images, at most {MOST_WORKERS}; 0 in memory, else up to 8"
    parser.add_argument("--workers", type=number(int, 0, most=MOST_WORKERS), default=None, help=workers)
    parser.add_argument("--map", **one_of("tsne", "pca", "none"), default="tsne", help="picture of the test embeddings")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an unexpected error")


def train_options(argv: list[str]) -> dict[str, Any]:
    """The options of ``fastssl train`` by name; of the settings in TrainConfig only those that were given."""
    method = train_parser(None).parse_known_args(argv)[0].method
    return vars(train_parser(method).parse_args(argv))


def refuse_unused(given: Iterable[str], config: TrainConfig) -> None:
    """UsageError for a setting that the command line gives and the run would not use."""
    for name, other, value in WITH:
        if name in given and other in RECIPES[config.method].options and getattr(config, other) != value:
            raise UsageError(f"{flag(name)}: only {flag(other)} {value} uses it, and {flag(other)} is {getattr(config, other)}")


def refuse_unused_of_eval(given: argparse.Namespace, method: str) -> None:
    """The same of ``fastssl eval``, for a run of ``method``."""
    for name in ("knn_k", "knn_t", "pixel_range"):
        if getattr(given, name) is not None and name not in RECIPES[method].options:
            raise UsageError(f"{flag(name)}: RUN {given.run} is one of {method}, which does not use it")


def refused_setting(config: dict[str, Any]) -> str | None:
    """Which setting of a stored run the command line would refuse, and why; None where it takes them all."""
    for action in train_parser(config["method"])._actions:
        value = config.get(action.dest)
        if value is None or action.type is None or (action.dest == "seed" and value in range(2**64)):  # earlier versions took more
            continue
        try:
            action.type(",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        except argparse.ArgumentTypeError as error:
            return f"its setting {action.dest} {error}"
    return None


def eval_parser() -> Parser:
    parser = Parser("fastssl eval", description="Evaluate a trained encoder: kNN, linear probe, pictures.")
    parser.add_argument("run", type=path, metavar="RUN", help="run directory or checkpoint file")
    parser.add_argument("--data", type=data_name, help="other data than the run's: photos, digits, or folder:PATH")
    parser.add_argument("--pixel-range", type=pixel_range, metavar="LOW,HIGH", help="of other data than the run's; " + PIXEL_RANGE)
    parser.add_argument("--knn-k", type=number(int, 1), default=None, help="neighbours that vote; by default the run's")
    temperature = "temperature of the vote; by default the run's"
    parser.add_argument("--knn-t", type=number(float, 0, above=True), default=None, help=temperature)
    parser.add_argument("--device", default="cpu", help="where the encoder runs, for example cuda")
    _common_options(parser)
    return parser

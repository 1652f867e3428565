"""``fastssl train METHOD`` and ``fastssl eval RUN``. A wrong option ends with one line that names it, and exit code 2."""

import argparse
import math
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

from fastssl.train import TrainConfig, UsageError, warn
from fastssl.train.recipes import RECIPES

COMMON = ("method", "data", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "knn_every", "seed")
PIXEL_RANGE = (
    "pixels that become 0 and 1, in folders of files with more than 8 bits; --pixel-range=-1000,3000 where LOW is negative"
)
FREE_ON_RESUME = ("epochs", "knn_every", "knn_k", "knn_t")  # the other settings of a run stay as they were
OWN_FILES = ("last.ckpt", "previous.ckpt", "curves.png", "map.png", "reconstruction.png", "csv", "tensorboard")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before an error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def number(kind: type, low: float, *, above: bool = False):
    """An argparse type: a finite number of at least ``low``, or above it."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {'a whole' if kind is int else 'a'} number, got '{text}'") from None
        if not (value > low if above else value >= low) or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {low:g}, got {text}")
        return value

    return parse


def share(text: str) -> float:
    value = number(float, 0.0, above=True)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be at most 1, got {text}")
    return value


def pixel_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH, such as 0,4095, got '{text}'") from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH, got '{text}'")
    return low, high


def train_parser(method: str = "simclr") -> Parser:
    """The options that ``method`` takes. They default to SUPPRESS: recipe and TrainConfig own the defaults, and --resume sees
    which ones were given."""
    parser = Parser("fastssl train", description="Train an encoder.", formatter_class=Help)
    recipe = RECIPES[method]
    run = TrainConfig(**recipe.defaults)

    def option(name: str, help: str, **how) -> None:
        if name not in (*COMMON, *recipe.options):
            return
        default = getattr(run, name)
        help = recipe.help.get(name, help)
        shown = help if default is None else f"{help} (default: {default})"
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=shown, **how)

    parser.add_argument("method", choices=tuple(RECIPES), help="training method; --help after it shows its own options")
    option("data", "photos, digits, or folder:PATH (class subfolders, or flat)")
    option("backbone", "conv, vit, or a timm or torchvision model where installed (also timm:NAME, torchvision:NAME)")
    option("image_size", "side of the views in pixels (default: 32; 64 for folders)", type=number(int, 8))
    option("channels", "bands of a picture that the encoder takes: 3, 1 for grey, or all of a file's", type=number(int, 1))
    option("pixel_range", PIXEL_RANGE, type=pixel_range, metavar="LOW,HIGH")
    option("epochs", f"passes over the training {recipe.unit}", type=number(int, 1))
    option("batch_size", f"{recipe.unit} per step and device", type=number(int, 2))
    option("optimizer", "adamw, sgd, or lars in MoCo v3's form", choices=("adamw", "sgd", "lars"))
    option(
        "lr", "peak learning rate (default: 0.002 adamw, 0.1 sgd, times images per step / 256)", type=number(float, 0, above=True)
    )
    option("weight_decay", "of matrices and filters", type=number(float, 0))
    option("warmup_epochs", "epochs of linear warm-up before the cosine", type=number(float, 0))
    option("temperature", f"of {recipe.loss}", type=number(float, 0, above=True))
    option("hidden_dim", "hidden width of the projection head (default: the encoder's)", type=number(int, 1))
    option("projection_dim", "width of the embeddings that the loss compares", type=number(int, 1))
    option("queue_size", "embeddings in the queue (default: by the data)", type=number(int, 1))
    option("head", "mlp (two layers, v2), or linear (v1)", choices=("mlp", "linear"))
    option("momentum", "share of the teacher that a step keeps, at first", type=share)
    option("final_momentum", "the share that it keeps at the end, reached along half a cosine", type=share)
    option("bn_splits", "parts of the batch that batch normalisation sees apart; keys are shuffled over them", type=number(int, 1))
    option("symmetric", "contrast both views with the keys of the other", action="store_true")
    option("labels_per_class", "training images a class whose label may be used", type=number(int, 1))
    option("consistency_weight", "of the agreement with the teacher, after its ramp", type=number(float, 0))
    option("pooler", "mean over the tokens, or cls: the first one", choices=("cls", "mean"))
    option("mask_ratio", "share of the patches that is removed", type=share)
    option("mask_size", "side in pixels of the squares that are removed", type=number(int, 1))
    option("norm_pix_loss", "pixels normalised patch by patch; leaves out the error of removed patches", action="store_true")
    option("decoder_dim", "width of the decoder", type=number(int, 4))
    option("decoder_depth", "blocks of the decoder", type=number(int, 0))
    option("corruption", "blocks: squares are removed; noise: added to the pixels", choices=("blocks", "noise"))
    option("sigma", "standard deviation of the noise, pixels in [0, 1]", type=number(float, 0, above=True))
    option("min_scale", "smallest share of an image that a crop keeps", type=share)
    option("jitter", "strength of the colour jitter, 0 for none", type=number(float, 0))
    option("knn_every", "epochs between evaluations during training", type=number(int, 1))
    option("knn_k", "neighbours that vote", type=number(int, 1))
    option("knn_t", "temperature of the kNN vote", type=number(float, 0, above=True))
    option("seed", "of initialisation, shuffling and augmentation", type=number(int, 0))
    parser.add_argument("--out", type=Path, default=Path("runs", method), help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch in --out, if there is one")
    parser.add_argument("--accelerator", default="auto", help="passed to lightning: auto, cpu, gpu, ...")
    parser.add_argument("--devices", default="auto", help="passed to lightning: number or list of devices")
    ddp = "passed to lightning, for example ddp; each process contrasts with its own images only (and moco with a queue of all)"
    parser.add_argument("--strategy", default="auto", help=ddp)
    parser.add_argument("--precision", default="32", help="passed to lightning: 32, bf16 or 16 (mixed), ...")
    parser.add_argument(
        "--workers", type=number(int, 0), default=None, help="processes that decode images; 0 in memory, else up to 8"
    )
    parser.add_argument("--map", choices=("tsne", "pca", "none"), default="tsne", help="picture of the test embeddings")
    return parser


def eval_parser() -> Parser:
    parser = Parser("fastssl eval", description="Evaluate a trained encoder: kNN, linear probe, pictures.", formatter_class=Help)
    parser.add_argument("run", type=Path, help="run directory or checkpoint file")
    parser.add_argument("--data", help="other data than the run's: photos, digits, or folder:PATH")
    parser.add_argument("--pixel-range", type=pixel_range, metavar="LOW,HIGH", help="of other data than the run's; " + PIXEL_RANGE)
    parser.add_argument("--knn-k", type=number(int, 1), default=None, help="neighbours that vote; by default the run's")
    parser.add_argument(
        "--knn-t", type=number(float, 0, above=True), default=None, help="temperature of the vote; by default the run's"
    )
    parser.add_argument("--device", default="cpu", help="where the encoder runs, for example cuda")
    parser.add_argument("--workers", type=number(int, 0), default=None, help="processes that decode images")
    parser.add_argument("--map", choices=("tsne", "pca", "none"), default="tsne", help="picture of the test embeddings")
    return parser


def loader_workers(given: int | None, data_spec: str) -> int:
    if given is not None:
        return given
    return min(8, os.cpu_count() or 1) if data_spec.startswith("folder:") else 0


def resumed_config(given: dict, stored: TrainConfig) -> TrainConfig:
    """The stored run's settings; an option that would change what the run is, is refused."""
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != getattr(stored, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} {value}: the run to resume has {getattr(stored, name)}; leave {option} out, or start without --resume"
            )
    return replace(stored, **{name: value for name, value in given.items() if name in FREE_ON_RESUME})


def set_earlier_run_aside(out: Path) -> None:
    """Moves the files of an earlier run to ``out/earlier-N``: nothing that was trained is lost to a forgotten --resume."""
    own = [out / name for name in OWN_FILES if (out / name).exists()]
    if not own:
        return
    aside = next(path for n in range(1, 10_000) if not (path := out / f"earlier-{n}").exists())
    aside.mkdir()
    for path in own:
        path.rename(aside / path.name)
    print(f"{out} held a run: moved to {aside} (--resume would have continued it)")


def report_corrupt(data) -> None:
    from fastssl.train.data import reading_warnings

    for line in reading_warnings(data):
        warn(line)


def print_scores(scores: dict[str, float], untrained: dict[str, float], config: TrainConfig) -> None:
    """The recipe's scores of the trained method, and those of the untrained one where they are known."""
    recipe = RECIPES[config.method]
    print(f"  {recipe.heading:<28}{'untrained' if untrained else '':>10}{'trained':>10}")
    rows = {name: (label, ".3f") for name, (_, label) in recipe.scores.items()}
    rows |= {name: (label, form) for name, (_, label, form) in recipe.watch.items()}
    for name, (label, form) in rows.items():
        if name in scores:
            before = f"{untrained[name]:{form}}" if name in untrained else ""
            print(f"  {label.format(config=config):<28}{before:>10}{scores[name]:>10{form}}")


def evaluate(method, data, config: TrainConfig, *, device, workers: int, pictures: Path, kind: str, history: list[dict]) -> None:
    """Prints the scores beside those of the untrained encoder, draws the pictures, prints their paths."""
    from fastssl.train.loop import build_method
    from fastssl.train.pictures import draw_curves, draw_map

    method.to(device)
    recipe, where = RECIPES[config.method], {"device": device, "workers": workers}
    scores = recipe.monitor(method, data, config, **where, most=None, full=True)
    points = recipe.points(method, data, **where) if kind != "none" else None
    report_corrupt(data)
    first, (short, _) = next(iter(recipe.scores.items()))
    if scores:
        untrained = history[0] if history and history[0]["epoch"] == 0 else {}
        print_scores(scores, untrained, config)
    if first not in scores:
        print(f"  {recipe.unscored}")
    drawn = []
    if any(row["loss"] is not None for row in history):
        drawn.append(pictures / "curves.png")
        draw_curves(history, drawn[-1], loss=recipe.loss, score=first, title=f"{short} {recipe.heading}")
    if recipe.draw is not None:
        drawn.append(recipe.draw(method, data, pictures, device=device))
    if points is not None and len(points[1]) > 2:
        features, labels, class_names = points
        before, *_ = recipe.points(build_method(config, data).to(device), data, **where)
        how = "t-SNE" if kind == "tsne" else "principal components"
        drawn.append(pictures / "map.png")
        panels = {f"untrained encoder ({how})": before, f"trained by {config.method}": features}
        draw_map(panels, labels, class_names, drawn[-1], kind=kind)
    if drawn:
        print(f"  pictures    {'  '.join(map(str, drawn))}")


def fit(method, config: TrainConfig, data, found, given: dict, workers: int):
    """Trains up to ``config.epochs`` -> the Lightning module, or None in a process that is not the first."""
    from fastssl.train.loop import MethodModule, make_trainer, quiet_lightning

    quiet_lightning()
    module = MethodModule(method, config, data, workers)
    names = ("accelerator", "devices", "strategy", "precision")
    try:
        trainer = make_trainer(config, given["out"], **{name: given[name] for name in names}, bar=sys.stderr.isatty())
    except Exception as error:  # lightning refuses bad combinations with a dozen exception types
        raise UsageError(f"--{', --'.join(names)}: {str(error).splitlines()[0]}") from None
    trainer.fit(module, ckpt_path=found[0] if found else None, weights_only=True)
    return module if trainer.is_global_zero else None


def announce(config: TrainConfig, data, given: dict, found, done: int) -> None:
    print(f"{config.method}, {config.backbone}, on {data.name}: {data.summary()}")
    if getattr(data, "channels", 3) != 3 and "jitter" in RECIPES[config.method].options and config.jitter > 0:
        print("jitter of brightness and contrast only: saturation, hue and grey views need 3 channels")
    if given["resume"] and found:
        end = "; only evaluating" if done >= config.epochs else ""
        print(f"resume: {done} of {config.epochs} epochs were finished in {found[0]}{end}")
    elif given["resume"]:
        print(f"resume: no finished epoch in {given['out']}, starting from the beginning")


def train(argv: list[str]) -> int:
    """Trains, or resumes, and evaluates; only the first process of a DDP run evaluates and prints."""
    named = next((argument for argument in argv if argument in RECIPES), "simclr")
    given = vars(train_parser(named).parse_args(argv))
    settings = {field.name: given.pop(field.name) for field in fields(TrainConfig) if field.name in given}
    from fastssl.train.loop import build_method, config_of, find_checkpoint, restore_method

    out, first = given["out"], os.environ.get("LOCAL_RANK", "0") == "0"
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, not a directory")
    found = find_checkpoint(out) if given["resume"] and out.is_dir() else None
    recipe = RECIPES[settings["method"]]
    config = resumed_config(settings, config_of(found[1])) if found else TrainConfig(**{**recipe.defaults, **settings})
    data = recipe.load(config)
    if len(data.train) < config.batch_size:
        raise UsageError(f"--batch-size {config.batch_size}: {config.data} has only {len(data.train)} training {recipe.unit}")
    method = build_method(config, data)
    done = found[1]["fastssl"]["history"][-1]["epoch"] if found else 0
    workers = loader_workers(given["workers"], config.data)
    if first:
        if not given["resume"]:
            set_earlier_run_aside(out)
        announce(config, data, given, found, done)
    started = time.perf_counter()
    if done >= config.epochs:
        history, device = found[1]["fastssl"]["history"], "cpu"
        method = restore_method(found[1], data)
        print(f"\ntrained for {done} epochs")
    else:
        module = fit(method, config, data, found, given, workers)
        if module is None:
            return 0
        history, device = module.history, module.device
        minutes, seconds = divmod(round(time.perf_counter() - started), 60)
        part = f", the last {config.epochs - done}" if done else ""
        print(f"\ntrained for {config.epochs} epochs{part} in {minutes} min {seconds:02d} s")
    evaluate(method, data, config, device=device, workers=workers, pictures=out, kind=given["map"], history=history)
    print(f"  checkpoint  {found[0] if done >= config.epochs else out / 'last.ckpt'}")
    return 0


def evaluate_run(argv: list[str]) -> int:
    """Evaluates a run directory or a checkpoint file; the pictures go beside the checkpoint."""
    given = eval_parser().parse_args(argv)
    from fastssl.train.loop import config_of, find_checkpoint, restore_method

    found = find_checkpoint(given.run)
    if found is None:
        raise UsageError(
            f"RUN {given.run}: " + ("no complete checkpoint there" if given.run.exists() else "no such file or directory")
        )
    path, checkpoint = found
    stored = config_of(checkpoint)
    config = replace(stored, knn_k=given.knn_k or stored.knn_k, knn_t=given.knn_t or stored.knn_t)
    spec = given.data or config.data
    scale = given.pixel_range or (config.pixel_range if spec.startswith("folder:") else None)
    data = RECIPES[stored.method].load(
        replace(config, data=spec, image_size=checkpoint["fastssl"]["image_size"], pixel_range=scale)
    )
    method = restore_method(checkpoint, data)
    history = checkpoint["fastssl"]["history"] if data.name == stored.data else []
    workers = loader_workers(given.workers, data.name)
    try:
        method.to(given.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {given.device}: {str(error).splitlines()[0]}") from None
    print(f"{path}: {stored.method}, {stored.backbone}, on {data.name}: {data.summary()}")
    evaluate(method, data, config, device=given.device, workers=workers, pictures=path.parent, kind=given.map, history=history)
    return 0


def run(command: str, argv: list[str]) -> int:
    """``train`` or ``eval`` -> exit code."""
    try:
        return {"train": train, "eval": evaluate_run}[command](argv)
    except UsageError as error:
        print(f"fastssl {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastssl {command}: stopped; add --resume to go on after the last finished epoch", file=sys.stderr)
        return 130

"""The card of an exported encoder, README.md in the form of Hugging Face's hub: what it is, how it was trained, how it loads."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastssl._ending import visible
from fastssl.train import TrainConfig
from fastssl.train.checkpoints import fine_tuning_of
from fastssl.train.encoders import LoadedRun, RunEncoder
from fastssl.train.makers import Maker
from fastssl.train.recipes import RECIPES
from fastssl.train.scores import Table, read_scores, scores_of, shown
from fastssl.train.settings import settings_of
from fastssl.train.targets import Target

CARD = "README.md"
MARK = "<!-- Written by fastssl export, which replaces it. -->"
SHARED = ("knn", "probe")  # scores that are accuracies of the classes of images


def shown_data(spec: str) -> str:
    """The data of a run without the place where a folder lies, which is nobody else's business."""
    return f"folder:{spec.rstrip('/').rpartition('/')[2]}" if spec.startswith("folder:") else spec


def command_of(config: TrainConfig) -> str:
    """The command line of a run: the settings that are not the defaults of its method."""
    words = ["fastssl", "train", config.method]
    for setting in settings_of(type(config)).values():
        value = getattr(config, setting.name)
        if value == setting.default and setting.name != "data":
            continue
        if isinstance(value, bool):
            words.append(setting.flag)
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = shown_data(text) if setting.name == "data" else text
        words += [f"{setting.flag}={text}"] if text.startswith("-") else [setting.flag, text]
    return shlex.join(words)


def metadata_of(run: LoadedRun) -> dict[str, str]:
    """What a file of weights says of itself, in the formats that have room for it."""
    encoder = run.encoder
    values: dict[str, Any] = {"method": encoder.method, "backbone": encoder.backbone_name, "role": encoder.role}
    values |= {"image_size": encoder.image_size, "channels": encoder.channels, "mean": encoder.mean, "std": encoder.std}
    values |= {"num_features": encoder.num_features, "data": shown_data(run.config.data), "fastssl": version_of("fastssl")}
    return {name: str(value) for name, value in values.items()}


def version_of(package: str) -> str:
    if package == "fastssl":
        from fastssl._version import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def card(run: LoadedRun, target: Target, maker: Maker) -> str:
    """The text of the card."""
    encoder, config = run.encoder, run.config
    scores = scores_of(run.checkpoint, run.path.name, read_scores(run.path.parent).tables)
    tuned = fine_tuning_of(run.checkpoint)
    title = f"{encoder.backbone_name}, trained by {encoder.method} on {shown_data(config.data)}" + (f", {tuned}" if tuned else "")
    parts = [front_matter(run, target, scores), f"# {title}", MARK, what_it_is(run), "## Use", use(encoder, target, maker)]
    parts += ["## Training", f"```bash\n{command_of(config)}\n```", training(run)]
    if scores is not None:
        forms = zip(scores.rows, scores.forms, strict=True)
        rows = [f"| {' | '.join([visible(label), *(shown(value, form) for value in values)])} |" for (label, values), form in forms]
        table = [f"| Score | {' | '.join(map(visible, scores.columns))} |", "|---" * (1 + len(scores.columns)) + "|", *rows]
        what = f"Of the frozen encoder, {RECIPES[config.method].heading}, after epoch {scores.epoch}."
        parts += ["## Scores", what, "\n".join(table)]
    packages = ("fastssl", "torch", *target.packages)
    parts += ["## Versions", "Written by " + ", ".join(f"{name} {version_of(name)}" for name in packages) + "."]
    return "\n\n".join(parts) + "\n"


def front_matter(run: LoadedRun, target: Target, scores: Table | None) -> str:
    """The header that the hub reads. Strings are in JSON's notation, which YAML takes."""
    name, data = f"{run.encoder.backbone_name}-{run.encoder.method}", shown_data(run.config.data)
    tags = ["fastssl", "self-supervised-learning", "image-feature-extraction", run.encoder.method]
    lines = ["---", f"library_name: {target.tag}", "pipeline_tag: image-feature-extraction", f"tags: {json.dumps(tags)}"]
    found = () if scores is None else zip(scores.names, scores.rows, strict=True)
    accuracies = [(label, values[-1]) for name, (label, values) in found if name in SHARED and isinstance(values[-1], float)]
    if accuracies:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        lines += ["  - task: {type: image-classification}", f"    dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}}}"]
        lines += ["    metrics:"]
        lines += [f"    - {{type: accuracy, name: {json.dumps(label)}, value: {after:.4f}}}" for label, after in accuracies]
    return "\n".join([*lines, "---"])


def what_it_is(run: LoadedRun) -> str:
    """A sentence on the encoder, and one on what it takes."""
    encoder = run.encoder
    role = "" if encoder.role == "encoder" else f" It is the {encoder.role}, the half that `fastssl eval` scores."
    scale = "They are not normalised further."
    if (encoder.mean, encoder.std) != (0.0, 1.0):
        scale = f"The network takes `(pixel - {encoder.mean:g}) / {encoder.std:g}` of them."
    size = f"{encoder.image_size} x {encoder.image_size} pixels and {encoder.channels} channel{'s' if encoder.channels > 1 else ''}"
    return (
        f"An image encoder: images of {size} become "
        f"{encoder.num_features} features.{role} Pixels go from 0 to 1. {scale} `fastssl eval` scales the shorter side of a "
        f"picture to {round(1.25 * encoder.image_size)} pixels and takes the centre."
    )


def use(encoder: RunEncoder, target: Target, maker: Maker) -> str:
    """The example that loads the files in the folder of the card."""
    imports = sorted({"import torch", *target.imports(maker)}, key=lambda line: (line.startswith("from"), line))
    size = encoder.image_size
    images = f"images = torch.rand(4, {encoder.channels}, {size}, {size})  # pixels from 0 to 1"
    lines = [*imports, "", images, *target.code(encoder, maker), f"# features: (4, {encoder.num_features})"]
    return "```python\n" + "\n".join(lines) + "\n```"


def training(run: LoadedRun) -> str:
    """A line on the data and the length of the training."""
    own, config, recipe = run.checkpoint["fastssl"], run.config, RECIPES[run.config.method]
    stored = own.get("data")
    train = stored.get("train") if isinstance(stored, dict) else None
    count = f", {train.get('count')} training {recipe.unit}" if isinstance(train, dict) else ""
    epochs = own["history"][-1]["epoch"]
    return visible(
        f"Loss: {recipe.loss}. Data: {shown_data(config.data)}{count}. Epochs: {epochs} of {config.epochs}. Seed: {config.seed}."
    )

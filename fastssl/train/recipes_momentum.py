"""Recipes of the methods with a teacher (MoCo, MoCo v3, BYOL, mean teacher) and of SimSiam, which needs none."""

from dataclasses import replace

from torch import Tensor, nn

from fastssl.methods import BYOL, MeanTeacher, MoCo, MoCoV3, SimSiam
from fastssl.train import Recipe, TrainConfig, UsageError
from fastssl.train.recipes_image import HEADS, SIMCLR, VIEWS, backbone, heads, image_scores, load_labelled

SCHEDULE = ("momentum", "final_momentum")


def total_steps(config: TrainConfig, data) -> int:
    """Steps of the optimizer in one process; the loop corrects it for several."""
    return config.epochs * max(1, len(data.train) // config.batch_size)


def schedule(config: TrainConfig, data) -> dict:
    return {name: getattr(config, name) for name in SCHEDULE} | {"total_steps": total_steps(config, data)}


def widths(config: TrainConfig) -> dict:
    return {"hidden_dim": config.hidden_dim, "projection_dim": config.projection_dim}


def moco(config: TrainConfig, data) -> nn.Module:
    """A queue of half the training images, as NNCLR's: few keys are another view of the query's own image."""
    if config.batch_size < 2 * config.bn_splits:
        raise UsageError(f"--bn-splits {config.bn_splits}: needs --batch-size {2 * config.bn_splits} at least")
    size = config.queue_size or min(65536, max(1, len(data.train) // 2))
    options = {"bn_splits": config.bn_splits, "symmetric": config.symmetric, "momentum": config.momentum}
    return MoCo(backbone(config, data), mlp=config.head == "mlp", queue_size=size, **options, **heads(config))


def moco_arguments(module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two views. A batch that damaged files cut short is seen in fewer parts, so that each has two images."""
    module.method.bn_splits = min(module.config.bn_splits, len(batch[0]) // 2)
    return module.views(batch[0])


def load_few_labels(config: TrainConfig):
    """Images of which ``labels_per_class`` of each class have a label in training; evaluation has them all."""
    from fastssl.train.data import FewLabels

    data = load_labelled(config)
    return replace(data, train=FewLabels(data.train, config.labels_per_class, config.seed))


def mean_teacher(config: TrainConfig, data) -> nn.Module:
    options = schedule(config, data) | {"consistency_weight": config.consistency_weight}
    return MeanTeacher(backbone(config, data), len(data.class_names), **options)


def classifier_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    """``image_scores`` with all labels, and the accuracy of the teacher's classifier on test images of the data it knows."""
    from fastssl.train.evaluate import embed

    how = {"device": device, "workers": workers}
    scores = image_scores(method, replace(data, train=data.train.whole), config, **how, most=most, full=full)
    logits, labels = embed(method.teacher, data.test, data.image_size, **how)
    if data.name != config.data or not len(labels):
        return scores
    return scores | {"accuracy": (logits.argmax(1) == labels).float().mean().item()}


def views_and_labels(module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return *module.views(batch[0]), batch[1]


MOCO = replace(
    SIMCLR,
    build=moco,
    arguments=moco_arguments,
    options=(*VIEWS, *HEADS, "head", "queue_size", "momentum", "bn_splits", "symmetric"),
    defaults={"temperature": 0.2},
    help={"momentum": "share of the teacher that a step keeps"},
    loss="MoCo",
)
MOCO_V3 = replace(
    SIMCLR,
    build=lambda config, data: MoCoV3(backbone(config, data), **heads(config), **schedule(config, data)),
    options=(*VIEWS, *HEADS, *SCHEDULE),
    defaults={"temperature": 0.2},
    loss="MoCo v3",
)
BYOL_ = replace(
    SIMCLR,
    build=lambda config, data: BYOL(backbone(config, data), **widths(config), **schedule(config, data)),
    options=(*VIEWS, "hidden_dim", "projection_dim", *SCHEDULE),
    loss="BYOL",
)
SIMSIAM = replace(
    SIMCLR,
    build=lambda config, data: SimSiam(backbone(config, data), **widths(config)),
    options=(*VIEWS, "hidden_dim", "projection_dim"),
    loss="negative cosine",
)
MEAN_TEACHER = replace(
    SIMCLR,
    load=load_few_labels,
    build=mean_teacher,
    arguments=views_and_labels,
    monitor=classifier_scores,
    scores={**SIMCLR.scores, "accuracy": ("accuracy", "teacher's classifier")},
    options=(*VIEWS, *SCHEDULE, "labels_per_class", "consistency_weight"),
    defaults={"final_momentum": 0.999},
    loss="mean teacher",
)

MOMENTUM_RECIPES: dict[str, Recipe] = {
    "moco": MOCO,
    "moco_v3": MOCO_V3,
    "byol": BYOL_,
    "simsiam": SIMSIAM,
    "mean_teacher": MEAN_TEACHER,
}

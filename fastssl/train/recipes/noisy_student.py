"""How ``fastssl train noisy_student`` runs noisy student: the training is cut into rounds, and each but the first one begins with
pseudo-labels of all training images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, distributed

from fastssl.methods import NoisyStudent
from fastssl.train import UsageError
from fastssl.train.recipes._few_labels import FewLabelSettings, few_label_recipe, load_few_labels
from fastssl.train.recipes._images import backbone
from fastssl.train.recipes._options import Threshold
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class NoisyStudentSettings(FewLabelSettings):
    method: str = "noisy_student"
    rounds: Annotated[
        int | None,
        Option(
            "parts of equal length of the training, of which the first one has the labels alone",
            least=2,
            default=f"{ROUNDS}, or as many as there are epochs",
        ),
    ] = None
    dropout: Annotated[float, Option("share of the features that a step sets to 0", least=0, most=0.99)] = 0.5
    threshold: Threshold = 0.3
    unlabelled_weight: Annotated[float, Option("weight of the pseudo-labels", least=0)] = 1.0


def load(config: NoisyStudentSettings) -> "ImageData":
    data = load_few_labels(config)
    data.train.gives_index = True
    return data


def build(config: NoisyStudentSettings, data: "ImageData") -> NoisyStudent:
    return NoisyStudent(
        backbone(config, data),
        len(data.class_names),
        len(data.train),
        dropout=config.dropout,
        threshold=config.threshold,
        unlabelled_weight=config.unlabelled_weight,
    )


def refuse_rounds(config: NoisyStudentSettings, data: "ImageData") -> None:
    """Raises UsageError for more rounds than epochs: a round begins with an epoch."""
    if (config.rounds or 0) > config.epochs:
        wanted = f"at most the {config.epochs} of --epochs, since a round begins with an epoch"
        raise UsageError(f"--rounds {config.rounds}: must be {wanted}")


def view_labels_index(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """One view of each image, its label, and which sample it is."""
    return module.views.one(batch[0]), batch[1], batch[2]


def start_round(module: Any, epoch: int) -> None:
    """Labels all training images where a round begins with this epoch, unless the checkpoint has the round's labels already."""
    method, waiting = module.method, getattr(module, "waiting", None)
    rounds = module.config.rounds or min(ROUNDS, module.config.epochs)
    if int(method.round) >= epoch * rounds // module.config.epochs:
        return
    first = waiting is None or distributed.get_rank() == 0
    if first:
        method.start_round(*logits_and_index(module))
    if waiting is not None:
        distributed.barrier(waiting)
        for value in (method.pseudo, method.round):
            distributed.broadcast(value, 0)


@torch.no_grad()
def logits_and_index(module: Any) -> tuple[Tensor, Tensor]:
    """Logits (M, C) of the training images that can be read, without noise, and which they are (M,)."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches
    from fastssl.train.evaluate import centre, evaluating

    method, whole = module.method, module.data.train.whole
    logits, places = [], []
    with evaluating(method):
        for images, _, index in batches(whole, 512, workers=module.workers):
            if len(images):
                logits.append(method.classify(centre(as_float(images.to(method.pseudo.device)), module.data.image_size)))
                places.append(index.to(method.pseudo.device))
    return torch.cat(logits), torch.cat(places)


RECIPE = few_label_recipe(
    NoisyStudentSettings,
    build,
    load=load,
    arguments=view_labels_index,
    each_round=start_round,
    refuse=refuse_rounds,
    loss="noisy student",
)

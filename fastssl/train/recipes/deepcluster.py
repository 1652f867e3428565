"""How ``fastssl train deepcluster`` runs DeepCluster: each epoch is a round, with clusters of the features that it starts with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, distributed

from fastssl.methods import DeepCluster
from fastssl.train import UsageError
from fastssl.train.recipes._images import (
    WATCH,
    ViewSettings,
    backbone,
    image_recipe,
    load_indexed,
    view_and_index,
    with_image_scores,
)
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class DeepClusterSettings(ViewSettings):
    method: str = "deepcluster"
    batch_size: int = 64
    lr: LearningRate = 1e-3
    num_clusters: Annotated[
        int | None, Option("clusters of each round", least=2, default="a fiftieth of the training images, at most 10000")
    ] = None
    components: Annotated[int, Option("principal components of the features that are clustered, at most", least=1)] = 256


def build(config: DeepClusterSettings, data: "ImageData") -> DeepCluster:
    count = len(data.train)
    clusters = min(count, config.num_clusters or min(10000, max(2, count // 50)))
    return DeepCluster(backbone(config, data), count, num_clusters=clusters, components=config.components)


def refuse_clusters(config: DeepClusterSettings, data: "ImageData") -> None:
    """Raises UsageError for more clusters than training images; those that cannot be read are found by the first round."""
    if (wanted := config.num_clusters or 0) > (count := len(data.train)):
        raise UsageError(f"--num-clusters {wanted}: must be at most {count}, the number of training images")


def start_round(module: Any, epoch: int) -> Tensor:
    """Clusters the training images, unless the checkpoint has the epoch's clusters already, and draws the samples of the epoch."""
    method, seed = module.method, (module.config.seed * 1_000_003 + epoch) % 2**32
    if int(method.round) <= epoch:
        waiting = getattr(module, "waiting", None)
        if waiting is None:
            method.start_round(*features_and_index(module), seed=seed)
        else:
            share_round(method, module, waiting, seed)
        for optimizer in module.trainer.optimizers if hasattr(module, "trainer") else ():
            for p in method.classifier.parameters():
                optimizer.state.pop(p, None)
    return method.sample_order(torch.Generator().manual_seed(seed))


def share_round(method: DeepCluster, module: Any, waiting: Any, seed: int) -> None:
    """The first process starts the round, and the others wait for its clusters and take them."""
    first = distributed.get_rank() == 0
    if first:
        method.start_round(*features_and_index(module), seed=seed)
    distributed.barrier(waiting)
    labels = method.labels.clone()
    for value in (labels, method.nmi):
        distributed.broadcast(value, 0)
    if not first:
        method.take_round(labels, seed)


def features_and_index(module: Any) -> tuple[Tensor, Tensor]:
    """features (M, D) of the training images that can be read, and which they are (M,), on the CPU."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches
    from fastssl.train.evaluate import centre, evaluating

    features, places = [], []
    with torch.no_grad(), evaluating(module.method):
        for images, _, index in batches(module.data.train, 512, workers=module.workers):
            if len(images):
                whole = centre(as_float(images.to(module.method.labels.device)), module.data.image_size)
                features.append(module.method.embed(whole).float().cpu())
                places.append(index)
    if (found := sum(map(len, places))) < (wanted := module.config.num_clusters or module.method.num_clusters):
        raise UsageError(f"--num-clusters {wanted}: must be at most {found}, the number of training images that can be read")
    return torch.cat(features), torch.cat(places)


def agreement(method: DeepCluster, data: "ImageData", **where: Any) -> dict[str, float]:
    """From the second round on how far its clusters are those of the round before."""
    return {"nmi": float(method.nmi)} if int(method.round) > 1 else {}


def draw(method: DeepCluster, data: "ImageData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``clusters.png`` -> its path, or None where no image can be read or the images are other ones than the run's."""
    from fastssl.train.clusters import draw_clusters

    if len(method.labels) != len(data.train):
        return None  # other data than that of the training
    return draw_clusters(method.labels.cpu(), data, folder / "clusters.png")


RECIPE = image_recipe(
    DeepClusterSettings,
    build,
    load=load_indexed,
    arguments=view_and_index,
    monitor=with_image_scores(agreement),
    refuse=refuse_clusters,
    each_round=start_round,
    steady=("classifier",),
    draw=draw,
    watch={**WATCH, "nmi": ("NMI", "clusters like the round before's (NMI)", ".3f")},
    loss="DeepCluster",
)

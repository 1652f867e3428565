"""``fastssl eval RUN --fine-tune EPOCHS``: all weights of the encoder and a linear layer learn the classes.

This is done twice, from the weights of the trained run and from those that the run began with. Both trainings have the same seed,
order, crops and schedule.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from fastssl.optim import AdamW
from fastssl.train import UsageError
from fastssl.train.augment import as_float, view_steps
from fastssl.train.checkpoints import write_checkpoint
from fastssl.train.contents import not_finite
from fastssl.train.data import batches
from fastssl.train.downstream import ENCODERS, TrainedRun
from fastssl.train.evaluate import embed, evaluating
from fastssl.train.layout import counted
from fastssl.train.loop import pl, plain_trainer, quiet_lightning, step_seed, warmup_cosine
from fastssl.train.order import Shuffled
from fastssl.train.progress import say
from fastssl.train.samples import some_of_each
from fastssl.train.scores import keep

LR, WARM_UP = 1e-3, 0.1  # the latter is a share of the steps
FILE = "fine_tuned.ckpt"
NAMES = {"untrained": "from scratch", "trained": "fine-tuned"}


@dataclass(frozen=True)
class FineTuneOptions:
    """How the classes are learned.

    Args:
        epochs: passes over the labelled images.
        lr: peak learning rate.
        labels_per_class: images of each class whose label is known; None for all.
        seed: of the choice of the labels, the linear layer, the order and the crops.
    """

    epochs: int
    lr: float = LR
    labels_per_class: int | None = None
    seed: int = 0


class Classifier(nn.Module):
    """images (B, C, S, S) -> logits (B, num_classes): the features of a method through a linear layer, with gradients of both.

    The layer learns on standardised features, so that its steps do not depend on their scale (He et al. 2022, appendix A.1).

    Args:
        method: has ``embed``, or ``embed_image`` where it also embeds something else.
        num_classes: number of classes.
        images: (2, C, S, S), to learn how many features there are.

    Raises:
        UsageError: the features have no gradient.
    """

    def __init__(self, method: nn.Module, num_classes: int, images: Tensor):
        super().__init__()
        self.method = method.requires_grad_(True)  # also a teacher, where that is what is scored
        with evaluating(method):
            features = self.features(images)
        if not features.requires_grad:
            raise UsageError(f"--fine-tune: the features of {type(method).__name__} have no gradient")
        self.norm = nn.BatchNorm1d(features.shape[1], affine=False).to(images.device)
        self.linear = nn.Linear(features.shape[1], num_classes).to(images.device)

    def features(self, images: Tensor) -> Tensor:
        encode = getattr(self.method, "embed_image", None) or cast(Any, self.method).embed
        return encode(images).flatten(1).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(self.features(images)))

    @torch.no_grad()
    def on_features(self) -> dict[str, Tensor]:
        """Weight and bias of the linear layer on the features as they are: with the standardisation of evaluation in it."""
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None
        weight = self.linear.weight / (var + self.norm.eps).sqrt()
        return {"weight": weight.cpu(), "bias": (self.linear.bias - weight @ mean).cpu()}


class FineTuning(pl.LightningModule):
    """Trains a classifier on light crops of labelled images, with AdamW, a warm-up and half a cosine as in a run's training."""

    def __init__(self, classifier: Classifier, run: TrainedRun, how: FineTuneOptions, name: str):
        super().__init__()
        self.classifier, self.run_, self.how, self.name = classifier, run, how, name
        self.losses: list[Tensor] = []
        size, mirror = run.images.image_size, run.images.mirror
        self.views = nn.Sequential(
            *view_steps(size, (0.5, 1.0), strength=0.2, mirror=mirror, colour=False, hue=False, blur=0.0),
        )

    def train_dataloader(self) -> DataLoader:
        data, how = labelled_part(self.run_, how=self.how), self.how
        sampler = Shuffled(data, replicas=1, rank=0, seed=how.seed, epoch=0, skip=0, order=lambda epoch: None)
        return batches(data, batch_size(len(data)), sampler=sampler, workers=self.run_.workers, drop_last=True)

    def configure_optimizers(self) -> Any:
        parameters = list(self.classifier.parameters())
        decay = self.run_.config.weight_decay
        groups = [
            {"params": [p for p in parameters if (p.ndim > 1) == wide], "weight_decay": decay * wide} for wide in (True, False)
        ]
        optimizer, total = AdamW(groups, self.how.lr), int(self.trainer.estimated_stepping_batches)
        warm_up = round(WARM_UP * total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warm_up, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed(step_seed(self.how.seed, self.current_epoch, 0))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, labels = batch[:2]
        if len(images) < 2:
            raise UsageError(f"--data {self.run_.images.name}: a batch has {len(images)} readable images, at least 2 are needed")
        loss = F.cross_entropy(self.classifier(self.views(as_float(images))), labels)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        epoch, loss = self.current_epoch + 1, torch.stack(self.losses).mean().item()
        self.losses.clear()
        if not math.isfinite(loss):
            raise UsageError(f"--lr: the loss became {loss} in epoch {epoch} of the training; try a smaller one")
        say(f"{self.name}, epoch {epoch:>3}/{self.how.epochs}  loss {loss:.3f}")


def batch_size(count: int) -> int:
    """64, and of fewer than 512 images an eighth of them, but at least 8 where there are as many: few labels make several steps."""
    return min(64, max(8, count // 8), count)


def labelled_part(run: TrainedRun, how: FineTuneOptions) -> Any:
    """The training images whose labels are known."""
    train = run.images.train
    if how.labels_per_class is None:
        return train
    smallest, which = min((int((train.labels == label).sum()), int(label)) for label in train.labels.unique())
    if smallest < how.labels_per_class:
        only = f"class {run.images.class_names[which]} has only {counted(smallest, 'training image')}"
        raise UsageError(f"--labels-per-class {how.labels_per_class}: {only}")
    return Subset(train, some_of_each(train.labels, how.labels_per_class, torch.Generator().manual_seed(how.seed)).tolist())


def trainer_for(device: torch.device, epochs: int) -> pl.Trainer:
    """Lightning's trainer on the one device of an evaluation. It writes nothing."""
    quiet_lightning()
    accelerator, devices = ("gpu", f"{device.index or 0},") if device.type == "cuda" else (device.type, "1")
    where = {"accelerator": accelerator, "devices": devices, "strategy": "auto", "precision": "32"}
    return plain_trainer(**where, num_nodes=1, max_epochs=epochs, logger=False, enable_checkpointing=False)


def fine_tuned(run: TrainedRun, how: FineTuneOptions, encoder: str) -> tuple[Classifier, float]:
    """The classifier that begins with one of ``ENCODERS``, and its accuracy on the test images."""
    images, method = run.images, run.method(encoder)
    size, channels = images.image_size, getattr(images, "channels", 3)
    torch.manual_seed(how.seed)
    classifier = Classifier(method, len(images.class_names), torch.rand(2, channels, size, size, device=run.device))
    trainer_for(run.device, how.epochs).fit(FineTuning(classifier, run, how, NAMES[encoder]))
    logits, labels = embed(classifier.to(run.device), images.test, size, device=run.device, workers=run.workers)
    if not len(labels):
        raise UsageError(f"--data {run.images.name}: none of {len(images.test)} test images can be read")
    return classifier, (logits.argmax(1) == labels).float().mean().item()


def fine_tune(run: TrainedRun, how: FineTuneOptions) -> None:
    """Prints the test accuracy of an encoder that learned the classes from scratch and of the fine-tuned one.

    The weights of the fine-tuned one become ``fine_tuned.ckpt`` beside the run's checkpoint. What was found of an earlier file
    of that name is forgotten.
    """
    known = len(labelled_part(run, how))
    say(f"learning the classes of {known} images for {counted(how.epochs, 'epoch')}, from scratch and from the run's weights ...")
    found = {encoder: fine_tuned(run, how, encoder) for encoder in ENCODERS}
    accuracies = {NAMES[encoder]: accuracy for encoder, (_, accuracy) in found.items()}
    state = state_of(found["trained"][0], run, how, accuracies)
    say(f"  {'accuracy on test images':<28}" + "".join(f"{name:>14}" for name in accuracies))
    say(f"  {'encoder and linear layer':<28}" + "".join(f"{accuracy:>14.3f}" for accuracy in accuracies.values()))
    path = run.place(FILE)
    write_checkpoint(state, path)
    say(f"  weights     {path}")
    heading = f"accuracy on test images, {known} labelled images, {counted(how.epochs, 'epoch')}"
    rows = (("encoder and linear layer", tuple(accuracies.values())),)
    table = run.table("fine-tuning", heading, rows, columns=tuple(accuracies), names=("accuracy",))
    keep(path.parent, table, replaced=path)


def state_of(classifier: Classifier, run: TrainedRun, how: FineTuneOptions, accuracies: dict[str, float]) -> dict[str, Any]:
    """What ``fine_tuned.ckpt`` holds: the weights by the names of a run's checkpoint, the linear layer, and how it was made."""
    own = {name: value for name, value in run.checkpoint["fastssl"].items() if name != "cut_short"}
    made: dict[str, Any] = {"epochs": how.epochs, "lr": how.lr, "labels_per_class": how.labels_per_class, "seed": how.seed}
    made |= {"data": run.images.name, "class_names": list(run.images.class_names), "accuracy": accuracies}
    weights = {f"method.{name}": value.detach().cpu() for name, value in classifier.method.state_dict().items()}
    state = {"state_dict": weights, "linear": classifier.on_features(), "fastssl": own, "fine_tuned": made}
    if why := not_finite(state):
        raise UsageError(f"--lr: {why} after the training, which is not saved; try a smaller one")
    return state

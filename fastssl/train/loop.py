"""The Lightning adaptor: any method ``module(*arguments) -> loss`` with its recipe, trained, checkpointed, resumed.

A run with the same seed on the same number of devices is the same run, interrupted or not: shuffling and augmentation are
seeded by (seed, epoch, rank), and a checkpoint holds the finished epoch, the method's buffers, the optimizer and the schedule.

Files of a run: ``last.ckpt`` and ``previous.ckpt``, ``csv/``, ``tensorboard/``.
"""

import logging
import math
import os
import sys
import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from fastssl.optim import LARS, AdamW
from fastssl.train import TrainConfig, UsageError, broken_torchvision_hidden
from fastssl.train.data import batches
from fastssl.train.evaluate import collapse_warning
from fastssl.train.recipes import RECIPES

with broken_torchvision_hidden():
    import lightning.pytorch as pl
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
DEFAULT_LR = {"adamw": 2e-3, "sgd": 0.1, "lars": 0.3}  # at batch 256, scaled linearly with the batch
MONITOR_BANK = 20_000  # samples at most that a score during training embeds; the evaluation at the end takes all


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, renames; the checkpoint before stays as ``previous.ckpt``.

    A process killed at any moment leaves at least one complete checkpoint. Loads with ``weights_only=True``.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(partial, path)

    def load_checkpoint(self, path, map_location="cpu", weights_only=True) -> dict:
        return torch.load(path, map_location=map_location, weights_only=True)


def read_checkpoint(path: Path) -> dict | None:
    """The checkpoint on the CPU, or None where the file is missing, half-written, or no checkpoint of fastssl."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # truncated archives raise RuntimeError, UnpicklingError, EOFError, OSError, ... by where they end
        return None
    return checkpoint if isinstance(checkpoint, dict) and "fastssl" in checkpoint else None


def find_checkpoint(run: Path) -> tuple[Path, dict] | None:
    """The newest complete checkpoint of a run directory, or of the file itself."""
    for path in (run,) if run.is_file() else (run / LAST, run / PREVIOUS):
        if (checkpoint := read_checkpoint(path)) is not None:
            return path, checkpoint
    return None


def config_of(checkpoint: dict) -> TrainConfig:
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in checkpoint["fastssl"]["config"].items() if name in known})


def build_method(config: TrainConfig, data: Any) -> nn.Module:
    """The method with a freshly initialised encoder, the same for the same seed."""
    torch.manual_seed(config.seed)
    return RECIPES[config.method].build(config, data)


def restore_method(checkpoint: dict, data: Any) -> nn.Module:
    """The method with the weights of a checkpoint, which may be a run on other data than ``data``."""
    method = build_method(config_of(checkpoint), data)
    weights = {
        name.removeprefix("method."): value for name, value in checkpoint["state_dict"].items() if name.startswith("method.")
    }
    for name, tensor in (*method.named_buffers(), *method.named_parameters()):
        if name in weights and tensor.shape != weights[name].shape:  # a bank as large as the data, a classifier of its classes
            tensor.data = torch.empty_like(weights[name])
    method.load_state_dict(weights)
    return method


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate at ``step``: a line up to 1 over ``warmup`` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


class MethodModule(pl.LightningModule):
    """Trains ``method`` on what its recipe makes of each batch and keeps the run's history, one row an epoch."""

    def __init__(self, method: nn.Module, config: TrainConfig, data: Any, workers: int = 0):
        super().__init__()
        self.method, self.config, self.data, self.workers = method, config, data, workers
        self.recipe = RECIPES[config.method]
        self.views = self.recipe.augment(config, data)
        self.history: list[dict] = []
        self.losses: list[Tensor] = []

    def train_dataloader(self):
        config, trainer = self.config, self.trainer
        sampler = DistributedSampler(self.data.train, trainer.world_size, trainer.global_rank, seed=config.seed, drop_last=True)
        return batches(self.data.train, config.batch_size, sampler=sampler, workers=self.workers, drop_last=True)

    def configure_optimizers(self):
        """Weight decay on matrices and filters only, not on biases and norms."""
        config = self.config
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        lr = config.lr or DEFAULT_LR[config.optimizer] * config.batch_size * self.trainer.world_size / 256
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
        else:
            optimizer = (LARS if config.optimizer == "lars" else AdamW)(groups, lr)
        total = int(self.trainer.estimated_stepping_batches)
        if getattr(self.method, "total_steps", None) is not None:
            self.method.total_steps = total  # the recipe counted the steps of one process
        warmup = round(config.warmup_epochs * total / config.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if not self.history:
            self.history.append({"epoch": 0, "loss": None, **self.monitor(full=True)})
            if self.recipe.prepare is not None:
                self.recipe.prepare(self)

    def on_train_epoch_start(self) -> None:
        self.losses.clear()

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> tuple[Tensor, ...]:
        """A collated batch -> the method's arguments, such as images (B, 3, H, W) uint8 and labels -> two views."""
        if len(batch[0]) < 2:
            some = f"{len(batch[0])} readable {self.recipe.unit}"
            raise UsageError(f"--data {self.config.data}: a batch has {some}, at least 2 are needed")
        if not self.losses:  # not in on_train_epoch_start: whether the loader draws from the generator after it varies
            torch.manual_seed((self.config.seed * 1_000_003 + self.current_epoch) * 4096 + self.global_rank)
        return self.recipe.arguments(self, batch)

    def training_step(self, arguments: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = self.method(*arguments)
        self.losses.append(loss.detach())
        self.log("loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        loss = self.trainer.strategy.reduce(torch.stack(self.losses).float().mean(), reduce_op="mean").item()
        if not math.isfinite(loss):
            raise UsageError(f"--lr: the loss became {loss} in epoch {epoch}; try a smaller one, or --precision 32")
        row = {"epoch": epoch, "loss": loss}
        if epoch % self.config.knn_every == 0 or epoch == self.config.epochs:
            row |= self.monitor()
            if self.recipe.draw is not None and self.trainer.is_global_zero:
                self.recipe.draw(self.method, self.data, Path(self.trainer.checkpoint_callback.dirpath), device=self.device)
        self.history.append(row)
        if self.trainer.is_global_zero:
            self.log_dict({name: value for name, value in row.items() if name != "epoch"}, rank_zero_only=True)
        first, (short, _) = next(iter(self.recipe.scores.items()))
        shown = {first: (short, ".3f")} | {name: (short, form) for name, (short, _, form) in self.recipe.watch.items()}
        scores = [f"  {short} {row[name]:{form}}" for name, (short, form) in shown.items() if name in row]
        self.print(f"epoch {epoch:>3}/{self.config.epochs}  loss {loss:.3f}{''.join(scores)}")
        if warning := collapse_warning(self.history):
            self.print(warning, file=sys.stderr)

    def monitor(self, full: bool = False) -> dict[str, float]:
        """The recipe's scores of the method as it is (``full``: the slow ones too), on the first process."""
        if not self.trainer.is_global_zero:
            return {}
        how = {"device": self.device, "workers": self.workers, "most": MONITOR_BANK, "full": full}
        return self.recipe.monitor(self.method, self.data, self.config, **how)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        size = getattr(self.data, "image_size", None)
        checkpoint["fastssl"] = {"config": asdict(self.config), "history": self.history, "image_size": size}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history = list(checkpoint["fastssl"]["history"])


def quiet_lightning() -> None:
    """Only what a person can act on: no hardware report, no tips, no advice about loader workers and log intervals."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*(does not have many workers|exists and is not empty|LeafSpec|barrier\(\)).*")


def make_trainer(
    config: TrainConfig, out: Path, *, accelerator: str, devices: str, strategy: str, precision: str, bar: bool
) -> pl.Trainer:
    """Lightning's trainer with the run's logs, its atomic checkpoint after each epoch, and a progress bar on a terminal."""
    csv = CSVLogger(out, name="csv", flush_logs_every_n_steps=50)
    checkpoint = ModelCheckpoint(out, filename=Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False)
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=accelerator,
        devices=int(devices) if devices.isdigit() else devices,
        strategy=strategy,
        precision=precision,
        logger=[csv, TensorBoardLogger(out, name="tensorboard", version=csv.version)],
        callbacks=[checkpoint, *([TQDMProgressBar(leave=False)] if bar else [])],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )

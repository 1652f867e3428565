"""The Lightning adaptor: any method ``module(*arguments) -> loss`` with its recipe, trained, checkpointed, resumed.

A run with the same seed on the same number of devices is the same run, interrupted or not: shuffling and augmentation are
seeded by (seed, epoch, rank), and a checkpoint holds the finished epochs, the method's buffers, the optimizer and the schedule. One
that a signal asked for also holds the steps of the epoch that it cut short, their losses and the state of the generators.

Files of a run: ``last.ckpt`` and ``previous.ckpt``, ``csv/``, ``tensorboard/``.
"""

import logging
import math
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from fastssl._ending import STOP, Stopped
from fastssl.methods._common import sees_all_rows
from fastssl.train import TrainConfig, UsageError, broken_torchvision_hidden, warn
from fastssl.train.checkpoints import LAST, PREVIOUS, fingerprint, history_of, read_checkpoint, write_checkpoint
from fastssl.train.clock import SECONDS, Clock
from fastssl.train.contents import not_finite
from fastssl.train.data import batches
from fastssl.train.evaluate import collapse_warning
from fastssl.train.layout import counted
from fastssl.train.optimizers import DEFAULT_LR, make_optimizer
from fastssl.train.options import PRECISIONS
from fastssl.train.order import Shuffled
from fastssl.train.processes import launched, refuse_differences, share_of_rows
from fastssl.train.progress import Steps, peak_memory, say, speed
from fastssl.train.recipes import RECIPES
from fastssl.train.rundir import next_version
from fastssl.train.settings import knn_vote

with broken_torchvision_hidden():
    import lightning.pytorch as pl
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.fabric.plugins.environments import SLURMEnvironment
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

PATIENCE = timedelta(days=1)  # for which the other processes wait while the first one scores
ADVICE = "try a smaller one, a smaller --weight-decay, a larger --temperature where there is one, or --precision 32"
MONITOR_BANK = 20_000  # samples at most that a score during training embeds; the evaluation at the end takes all


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint by ``write_checkpoint``, loads it by ``read_checkpoint``. The one before stays as ``previous.ckpt``.

    So a process that is killed at any moment leaves at least one complete checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path), keep_as=PREVIOUS)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes nothing: a run replaces its checkpoint by itself, and lightning takes the path from the checkpoint's own text."""


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate at ``step``: a line up to 1 over ``warmup`` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


class MethodModule(pl.LightningModule):
    """Trains ``method`` on what its recipe makes of each batch and keeps the run's history, one row an epoch."""

    def __init__(self, method: nn.Module, config: TrainConfig, data: Any, workers: int = 0):
        super().__init__()
        self.method: Any = method  # a module(*arguments) -> loss, with what its recipe asks of it
        self.config, self.data, self.workers = config, data, workers
        self.recipe = RECIPES[config.method]
        self.views = self.recipe.augment(config, data)
        self.prints = {"train": fingerprint(data.train), "test": fingerprint(data.test)}
        if hasattr(data, "stills"):
            self.prints["scored"] = fingerprint(data.stills.test)
        self.history: list[dict] = []
        self.losses: list[Tensor] = []
        self.cut_short: dict | None = None  # of the checkpoint: the epoch that was interrupted
        self.steps: Steps | None = None
        self.restoring = True  # whether something of a checkpoint is being put in place, or used for the first time
        self.begun = False  # whether a step was done, and with it all that was restored is known to fit
        self.clock = Clock()
        self.done: int | None = None  # finished epochs of the checkpoint that this process goes on from
        self.waiting: Any = None  # the group in which the processes wait while the first one scores
        self.share: Tensor | None = None  # what weighs this process's loss, where the method itself does not look at the others
        self.shift = 0  # steps that the schedules are ahead of the optimizer's
        self.heeds = signal.getsignal(signal.SIGTERM) is STOP

    def setup(self, stage: str) -> None:
        """With several processes: refuses those that were not given the same, before any of them restores a checkpoint."""
        if self.trainer.world_size == 1:
            return
        of_each: list[Any] = [None] * self.trainer.world_size
        distributed.all_gather_object(of_each, {"done": self.done, **asdict(self.config), "prints": self.prints})
        refuse_differences(of_each)
        self.waiting = distributed.new_group(timeout=PATIENCE)

    def end_all(self, signum: int, frame: Any) -> None:
        """Answers SIGTERM. Lightning's own answer is a collective, in which it would wait for processes that do not know of it."""
        if self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signum)  # those that lightning has started
        STOP(signum, frame)

    def train_dataloader(self) -> DataLoader:
        config, trainer = self.config, self.trainer
        sampler = Shuffled(
            self.data.train,
            replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=config.seed,
            epoch=self.history[-1]["epoch"] if self.history else 0,
            skip=len(self.losses) * config.batch_size,
            order=self.order_of,
        )
        if (share := sampler.num_samples) < config.batch_size:
            each = f"each of {trainer.world_size} processes has only {share} training {self.recipe.unit}"
            raise UsageError(f"--batch-size {config.batch_size}: {each}; pass --batch-size {share} or less")
        return batches(self.data.train, config.batch_size, sampler=sampler, workers=self.workers, drop_last=True)

    def order_of(self, epoch: int) -> Tensor | None:
        """What the recipe says of the samples of an epoch, which it prepares by that."""
        return None if self.recipe.each_round is None else self.recipe.each_round(self, epoch)

    def configure_optimizers(self) -> Any:
        config = self.config
        steady = [p for name in self.recipe.steady for p in self.method.get_submodule(name).parameters()]
        others = {id(p) for p in steady}
        parameters = [p for p in self.method.parameters() if p.requires_grad and id(p) not in others]
        lr = config.lr or DEFAULT_LR[config.optimizer] * config.batch_size * self.trainer.world_size / 256
        optimizer = make_optimizer(config, self.method, parameters, steady, lr)
        total = int(self.trainer.estimated_stepping_batches)
        if getattr(self.method, "total_steps", None) is not None:
            self.method.total_steps = total  # the recipe counted the steps of one process
        warmup = round(config.warmup_epochs * total / config.epochs)
        falls: list[Callable[[int], float]] = [lambda step: warmup_cosine(step + self.shift, warmup, total)] * 2
        stays = [lambda step: warmup_cosine(min(step + self.shift, warmup), warmup, total)] * bool(steady)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [*falls, *stays])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        trainer = self.trainer
        if self.heeds and trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self.end_all)
        self.losses, self.restoring = [loss.to(self.device) for loss in self.losses], False
        if self.cut_short and trainer.world_size > 1:
            raise UsageError("--devices: the run was stopped in the middle of an epoch on one device; go on with one")
        if not self.history:
            if trainer.is_global_zero:
                say("scores of the untrained encoder ...")
            scores = self.monitor(full=True)
            vote = knn_vote(self.config) if "knn" in scores else {}
            self.history.append({"epoch": 0, "loss": None, **scores, **vote})
            self.say_row()
            if self.recipe.prepare is not None:
                self.recipe.prepare(self)
        elif self.unscored():
            self.history[-1] |= self.monitor()
        done = self.history[-1]["epoch"] * int(trainer.num_training_batches) + len(self.losses)
        if done != trainer.global_step:
            self.keep_place(done)
        if trainer.is_global_zero:
            self.steps = Steps(self.config.epochs, int(trainer.num_training_batches), done)

    def keep_place(self, done: int) -> None:
        """Where a run goes on in another number of processes, its schedules go on where its epochs are: after ``done`` steps."""
        self.shift = done - self.trainer.global_step
        if getattr(self.method, "total_steps", None) is not None:
            self.method.step.fill_(done)
        processes = counted(self.trainer.world_size, "process", "processes")
        now = f"an epoch has {self.trainer.num_training_batches} steps now, in {processes}"
        warn(f"{now}; the learning rate keeps its peak and goes on from the same part of the training")

    def on_train_epoch_start(self) -> None:
        self.losses.clear()
        STOP.check()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.clock.start()
        STOP.patient = self.trainer.world_size == 1  # several processes would have to agree on the step

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> tuple[Any, ...]:
        """A collated batch -> the method's arguments, such as images (B, 3, H, W) uint8 and labels -> two views."""
        if len(batch[0]) < 2:
            some = f"{len(batch[0])} readable {self.recipe.unit}"
            raise UsageError(f"--data {self.config.data}: a batch has {some}, at least 2 are needed")
        if self.waiting is not None and not joins_processes(self.method):
            self.share = share_of_rows(len(batch[0]), self.device)
        if self.cut_short:
            self.restoring = True
            restore_generators(self.cut_short["generators"], self.device)
            self.cut_short, self.restoring = None, False
        elif not self.losses:  # not in on_train_epoch_start: whether the loader draws from the generator after it varies
            torch.manual_seed(step_seed(self.config.seed, self.current_epoch, self.global_rank))
        return self.recipe.arguments(self, batch)

    def training_step(self, arguments: tuple[Any, ...], batch_idx: int) -> Tensor:
        loss = self.method(*arguments)
        if self.share is not None:
            loss = loss * self.share.to(loss.dtype)
        self.losses.append(loss.detach())
        self.log("loss_step", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.restoring = not self.begun

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Shows the step. Where a signal came in the middle of an epoch, saves the run as it is and ends it."""
        self.begun, self.restoring = True, False
        if self.steps is not None:
            self.steps.step(self.losses[-1])
        if STOP.patient and STOP.signum is not None and batch_idx + 1 < self.trainer.num_training_batches:
            if not torch.stack(self.losses).isfinite().all():
                STOP.check()
            path = self.folder() / LAST
            self.trainer.save_checkpoint(path)
            STOP.check(f"epoch {self.current_epoch + 1} up to step {batch_idx + 1} ({path})")

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        loss = self.trainer.strategy.reduce(torch.stack(self.losses).float().mean(), reduce_op="mean").item()
        if not math.isfinite(loss):
            raise UsageError(f"--lr: the loss became {loss} in epoch {epoch}; {ADVICE}")
        self.clock.end_epoch()
        self.losses.clear()
        self.history.append({"epoch": epoch, "loss": loss})
        if self.unscored():
            self.score_epoch()
        row = self.history[-1]
        if self.trainer.is_global_zero:
            self.log_dict({name: value for name, value in row.items() if name != "epoch"}, rank_zero_only=True)
            self.say_row()
            if warning := collapse_warning(self.history):
                say(warning, error=True)

    def unscored(self) -> bool:
        """Whether the last epoch is one that is scored and has no scores yet."""
        row, recipe = self.history[-1], self.recipe
        due = row["epoch"] % self.config.knn_every == 0 or row["epoch"] == self.config.epochs
        return due and row["epoch"] > 0 and not any(name in row for name in (*recipe.scores, *recipe.watch))

    def score_epoch(self) -> None:
        """Adds the scores to the history's last row, and draws. After a signal the epoch is saved without and scored on resume."""
        patient, STOP.patient = STOP.patient, False
        try:
            STOP.check()
            row = self.history[-1] | self.monitor()
            if self.recipe.draw is not None and self.trainer.is_global_zero:
                self.recipe.draw(self.method, self.data, self.folder(), device=self.device)
            self.history[-1] = row
        except Stopped:
            if self.trainer.world_size > 1:
                raise
        STOP.patient = patient

    def folder(self) -> Path:
        """The folder of the run, where its checkpoint is written."""
        callback = self.trainer.checkpoint_callback
        assert isinstance(callback, ModelCheckpoint) and callback.dirpath is not None
        return Path(callback.dirpath)

    def cost(self) -> list[str]:
        """What the last epoch took: samples a second and memory; and the time that all others take."""
        trainer = self.trainer
        samples = int(trainer.num_training_batches) * self.config.batch_size * trainer.world_size
        rest = "" if self.steps is None else self.steps.rest()
        return [speed(samples, self.clock.epochs, self.recipe.unit), peak_memory(self.device), rest]

    def say_row(self) -> None:
        """The line of the last epoch: loss and scores, as far as there are any, and what it took."""
        row = self.history[-1]
        first, (short, _) = next(iter(self.recipe.scores.items()))
        shown = {first: (short, ".3f")} | {name: (short, form) for name, (short, _, form) in self.recipe.watch.items()}
        parts = [] if row["loss"] is None else [f"loss {row['loss']:.3f}"]
        parts += [f"{short} {row[name]:{form}}" for name, (short, form) in shown.items() if name in row]
        cost = self.cost() if row["epoch"] else []
        if self.trainer.is_global_zero and parts:
            say("  ".join(filter(None, [f"epoch {row['epoch']:>3}/{self.config.epochs}", *parts, *cost])))

    def monitor(self, full: bool = False) -> dict[str, float]:
        """The recipe's scores of the method as it is now, in the first process; the others wait. ``full``: the slow ones too."""
        scores = {}
        if self.trainer.is_global_zero:
            how = {"device": self.device, "workers": self.workers, "most": MONITOR_BANK, "full": full}
            scores = self.recipe.monitor(self.method, self.data, self.config, **how)
        if self.waiting is not None:  # longer than a collective of the training may take
            distributed.barrier(self.waiting, device_ids=None if self.device.index is None else [self.device.index])
        return scores

    def noted(self) -> dict[str, Any]:
        """What a checkpoint holds of the run besides Lightning's state: settings, history, data, seconds of training."""
        size = getattr(self.data, "image_size", None)
        own = {"config": asdict(self.config), "history": self.history, "image_size": size, "data": self.prints}
        return {"fastssl": own, SECONDS: self.clock.state()}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint |= self.noted()
        if why := not_finite(checkpoint):
            raise UsageError(f"--lr: {why} in epoch {len(self.history) - 1 + bool(self.losses)}, which is not saved; {ADVICE}")
        if self.losses:
            checkpoint["fastssl"]["cut_short"] = {"losses": torch.stack(self.losses), "generators": generators(self.device)}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        own = checkpoint["fastssl"]
        self.history = history_of(checkpoint)
        self.clock = Clock(checkpoint)
        self.cut_short = own.get("cut_short")
        self.losses = list(self.cut_short["losses"].unbind()) if self.cut_short else []


def joins_processes(method: Any) -> bool:
    """Whether a method's own loss is, in the mean over processes, that of one process with the joined batch."""
    return getattr(method, "joins_processes", False) or sees_all_rows(method)


def step_seed(seed: int, epoch: int, rank: int) -> int:
    """What seeds an epoch's augmentation. The CPU's generator takes the low 32 bits, so the higher ones are folded into them."""
    wide = (seed * 1_000_003 + epoch) * 4096 + rank
    return (wide ^ wide >> 32) % 2**63


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a training step on ``device`` draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def quiet_lightning() -> None:
    """Silences what a person cannot act on: the hardware report, tips, advice about loader workers and log intervals."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*(does not have many workers|exists and is not empty|LeafSpec|barrier\(\)).*")


def plain_trainer(
    *, accelerator: str, devices: str, num_nodes: int, strategy: str, precision: str, plugins: Sequence[Any] = (), **how: Any
) -> pl.Trainer:
    """Lightning's trainer on this hardware, without what it shows and checks of its own accord.

    Under SLURM it does not put the job back into the queue by itself: a job that is started again goes on from its last checkpoint.
    """
    slurm = [SLURMEnvironment(auto_requeue=False)] if launched().by == "srun" else []
    return pl.Trainer(
        accelerator=accelerator,
        devices=int(devices) if devices.isdigit() else devices,
        num_nodes=num_nodes,
        strategy=strategy,
        plugins=[*plugins, *slurm],
        precision=cast(Any, PRECISIONS[precision]),  # lightning lists the words that it takes
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        **how,
    )


def make_trainer(config: TrainConfig, out: Path, **hardware: Any) -> pl.Trainer:
    """The trainer of ``plain_trainer`` with the run's logs and its atomic checkpoint after each epoch."""
    version = next_version(out)
    csv = CSVLogger(out, name="csv", version=version, flush_logs_every_n_steps=50)
    tensorboard = TensorBoardLogger(out, name="tensorboard", version=version)
    checkpoint = ModelCheckpoint(out, filename=Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False)
    return plain_trainer(
        **hardware,
        max_epochs=config.epochs,
        logger=[csv, tensorboard],
        callbacks=[checkpoint],
        plugins=[AtomicCheckpointIO()],
    )

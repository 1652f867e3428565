"""``fastssl train METHOD`` and ``fastssl eval RUN``."""

import contextlib
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastssl._devices import usable_device
from fastssl._ending import PLACE, STOP, first_process, foreseen, traceback_kept, visible
from fastssl.train import TrainConfig, UsageError, warn
from fastssl.train.evaluation import evaluate, report_corrupt
from fastssl.train.hardware import HARDWARE, check_hardware
from fastssl.train.layout import counted, refuse_as_out
from fastssl.train.options import eval_parser, refuse_unused, refuse_unused_of_eval, refuse_unused_of_tasks, train_options
from fastssl.train.processes import Meeting, join_processes, launched, leave_processes, met, note_job, requeued, with_processes
from fastssl.train.progress import duration, say
from fastssl.train.recipes import RECIPES
from fastssl.train.repeat import write_config
from fastssl.train.report import write_report
from fastssl.train.rundir import claimed, refuse_links, set_earlier_run_aside
from fastssl.train.scores import machine
from fastssl.train.settings import changed, flag, knn_vote

Found = tuple[Path, dict] | None  # a checkpoint to go on from, with its path
FREE_ON_RESUME = ("epochs", "knn_every", "knn_k", "knn_t")  # the other settings of a run stay as they were


def loader_workers(given: int | None, data_spec: str) -> int:
    if given is not None:
        return given
    return min(8, os.cpu_count() or 1) if data_spec.startswith("folder:") else 0


def resumed_config(given: dict, stored: TrainConfig, out: Path = Path("RUN")) -> TrainConfig:
    """The stored run's settings; an option that would change what the run is, is refused. A folder of images may have moved:
    ``check_same_data`` looks at what is in it."""
    if given.get("method", stored.method) != stored.method:
        command = f"fastssl train {stored.method} --out {out} --resume"
        raise UsageError(f"--out {out}: holds a run of {stored.method}, not of {given['method']}; {command} goes on with it")
    free = list(FREE_ON_RESUME)
    if all(spec.startswith("folder:") for spec in (given.get("data", ""), stored.data)):
        free.append("data")
    for name, value in given.items():
        if name not in free and value != getattr(stored, name):
            there = "the default" if getattr(stored, name) is None else getattr(stored, name)
            out_of_it = f"leave {flag(name)} out, or start without --resume"
            raise UsageError(f"{flag(name)} {value}: the run to resume has {there}; {out_of_it}")
    return replace(stored, **{name: value for name, value in given.items() if name in free})


def fit(method: nn.Module, config: TrainConfig, data: Any, found: Found, given: dict, workers: int, meeting: Meeting | None) -> Any:
    """Trains up to ``config.epochs`` -> the Lightning module, or None in a process that is not the first."""
    from fastssl.train.loop import MethodModule, make_trainer

    module = MethodModule(method, config, data, workers)
    module.done = found[1]["fastssl"]["history"][-1]["epoch"] if found else None
    trainer = make_trainer(config, given["out"], **{name: given[name] for name in HARDWARE})
    try:
        join_processes(trainer, meeting)
        trainer.fit(module, ckpt_path=found[0] if found else None, weights_only=True)
    except Exception as error:
        restoring = found is not None and module.restoring
        if not restoring and first_process() and STOP.signum is None:
            traceback_kept(error, elsewhere=False)
        if found and restoring and not isinstance(error, UsageError) and foreseen(error) is None:
            why = f"{type(error).__name__}: {visible(str(error).strip())}"
            raise UsageError(f"--resume: {found[0]} cannot be restored: {why}") from error
        raise
    finally:
        STOP.patient = False
        if module.steps is not None:
            module.steps.close()
    leave_processes()
    STOP.check()
    return module if trainer.is_global_zero else None


def announce(config: TrainConfig, data: Any, method: nn.Module, given: dict, found: Found) -> None:
    from fastssl.train.backbones import tokens_line

    say(visible(f"{', '.join(filter(None, (config.method, config.backbone)))}, on {data.name}: {data.summary()}"))
    if tokens := tokens_line(method):
        say(tokens)
    if getattr(data, "channels", 3) != 3 and getattr(config, "jitter", 0) > 0:
        say("jitter of brightness and contrast only: saturation, hue and grey views need 3 channels")
    if given["resume"] and found:
        own = found[1]["fastssl"]
        done, short = own["history"][-1]["epoch"], own.get("cut_short")
        steps = f" and {len(short['losses'])} of the next one's steps" if short else ""
        end = "; only evaluating" if done >= config.epochs else ""
        if done > config.epochs:
            say(f"resume: {done} epochs were finished in {found[0]}, more than --epochs {config.epochs}{end}")
        else:
            say(f"resume: {done} of {config.epochs} epochs{steps} were finished in {found[0]}{end}")
    elif given["resume"]:
        say(f"resume: no checkpoint in {given['out']}, starting from the beginning")


def train(argv: list[str]) -> int:
    """Trains, or resumes, and evaluates; only the first process of a DDP run evaluates and prints."""
    given = train_options(argv)
    PLACE.debug = given.pop("debug")
    names = [field.name for field in fields(RECIPES[given["method"]].settings)]
    settings = {name: given.pop(name) for name in names if name in given}
    with contextlib.ExitStack() as held:
        return run(given, settings, held)


def run(given: dict, settings: dict, held: contextlib.ExitStack) -> int:
    from fastssl.train.checkpoints import build_method, check_same_data, check_weights, config_of, find_checkpoint

    given = with_processes(given, launched())
    out, meeting = given["out"], met()
    again = (meeting is not None and meeting.began) or requeued(out)
    resume = given["resume"] = given["resume"] or again
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, not a directory")
    refuse_among_images(out, settings.get("data", ""))
    if resume and first_process() and not given["dry_run"]:
        held.enter_context(claimed(out))
    found = find_checkpoint(out) if resume else None
    recipe = RECIPES[settings["method"]]
    config = resumed_config(settings, config_of(found[1]), out) if found else recipe.settings(**settings)
    if not found:  # a run of before may have been given what it does not use
        refuse_unused(settings, config)
    data = recipe.load(config)
    if found:
        check_same_data(found[1], data, recipe.unit)
    wanted, processes = config.batch_size, check_hardware(given)
    config = fitting_batch(config, data, chosen="batch_size" in settings or found is not None, processes=processes)
    if not found and recipe.refuse is not None:
        recipe.refuse(config, data)
    method = build_method(config, data)
    if found:
        check_weights(method, found[1], found[0])
    if first_process():
        if not given["dry_run"]:
            take_folder(config, given, held)
        if meeting is not None:
            meeting.begin()
        if again:
            say(f"the processes were started again, and go on in {out} as with --resume")
        announce(config, data, method, given, found)
        if config.batch_size < wanted:
            of = f" of each of {processes} processes" if processes > 1 else ""
            say(f"--batch-size {config.batch_size}: all training {recipe.unit}{of}, which are fewer than the default {wanted}")
        if unfilled := left_out(config, data, processes):
            warn(unfilled)
    if given["dry_run"]:
        return dry_run(method, config, data, found, given, processes)
    return train_and_evaluate(method, config, data, found, given, meeting)


def take_folder(config: TrainConfig, given: dict, held: contextlib.ExitStack) -> None:
    """Makes the folder of a new run, or takes up that of a resumed one, and writes there what the run is."""
    if not given["resume"]:
        held.enter_context(claimed(given["out"]))
        set_earlier_run_aside(given["out"])
    refuse_links(given["out"])
    note_job(given["out"])
    write_config(given["out"], config, given)


def dry_run(method: nn.Module, config: TrainConfig, data: Any, found: Found, given: dict, processes: int) -> int:
    """Says what would run, in the first process."""
    from fastssl.train.rehearsal import rehearse

    if first_process():
        done = found[1]["fastssl"]["history"][-1]["epoch"] if found else 0
        workers = loader_workers(given["workers"], config.data)
        rehearse(method, config, data, given, workers=workers, done=done, processes=processes)
    return 0


def fitting_batch(config: TrainConfig, data: Any, *, chosen: bool, processes: int = 1) -> TrainConfig:
    """All training samples of a process as the batch where the default is more; a batch that was ``chosen`` is refused then."""
    unit, count = RECIPES[config.method].unit, len(data.train) // processes
    if count >= config.batch_size:
        return config
    if count < 2:
        where = f"--data {config.data}: " if processes == 1 else f"--devices: of {config.data} each of {processes} processes "
        raise UsageError(f"{where}has {counted(count, f'training {unit[:-1]}')}, at least 2 are needed")
    if chosen:
        holder = config.data if processes == 1 else f"each of {processes} processes"
        most = f"{holder} has only {count} training {unit}; pass --batch-size {count} or less"
        raise UsageError(f"--batch-size {config.batch_size}: {most}")
    return replace(config, batch_size=count)


def left_out(config: TrainConfig, data: Any, processes: int = 1) -> str | None:
    """What to warn of where the rest of an epoch that fills no batch is more than a tenth of the training samples."""
    total, unit = len(data.train), RECIPES[config.method].unit
    rest = total - total // processes // config.batch_size * config.batch_size * processes
    if 10 * rest <= total:
        return None
    each = f" in each of {processes} processes" if processes > 1 else ""
    fill = f"{rest} of {total} {unit} do not fill a batch of {config.batch_size}{each}"
    return f"{fill} and are left out of each epoch, other ones each time"


def refuse_among_images(out: Path, spec: str) -> None:
    if spec.startswith("folder:"):
        refuse_as_out(out, Path(spec.removeprefix("folder:")).expanduser())


def train_and_evaluate(
    method: nn.Module, config: TrainConfig, data: Any, found: Found, given: dict, meeting: Meeting | None
) -> int:
    from fastssl.train.checkpoints import LAST, history_of, method_weights

    started, workers, out = time.perf_counter(), loader_workers(given["workers"], config.data), given["out"]
    done = found[1]["fastssl"]["history"][-1]["epoch"] if found else 0
    if found and done >= config.epochs:
        method.load_state_dict(method_weights(found[1]))
        noted, device, checkpoint, training = found[1], "cpu", found[0], None
        say(f"\ntrained for {counted(done, 'epoch')}")
    else:
        module = fit(method, config, data, found, given, workers, meeting)
        if module is None:
            return 0
        noted, device, checkpoint = module.noted(), module.device, out / LAST
        training = machine(device) | {"parameters": sum(each.numel() for each in method.parameters())}
        part = f", the last {config.epochs - done}" if done else ""
        say(f"\ntrained for {counted(config.epochs, 'epoch')}{part} in {duration(time.perf_counter() - started)}")
    how = {"checkpoint": checkpoint, "noted": noted, "kind": given["map"], "history": history_of(noted), "training": training}
    evaluate(method, data, config, device=device, workers=workers, **how)
    say(f"  checkpoint  {checkpoint}")
    return 0


def evaluate_run(argv: list[str]) -> int:
    """Evaluates a run directory or a checkpoint file; the pictures go beside the checkpoint."""
    given = eval_parser().parse_args_and_file(argv)
    PLACE.debug, device = given.debug, usable_device(given.device)
    refuse_unused_of_tasks(given)
    from fastssl.train.checkpoints import (
        config_of,
        data_changes,
        fingerprint,
        history_of,
        own_checkpoint,
        readable_checkpoint,
        restore_method,
    )
    from fastssl.train.downstream import TrainedRun
    from fastssl.train.tasks import asked_for, do_tasks

    path, checkpoint, warning = readable_checkpoint(given.run)
    PLACE.folder = path.parent
    if warning:
        say(warning, error=True)
    stored, own = config_of(checkpoint), checkpoint["fastssl"]
    refuse_unused_of_eval(given, stored.method)
    vote = {name: value for name in knn_vote(stored) if (value := getattr(given, name)) is not None}
    config, recipe, kept = changed(stored, **vote), RECIPES[stored.method], getattr(stored, "pixel_range", None)
    spec = given.data or config.data
    scale = given.pixel_range or (kept if spec.startswith("folder:") else None)
    data = recipe.load(changed(config, data=spec, image_size=own.get("image_size"), pixel_range=scale))
    changes = data_changes(checkpoint, data, recipe.unit) if data.name == stored.data else []
    if changes:
        warn(f"{data.name}: {' and '.join(changes)}; scores of then are left out")
    rescaled = spec.startswith("folder:") and scale != kept
    history = [] if data.name != stored.data or changes or rescaled else history_of(checkpoint)
    if changes and fingerprint(data.train)["classes"] != own["data"].get("train", {}).get("classes"):
        data = replace(data, name=f"{data.name}, changed")  # a classifier knows others
    workers = loader_workers(given.workers, spec)
    say(visible(f"{path}: {', '.join(filter(None, (stored.method, stored.backbone)))}, on {data.name}: {data.summary()}"))
    run = own_checkpoint(given.run, path, checkpoint)
    if asked_for(given):
        do_tasks(TrainedRun(path, checkpoint, config, data, device, workers, own=run[0] == path), given)
        say(f"  report      {write_report(*run)}")
        report_corrupt(data)
        return 0
    method = restore_method(checkpoint, data, path).to(device)
    how = {"checkpoint": path, "noted": checkpoint, "kind": given.map, "history": history, "run": run}
    evaluate(method, data, config, device=device, workers=workers, **how)
    return 0

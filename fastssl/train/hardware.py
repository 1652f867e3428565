"""The hardware that a command line of ``fastssl train`` asks for: whether lightning has a trainer for it, or why not."""

from fastssl._devices import OTHER_WORDS, why_no_gpu
from fastssl._options import closest
from fastssl.train import UsageError
from fastssl.train.settings import flag

HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")
COUNT_OF_CPUS = "on CPUs it is a number of processes, such as 2"


def check_hardware(given: dict) -> int:
    """Refuses a combination that lightning has no trainer for, before anything of an earlier run is moved -> how many processes."""
    from fastssl.train.loop import plain_trainer, quiet_lightning

    quiet_lightning()
    refuse_unknown(given["accelerator"], given["strategy"])
    try:
        trainer = plain_trainer(**{name: given[name] for name in HARDWARE}, logger=False, enable_checkpointing=False)
    except UsageError:
        raise
    except Exception as error:  # a dozen exception types
        raise explained(given, error) from error
    processes = max(trainer.world_size, trainer.num_devices * trainer.num_nodes)  # world_size is 1 until the processes are there
    if processes > 1 and not hasattr(trainer.strategy, "cluster_environment"):
        raise UsageError(f"--strategy {given['strategy']}: is for one process, and there are {processes}; leave the option out")
    return processes


def refuse_unknown(accelerator: str, strategy: str) -> None:
    """Raises UsageError for a name that lightning does not know."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    kinds = ("auto", "cpu", "gpu", *sorted({*AcceleratorRegistry.available_accelerators()} - {"cpu", "gpu"}))
    if accelerator not in kinds:
        hint = "; did you mean gpu?" if accelerator.casefold() in OTHER_WORDS else closest(accelerator, kinds)
        raise UsageError(f"--accelerator {accelerator}: must be one of {', '.join(kinds)}{hint}")
    if strategy not in ("auto", *StrategyRegistry.available_strategies()):
        raise UsageError(f"--strategy {strategy}: must be auto or ddp{closest(strategy, ('auto', 'ddp'))}")


def explained(given: dict, error: Exception) -> UsageError:
    """The options that lightning has no trainer for, and why."""
    kind, devices, why = given["accelerator"], given["devices"], why_no_gpu()
    if kind in ("gpu", "cuda") and why:
        return UsageError(f"--accelerator {kind}: cannot be used here: {why}")
    text = str(error) or type(error).__name__
    if "CPUAccelerator" in text:
        return UsageError(f"--devices {devices}: {COUNT_OF_CPUS}")
    if "not available" in text:
        return UsageError(f"--accelerator {kind}: cannot be used here: torch computes nothing on {kind} on this machine")
    named = [f"{flag(name)} {given[name]}" for name in HARDWARE if given[name] not in ("auto", "32", 1)]
    return UsageError(f"{' '.join(named) or '--accelerator, --devices, --strategy'}: {text.splitlines()[0]}")

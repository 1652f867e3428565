"""``config.yaml`` beside a run: the options with which ``fastssl train --config`` repeats it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastssl import __version__
from fastssl._config import write_options
from fastssl.train import TrainConfig, UsageError
from fastssl.train.options import refuse_unused
from fastssl.train.rundir import CONFIG
from fastssl.train.settings import settings_of

HOW = ("accelerator", "devices", "num_nodes", "strategy", "precision", "workers", "map")
HEADING = """The options of a run of fastssl {version}. This repeats it in another folder:
fastssl train --config {name} --out ANOTHER"""


def used(config: TrainConfig) -> Iterator[str]:
    """The settings that have a value and that the run uses: others are refused where they are given."""
    for name in settings_of(type(config)):
        try:
            refuse_unused((name,), config)
        except UsageError:
            continue
        if getattr(config, name) is not None:
            yield name


def options_of_run(config: TrainConfig, given: dict[str, Any]) -> dict[str, Any]:
    """The options, by name, that repeat a run.

    Args:
        config: the settings of the run.
        given: the options that say where and how it runs.
    """
    options = {"method": config.method, **{name: getattr(config, name) for name in used(config)}}
    if config.data.startswith("folder:"):
        folder = Path(config.data.removeprefix("folder:")).expanduser()
        options["data"] = f"folder:{folder.absolute()}"
    options |= {name: given[name] for name in HOW if given[name] is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def write_config(out: Path, config: TrainConfig, given: dict[str, Any]) -> None:
    """Writes the file into the folder of the run."""
    write_options(out / CONFIG, HEADING.format(version=__version__, name=CONFIG), options_of_run(config, given))

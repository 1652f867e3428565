"""The settings of a run. Each method has one frozen dataclass of them, and everything else is made from that dataclass.

A field holds all that there is to know about an option: its type, its default, and in its annotation an ``Option`` with the bounds
and the help text::

    temperature: Annotated[float, Option("temperature of {loss}", above=0)] = 0.5

The command line, its ``--help``, the check of a stored run and the table in ``docs/options.md`` read the fields; the checkpoint
stores them. A subclass that only gives a field another default keeps the field's ``Option``. A subclass that annotates an
``Option`` of its own replaces it. A field that has none is stored with the run and cannot be given on the command line.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from fastssl._options import number, one_of

C = TypeVar("C", bound="TrainConfig")
KNOWN: "dict[type[TrainConfig], dict[str, Setting]]" = {}
MOST_SEED = 2**32 - 1  # torch's generator of the CPU takes no more bits: a larger seed would be the run of a smaller one


@dataclass(frozen=True)
class Option:
    """What a field of the settings says about its option besides type and default.

    Args:
        help: what the option does. ``{unit}`` and ``{loss}`` stand for those of the method's recipe.
        least: the smallest value of a number.
        above: the bound that a number must lie above, where ``least`` is not given.
        most: the largest value of a number.
        choices: the words that the option takes.
        parse: text -> value, where type, bounds and choices do not say enough; raises ``argparse.ArgumentTypeError``.
        metavar: what stands for the value in the help text, for a ``parse`` that takes more than a word.
        default: what the help text says of the default in place of its value, such as "the encoder's width" where that is ``None``.
        only_with: another option and the value of it without which a run does not use this option.
        unused_at: another option and the value of it at which a run does not use this option; or two other options, and a run does
            not use this one where they have the same value.
    """

    help: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    default: str = ""
    only_with: tuple[str, str] | None = None
    unused_at: tuple[str, float | str] | None = None


@dataclass(frozen=True)
class Setting:
    """A field of a method's settings that has an option."""

    name: str
    hint: Any  # its type, without the Option
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        return flag(self.name)

    @property
    def shown_default(self) -> str:
        """The default as a person reads it; with ``{unit}`` in it, as the help text."""
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return self.option.default or ("" if self.default is None else str(self.default))

    def help(self, unit: str, loss: str) -> str:
        text = f"{self.option.help} (default: {self.shown_default})" if self.shown_default else self.option.help
        return text.format(unit=unit, loss=loss)

    def how(self) -> dict[str, Any]:
        """The arguments of argparse's ``add_argument`` that say which values the option takes."""
        option, types = self.option, types_of(self.hint)
        if bool in types:
            return {"action": argparse.BooleanOptionalAction}
        if option.choices:
            return one_of(*option.choices)
        parse = option.parse
        if parse is None and (int in types or float in types):
            low = option.least if option.above is None else option.above
            if low is None:
                raise TypeError(f"{self.name}: the option of a number needs least or above")
            parse = number(float if float in types else int, low, above=option.above is not None, most=option.most)
        how: dict[str, Any] = {} if parse is None else {"type": parse}
        return how | ({} if option.metavar is None else {"metavar": option.metavar})

    def refusal(self, value: Any) -> str | None:
        """Why a stored value is none that the option takes, such as "must be at least 8, got -32"; None where it takes it."""
        if not fits(value, self.hint):
            return f"is {value!r}"
        parse = self.how().get("type")
        if value is None or parse is None:
            return None
        try:
            parse(",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        except argparse.ArgumentTypeError as error:
            return str(error)
        return None


def flag(name: str) -> str:
    """A setting as it is typed on the command line: ``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def types_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union consists of, without their parameters: ``tuple[float, float] | None`` -> (tuple, NoneType)."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(part) or part for part in parts)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a setting; a whole number is a float too."""
    types = types_of(hint)
    return isinstance(value, (*types, int) if float in types else types)


def settings_of(config: "type[TrainConfig]") -> dict[str, Setting]:
    """The settings of a method that have an option, by name, those of all methods first."""
    if config not in KNOWN:
        KNOWN[config] = read_settings(config)
    return KNOWN[config]


def read_settings(config: "type[TrainConfig]") -> dict[str, Setting]:
    """What ``settings_of`` keeps: the annotations of all methods take most of a second to read."""
    found = {
        name: extra
        for part in reversed(config.__mro__)
        for name, hint in get_annotations(part).items()
        for extra in get_args(hint)
        if isinstance(extra, Option)
    }
    hints = get_type_hints(config)
    return {
        field.name: Setting(field.name, hints[field.name], field.default, found[field.name])
        for field in fields(config)
        if field.name in found
    }


def changed(config: C, **values: Any) -> C:
    """``config`` with those of the values that it has a field for."""
    return replace(config, **{name: value for name, value in values.items() if hasattr(config, name)})


def knn_vote(config: "TrainConfig") -> dict[str, Any]:
    """How the neighbours vote in a run: ``knn_k`` and ``knn_t``; {} for a method that is scored in another way."""
    return {name: getattr(config, name) for name in ("knn_k", "knn_t") if hasattr(config, name)}


def data_name(text: str) -> str:
    """An argparse type: the name of a data set."""
    if not text.strip().removeprefix("folder:"):
        raise argparse.ArgumentTypeError(f"must name a data set, got '{text}'")
    return text


LearningRate = Annotated[float | None, Option("peak learning rate", above=0)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings that every method has. They define a run: its checkpoints store them, and ``--resume`` takes them from there."""

    method: str = ""
    data: Annotated[str, Option("photos, digits, or folder:PATH (class subfolders, or flat)", parse=data_name)] = "photos"
    backbone: str = ""  # the name of the encoder; it and the next three are options of the methods that annotate one
    image_size: int | None = None
    channels: int = 3
    patch_size: int | None = None
    epochs: Annotated[int, Option("passes over the training {unit}", least=1)] = 8
    batch_size: Annotated[
        int,
        Option(
            "{unit} per step and device; without this option, a smaller data set is one batch; {unit} at the end of an epoch that "
            "fill no batch are left out",
            least=2,
        ),
    ] = 256
    optimizer: Annotated[str, Option("adamw, sgd, or lars in the form of MoCo v3's code", choices=("adamw", "sgd", "lars"))] = (
        "adamw"
    )
    lr: Annotated[
        float | None,
        Option(
            "peak learning rate",
            above=0,
            default="0.002 for adamw, 0.1 for sgd, 0.3 for lars, times the {unit} of a step / 256",
        ),
    ] = None
    weight_decay: Annotated[float, Option("weight decay of matrices and filters", least=0)] = 1e-4
    warmup_epochs: Annotated[float, Option("epochs of linear warm-up before the cosine", least=0)] = 1.0
    knn_every: Annotated[int, Option("epochs between two evaluations during training", least=1)] = 2
    seed: Annotated[int, Option("seed of initialisation, shuffling and augmentation", least=0, most=MOST_SEED)] = 0

"""``fastssl eval RUN --few-shot``: kNN and linear probe that know the labels of a few images of each class.

Which images these are is drawn several times. The accuracies a_1 ... a_n of n draws have the mean m and the standard deviation s
(with n - 1), and the 95 % confidence interval of the mean is m +- q s / sqrt(n), q the 0.975 quantile of Student's t with n - 1
degrees of freedom. It tells how much the choice of the labels matters, not how much the training's seed or the test images do.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastssl.train import UsageError
from fastssl.train.downstream import ENCODERS, Half, TrainedRun
from fastssl.train.evaluate import knn_accuracy, linear_probe_accuracy
from fastssl.train.progress import say
from fastssl.train.recipes import RECIPES
from fastssl.train.samples import some_of_each
from fastssl.train.scores import Table, keep
from fastssl.train.settings import knn_vote

LABELS, DRAWS = (1, 5, 10, 20), 20
INTERVAL = "95 % confidence interval (Student's t)"
PROBES = {"kNN": "weighted kNN", "probe": "linear probe"}


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval, from ``mean - half`` to ``mean + half``."""

    mean: float
    half: float


def confidence_interval(values: Sequence[float]) -> Interval:
    """The mean of several values with its 95 % confidence interval by Student's t.

    Args:
        values: at least two numbers, such as accuracies with different labels.

    Returns:
        An ``Interval``: its ``mean``, and ``half``, half of the length of the interval around it.

    Examples:
        >>> found = confidence_interval([0.5, 0.7])
        >>> round(found.mean, 3), round(found.half, 3)
        (0.6, 1.271)
    """
    from scipy.stats import t

    count, mean = len(values), math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count))


def draw_labels(labels: Tensor, per_class: int, draws: int, seed: int) -> list[Tensor]:
    """Which samples have a label in each draw: for all encoders the same, and of fewer labels a class a part of those of more.

    Args:
        labels: (N,) int64 of the training images.
        per_class: labels of each class; all of a class that has fewer.
        draws: how many times is drawn.
        seed: of the first draw; the next ones take the next seeds.

    Returns:
        ``draws`` tensors of indices into ``labels``.
    """
    return [some_of_each(labels, per_class, torch.Generator().manual_seed(seed + draw)) for draw in range(draws)]


def few_shot_accuracies(
    train: Half, test: Half, num_classes: int, chosen: Iterable[Tensor], *, knn_k: int, knn_t: float
) -> dict[str, list[float]]:
    """Test accuracy of a kNN vote and of a linear probe, for each of the ``chosen`` training samples."""
    found: dict[str, list[float]] = {name: [] for name in PROBES}
    for index in chosen:
        few = train[0][index], train[1][index]
        found["kNN"].append(knn_accuracy(few, test, num_classes, knn_k, knn_t))
        found["probe"].append(linear_probe_accuracy(few, test))
    return found


def numbers_of_labels(wanted: Sequence[int] | None, labels: Tensor, class_names: Sequence[str]) -> list[int]:
    """The numbers of labels a class that every class has images for; one that was ``wanted`` and that a class lacks is refused."""
    counts = labels.bincount()
    smallest = int(counts.where(counts > 0, counts.max()).argmin())
    most = int(counts[smallest])
    if wanted is not None and max(wanted) > most:
        raise UsageError(f"--labels {max(wanted)}: class {class_names[smallest]} has only {most} training samples that can be read")
    return [number for number in wanted or LABELS if number <= most]


def few_shot(run: TrainedRun, labels: Sequence[int] | None, draws: int | None, seed: int) -> None:
    """Prints a table of accuracies with few labels, of the untrained and the trained encoder, and draws ``few_shot.png``."""
    (_, classes), (_, tested) = run.embeddings["trained"]
    numbers, draws = numbers_of_labels(labels, classes, run.labelled.class_names), draws or DRAWS
    vote = {"knn_k": 20, "knn_t": 0.1} | knn_vote(run.config)
    rows: dict[int, dict[tuple[str, str], Interval]] = {}
    say(f"kNN and linear probe with {', '.join(map(str, numbers))} labels a class, drawn {draws} times ...")
    for number, encoder in ((number, encoder) for number in numbers for encoder in ENCODERS):
        chosen = draw_labels(classes.cpu(), number, draws, seed)
        how = vote | {"knn_k": min(vote["knn_k"], number)}
        train, test = run.embeddings[encoder]
        found = few_shot_accuracies(train, test, len(run.labelled.class_names), chosen, **how)
        rows.setdefault(number, {}).update({(name, encoder): confidence_interval(values) for name, values in found.items()})
    say(f"{RECIPES[run.config.method].heading}, {len(tested)} of them, with few labels: mean of {draws} draws ± {INTERVAL}")
    print_table(rows, vote["knn_k"])
    path = run.place("few_shot.png")
    draw_few_shot(rows, path, draws=draws, title=f"{run.config.method}, {run.labelled.name}")
    say(f"  picture     {path}")
    keep(path.parent, few_shot_table(run, rows, draws), drawn={path.name: run.labelled.name})


def few_shot_table(run: TrainedRun, rows: dict[int, dict[tuple[str, str], Interval]], draws: int) -> Table:
    """The accuracies, each with half of its interval, for ``scores.json``."""
    kept = [(name, encoder) for name in PROBES for encoder in ENCODERS]
    values = tuple(
        (f"{number} label{'s' * (number > 1)} a class", tuple((found[each].mean, found[each].half) for each in kept))
        for number, found in rows.items()
    )
    heading = f"{RECIPES[run.config.method].heading}, mean of {draws} draws ± {INTERVAL}"
    columns = tuple(f"{name}, {encoder}" for name, encoder in kept)
    return run.table("few labels", heading, values, columns=columns, names=tuple(f"labels_{number}" for number in rows))


def print_table(rows: dict[int, dict[tuple[str, str], Interval]], knn_k: int) -> None:
    columns = [(name, encoder) for name in PROBES for encoder in ENCODERS]
    say("  labels    " + "".join(f"{f'{name}, {encoder}':>17}" for name, encoder in columns))
    for number, found in rows.items():
        cells = [f"{found[column].mean:.3f} ± {found[column].half:.3f}" for column in columns]
        say(f"  {number:<10}" + "".join(f"{cell:>17}" for cell in cells))
    say(f"  labels are those of a class; of the kNN as many neighbours vote, at most {knn_k}")


def draw_few_shot(rows: dict[int, dict[tuple[str, str], Interval]], path: Path, *, draws: int, title: str) -> None:
    """A panel for each probe: accuracy against the labels of a class, with the confidence intervals."""
    from fastssl.train.pictures import COLOURS, STYLE, label_ends, plt, save

    places, colours = range(len(rows)), {"untrained": "0.45", "trained": COLOURS[5]}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(PROBES), figsize=(10.5, 4), sharey=True, layout="constrained")
        for axis, (name, heading) in zip(axes.flat, PROBES.items(), strict=True):
            axis.set(title=heading, xlabel="labels a class", ylim=(0, 1), xticks=places, xticklabels=rows)
            axis.grid(axis="y", color="0.9")
            ends = {}
            for encoder, colour in colours.items():
                found = [row[name, encoder] for row in rows.values()]
                heights, halves = [each.mean for each in found], [each.half for each in found]
                axis.errorbar(places, heights, halves, color=colour, marker="o", markersize=4, capsize=3)
                ends[encoder] = (heights[-1], colour)
            label_ends(axis, ends)
        axes[0].set(ylabel="accuracy")
        figure.suptitle(f"{title}: mean of {draws} draws of the labels, 95 % confidence intervals", fontsize=11)
        save(figure, path)

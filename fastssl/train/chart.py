"""A line chart as numbers of an SVG picture, which the report of a run writes into its page.

In the page its words and colours are those of the page, in a light and in a dark scheme, and a chart costs a millisecond; a picture
of matplotlib has neither. The ticks are matplotlib's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 52, 12, 40
MOST_POINTS = 600  # of a line; of more, that many evenly spaced

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What the template draws; lengths are units of the picture, ``WIDTH`` x ``HEIGHT``.

    Args:
        title: what the chart shows.
        text: the same in a sentence, for those who do not see it.
        x_label: below the horizontal axis.
        x_ticks, y_ticks: place and text of each tick.
        line: the points of the line, "x,y x,y ...".
        dots: their places, where there are few.
        faint: the points of a second line behind it; "" for none.
        last: place and text of the line's end.
        level: height and text of the dashed line, and the height of the text; None for none.
    """

    title: str
    text: str
    x_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    line: str
    dots: tuple[tuple[float, float], ...]
    faint: str
    last: tuple[float, float, str]
    level: tuple[float, str, float] | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, with about ``most`` steps between them."""
    from matplotlib.ticker import MaxNLocator

    return [
        float(each) for each in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1).tick_values(low, high)
    ]


def thinned(points: Points) -> Points:
    """``points``, or ``MOST_POINTS`` of them, evenly spaced, the last one among them."""
    count = len(points)
    if count <= MOST_POINTS:
        return points
    return [points[round(i * (count - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def line_chart(
    points: Points,
    *,
    title: str,
    text: str,
    faint: Points = (),
    level: tuple[float, str] | None = None,
    form: str = ".3f",
    share: bool = False,
) -> Chart:
    """A chart of one line over epochs.

    Args:
        points: epoch and value, at least one pair, all finite.
        title, text: as ``Chart`` has them.
        faint: a second line behind it.
        level: a value that a dashed line marks, and its name.
        form: how the values at the end of the lines are written.
        share: whether the values are shares, whose axis goes from 0 to 1.
    """
    points, faint = thinned(points), thinned(faint)
    values = [value for _, value in (*points, *faint)] + ([level[0]] if level else [])
    low, high = (0.0, 1.0) if share and min(values) >= 0 and max(values) <= 1 else (min(values), max(values))
    if low == high:
        low, high = low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1)
    rows = ticks(low, high, 5)
    last = max(epoch for epoch, _ in (*points, *faint))
    columns = [each for each in ticks(0, max(last, 1), 6, whole=True) if each <= max(last, 1)]

    def x(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(last, 1), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (rows[-1] - value) / (rows[-1] - rows[0]), 1)

    def path(each: Points) -> str:
        return " ".join(f"{x(epoch)},{y(value)}" for epoch, value in each)

    end = points[-1]
    under = level is not None and 0 <= y(level[0]) - y(end[1]) < 24  # the line ends just above the dashed one
    return Chart(
        title=title,
        text=text,
        x_label="epoch",
        x_ticks=tuple((x(each), f"{each:g}") for each in columns),
        y_ticks=tuple((y(each), f"{each:g}") for each in (round(row, 12) for row in rows)),
        line=path(points),
        dots=tuple((x(epoch), y(value)) for epoch, value in points) if len(points) <= 40 else (),
        faint=path(faint) if len(faint) > 1 else "",
        last=(x(end[0]), y(end[1]), f"{end[1]:{form}}"),
        level=(y(level[0]), f"{level[1]} {level[0]:{form}}", y(level[0]) + (15 if under else -6)) if level else None,
    )

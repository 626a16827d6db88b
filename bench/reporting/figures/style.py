"""The look of figures: sizes of a paper's column and page, fonts, headline, legend, files without dates."""

from __future__ import annotations

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bench.reporting.statistics import Interval
from bench.text import clean

COLUMN, PAGE = 3.5, 7.16  # inches
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#5E3C99")
GREY = "#555555"
MARKERS = ("", "s", "^", "D", "v", "P", "X", "p")  # none: a line alone, a disc where there is no line
LINES = ("", "-.")  # from the second round of colours on
TOGETHER = len(PALETTE)  # series of one panel; more are small multiples
PANELS = 24  # the curves of more panels are in the CSV alone
ERROR_BARS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 1.8, "capthick": 0.8}
LABEL = 44  # characters of a line of a label in a legend
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
    "text.usetex": False,
    "savefig.dpi": 200,
}


class Drawn(Figure):
    """A figure that is drawn without pyplot: no window, nothing to close; a notebook shows it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return render(self, "png")


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw and save in the style of the figures."""
    settings: dict[Any, Any] = {**sns.axes_style("ticks"), **_STYLE}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # a name may be in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Return text on at most so many lines of ``width`` characters."""
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=lines, placeholder=" …"))


def new_figure(
    title: str, width: float, height: float, labels: Sequence[str] | None = None, further: int = 0
) -> Drawn:
    """Return an empty figure, to be drawn while ``styled()``.

    Args:
        title: Above the axes, on at most two lines.
        width: Of the figure, in inches.
        height: Of the axes, in inches.
        labels: The entries of a legend below the axes; None: no legend.
        further: Further entries that the legend has room for.
    """
    headline = wrapped(title, int(width * 15), 2)
    if labels is not None:
        height += 0.125 * -(-(len(labels) + further) // _legend_columns(labels, width)) + 0.1
    if headline:
        height += 0.14 * len(headline.splitlines()) + 0.06
    figure = Drawn(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(headline, fontsize=8)
    return figure


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many columns a legend of these labels has in a figure so many inches wide."""
    longest = max((min(len(label), LABEL) for label in labels), default=10)
    longest = max(longest, 22)  # "the mean's 95 % interval"
    return max(1, min(4, int(width / (0.055 * longest + 0.38))))


def plain_log(axis: Axes) -> None:
    """Label a logarithmic axis, which has its limits by now, with a few short numbers (0.002, 1.5e13)."""
    low, high = axis.get_xlim()
    between = (1.0, 2.0, 5.0) if high / low >= 10 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=between, numticks=7))
    if high / low < 1.3:  # less than a step of the numbers above
        axis.xaxis.set_major_locator(MaxNLocator(4))
    ticks = [tick for tick in axis.xaxis.get_majorticklocs() if low <= tick <= high]
    exact = [digits for digits in (2, 3, 4, 5) if len({f"{t:.{digits}g}" for t in ticks}) == len(ticks)]
    digits = exact[0] if exact else 6
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}g}".replace("e+", "e")))
    axis.xaxis.set_minor_formatter(NullFormatter())


def limit_to_accuracies(axis: Axes) -> None:
    """Keep an axis of percents within 0 and 101: intervals may reach beyond, accuracies cannot."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0.0), min(high, 101.0))


def accuracy_bars(intervals: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """Return the error bars of accuracies in percent, below and above the means, as far as 0 and 100 %.

    A few seeds that differ widely have an interval beyond any accuracy. Every interval has a mean. A single
    seed has no half width: its bars have length 0.
    """
    below = [min(one.half or 0.0, one.mean or 0.0) for one in intervals]
    above = [min(one.half or 0.0, 100.0 - (one.mean or 0.0)) for one in intervals]
    return below, above


def handle(label: str, **look: Any) -> Line2D:
    """Return an entry of a legend."""
    return Line2D([], [], **{"color": "black", **look}, label=wrapped(label, LABEL, 2))


def legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """Put a legend below the axes, in columns wide enough for ``labels``, and lay the figure out."""
    columns = _legend_columns(labels, figure.get_figwidth())
    spacing: dict[str, Any] = {"columnspacing": 1.2, "labelspacing": 0.25}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **spacing)
    figure.canvas.draw()


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``png`` or ``pdf`` bytes without dates or versions, and close nothing."""
    out = io.BytesIO()
    omitted = ("Software",) if kind == "png" else ("CreationDate", "Creator", "Producer")
    with styled():
        figure.savefig(out, format=kind, metadata=dict.fromkeys(omitted))
    return out.getvalue()

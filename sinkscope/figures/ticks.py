"""Marks of a logarithmic axis that a reader can read: plain numbers, several of them whatever the range."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator


def logarithmic_heights(axes: Axes) -> None:
    """Make the y axis logarithmic, marked at 1, 2, 5, 10, 20 ..; more closely over little more than one power of ten,
    and at powers of ten alone over more than three. Call it when all is drawn."""
    axes.set_yscale("log")
    plain_marks(axes.yaxis, *axes.get_ylim())


def plain_marks(axis: Axis, low: float, high: float) -> None:
    """Mark a logarithmic axis between `low` and `high` in this way."""
    if high < 4 * low:
        marks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        steps = (1, 2, 3, 5) if high < 12 * low else (1, 2, 5) if high < 1000 * low else (1,)
        marks = LogLocator(subs=steps).tick_values(low, high)
    axis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())

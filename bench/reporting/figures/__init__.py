"""Figures: convergence curves, accuracy by width, gains. Drawn for a paper's column (3.5 inches) or its page
(7.16).

Files hold no dates, so equal records give equal files on equal versions of the libraries.
"""

from __future__ import annotations

from bench.reporting.figures.convergence import convergence_figure
from bench.reporting.figures.forest import forest_figure
from bench.reporting.figures.schedules import schedule_figure
from bench.reporting.figures.series import curve_data, looks, panels
from bench.reporting.figures.style import PANELS, render
from bench.reporting.figures.widths import width_figure

__all__ = [
    "PANELS",
    "convergence_figure",
    "curve_data",
    "forest_figure",
    "looks",
    "panels",
    "render",
    "schedule_figure",
    "width_figure",
]

"""Figures: curves, accuracy by width, gains, costs, searches, ablations; for a paper's column or its page.

A column is 3.5 inches wide, a page 7.16. Files hold no dates, so equal records give equal pictures on equal
versions of the libraries; a PDF may differ in the tenth digit of a label's position.
"""

from __future__ import annotations

from bench.reporting.figures.convergence import convergence_figure
from bench.reporting.figures.costs import cost_figure
from bench.reporting.figures.forest import claim_rows, forest_figure, gain_rows
from bench.reporting.figures.heat import heat_figure
from bench.reporting.figures.plans import draw, gains_figure, plans
from bench.reporting.figures.schedules import schedule_figure
from bench.reporting.figures.series import curve_data, looks, panels
from bench.reporting.figures.style import PANELS, render
from bench.reporting.figures.tuning import tuning_figure
from bench.reporting.figures.widths import width_figure

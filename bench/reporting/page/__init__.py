"""Self-contained pages: one of each experiment, and one over all experiments with the leaderboard.

A page is one HTML file. Tables are DataTables (the bundle of itables), curves are plotly's; both bundles
stand in the file, so a page opens from disk without a server and without a network.
"""

from __future__ import annotations

from bench.reporting.page.experiment import page
from bench.reporting.page.leaderboard import leaderboard_page

__all__ = ["leaderboard_page", "page"]

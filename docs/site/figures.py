"""Draw the figures of the documentation: ``python -m docs.site.figures`` writes ``docs/figures/*.svg``.

``method.svg`` shows where each merge adds the full-precision branch, and how the factor falls. ``rooms.svg``
shows the layers of imports as ``pyproject.toml`` declares them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "figures"
LOW, FULL, OTHER, INK = "#cfe1f5", "#fbdcc0", "#eeeeee", "#222222"
UNTIL = 0.5  # the end of the factor, as a part of training


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.5) -> None:
    """Draw a box of one unit of height around (x, y), with its text."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.3),
        width,
        0.6,
        boxstyle="round,pad=0.02,rounding_size=0.1",
        fc=colour,
        ec=INK,
        lw=0.8,
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)


def arrow(axes: Axes, *points: tuple[float, float], dashed: bool = False) -> None:
    """Draw a line through ``points`` with a head at the last."""
    style = {"color": INK, "lw": 1.0, "linestyle": (0, (3, 2)) if dashed else "solid"}
    if len(points) > 2:
        axes.plot(*zip(*points[:-1], strict=True), **style)  # type: ignore[arg-type]
    axes.annotate(
        "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style}
    )


def merge(axes: Axes, title: str, behind: bool, sign: str) -> None:
    """Draw one merge: the low-precision path on the left, the branch on the right, upwards."""
    axes.set(xlim=(-0.2, 4.2), ylim=(-0.75, 5.9), aspect="equal")
    axes.axis("off")
    axes.set_title(title, fontsize=10, fontweight="bold", color=INK, pad=2)
    axes.text(2, -0.55, "x", ha="center", va="center", fontsize=10, style="italic")
    arrow(axes, (2, -0.3), (2, 0), (1, 0), (1, 0.7))
    arrow(axes, (2, -0.3), (2, 0), (3, 0), (3, 0.7), dashed=True)
    box(axes, 1, 1, "LP conv", LOW)
    box(axes, 3, 1, "FP conv", FULL)
    if behind:
        arrow(axes, (1, 1.3), (1, 1.9))
        box(axes, 1, 2.2, "BN", OTHER)
        arrow(axes, (1, 2.5), (1, 3.1))
        box(axes, 1, 3.4, "activation", OTHER)
        arrow(axes, (3, 1.3), (3, 1.9), dashed=True)
        box(axes, 3, 2.2, "BN′", FULL)
        arrow(axes, (3, 2.5), (3, 3.1), dashed=True)
        box(axes, 3, 3.4, "× f(t)", FULL)
        arrow(axes, (1, 3.7), (1, 4.6), (1.7, 4.6))
        arrow(axes, (3, 3.7), (3, 4.6), (2.3, 4.6), dashed=True)
        node(axes, 2, 4.6, sign)
        arrow(axes, (2, 4.9), (2, 5.6))
    else:
        arrow(axes, (3, 1.3), (3, 1.9), dashed=True)
        box(axes, 3, 2.2, "× f(t)", FULL)
        arrow(axes, (1, 1.3), (1, 1.9))
        node(axes, 1, 2.2, sign)
        arrow(axes, (2.25, 2.2), (1.3, 2.2), dashed=True)
        arrow(axes, (1, 2.5), (1, 3.1))
        box(axes, 1, 3.4, "BN", OTHER)
        arrow(axes, (1, 3.7), (1, 4.3))
        box(axes, 1, 4.6, "activation", OTHER)
        arrow(axes, (1, 4.9), (1, 5.6))


def node(axes: Axes, x: float, y: float, sign: str) -> None:
    """Draw the place where two paths meet."""
    axes.add_patch(plt.Circle((x, y), 0.3, fc="white", ec=INK, lw=0.9))
    axes.text(x, y, sign, ha="center", va="center", fontsize=9, color=INK)


def method() -> None:
    """Write ``method.svg``."""
    figure = plt.figure(figsize=(8.2, 4.9))
    grid = figure.add_gridspec(
        2, 4, height_ratios=(3.1, 1), hspace=0.12, wspace=0.05, left=0.07, right=0.985, top=0.94, bottom=0.115
    )
    for column, (title, behind, sign) in enumerate(
        [("sum", True, "+"), ("difference", True, "−"), ("concat", True, "‖"), ("preactivation", False, "+")]
    ):
        merge(figure.add_subplot(grid[0, column]), title, behind, sign)
    axes = figure.add_subplot(grid[1, :])
    progress = np.linspace(0, 1, 401)
    axes.plot(
        progress,
        np.where(progress < UNTIL, (1 + np.cos(np.pi * progress / UNTIL)) / 2, 0),
        color="#c8641e",
        lw=2,
    )
    axes.axvline(UNTIL, color=INK, lw=0.8, linestyle=(0, (3, 2)))
    axes.text(UNTIL / 2, 0.12, "both paths are trained", ha="center", fontsize=8)
    axes.text(
        (1 + UNTIL) / 2,
        0.42,
        "the branch is removed:\nthe low-precision network alone is trained, and ships",
        ha="center",
        fontsize=8,
    )
    axes.set(xlim=(0, 1), ylim=(-0.05, 1.08), xlabel="part of the training steps", ylabel="f(t)")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "method.svg", "Where each merge adds the branch, and how the factor falls.")


def import_layers() -> list[str]:
    """Return the layers of imports that ``pyproject.toml`` declares, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")


def rooms() -> None:
    """Write ``rooms.svg`` from the contract of import-linter."""
    layers = import_layers()
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(layers)))
    axes.set(xlim=(-0.6, 10), ylim=(-len(layers) + 0.4, 0.6))
    axes.axis("off")
    for row, layer in enumerate(layers):
        names = [name.strip(" ()").removeprefix("bench.") for name in layer.split("|")]
        width = 9.8 / len(names)
        for column, name in enumerate(names):
            shape = FancyBboxPatch(
                (0.1 + column * width, -row - 0.34),
                width - 0.15,
                0.68,
                boxstyle="round,pad=0,rounding_size=0.12",
                fc=LOW,
                ec=INK,
                lw=0.7,
            )
            axes.add_patch(shape)
            axes.text(
                0.1 + column * width + (width - 0.15) / 2,
                -row,
                name,
                ha="center",
                va="center",
                fontsize=8,
                color=INK,
            )
    arrow(axes, (-0.3, 0.3), (-0.3, -len(layers) + 0.7))
    axes.text(-0.5, -len(layers) / 2, "imports", rotation=90, ha="center", va="center", fontsize=8)
    figure.subplots_adjust(left=0.02, right=0.99, top=0.99, bottom=0.01)
    save(figure, "rooms.svg", "; ".join(layers))


def save(figure: plt.Figure, name: str, description: str) -> None:
    """Write a figure that is the same each time that it is drawn; its description is kept in the file."""
    OUT.mkdir(exist_ok=True)
    figure.savefig(
        OUT / name, facecolor="white", metadata={"Date": None, "Creator": None, "Description": description}
    )
    plt.close(figure)


def main() -> None:
    """Draw all figures."""
    with mpl.rc_context({"svg.hashsalt": "progressive-bench", "font.family": "DejaVu Sans"}):
        method()
        rooms()


if __name__ == "__main__":
    main()

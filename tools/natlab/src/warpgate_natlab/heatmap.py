"""Draws a matrix: one square per pair, coloured by time, with who won. Needs matplotlib.

Grey is a pair without a path, white one that was not run. The colours (viridis) can be told apart
by the colour-blind and in print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .matrix import Cell

SLOWEST_S: Final = 3.0
"""The colour scale ends here."""
DARK_S: Final = 1.4
"""From here on the squares are so dark that white is read better."""
SHORT: Final = {
    "direct_connect": "direct", "reverse_connect": "reverse", "tcp_punch": "tcp",
    "udp_punch": "udp", "random_probe": "probe", "turn": "relay",
}  # fmt: skip


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write ``matrix.png`` and ``matrix.svg``.

    Raises:
        ImportError: matplotlib is missing.

    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for cell in cells for name in (cell.a, cell.b)))
    place = {name: number for number, name in enumerate(names)}
    grid: list[list[float]] = [[float("nan")] * len(names) for _ in names]
    with mpl.rc_context({"svg.hashsalt": "natlab", "font.size": 8}):
        side = 1.1 * len(names) + 2
        figure, axes = plt.subplots(figsize=(side + 1, side))
        for cell in cells:
            row, column = place[cell.a], place[cell.b]
            median = cell.median_s
            if median is not None:
                grid[row][column] = min(median, SLOWEST_S)
            _label(axes, row, column, cell)
        image = axes.imshow(grid, cmap="viridis_r", vmin=0, vmax=SLOWEST_S)
        label = "seconds from the call to the first answer (median); grey: no path"
        figure.colorbar(image, ax=axes, label=label, shrink=0.8, extend="max")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylabel("a (connects)")
        axes.set_xlabel("b")
        axes.set_xticks([number - 0.5 for number in range(1, len(names))], minor=True)
        axes.set_yticks([number - 0.5 for number in range(1, len(names))], minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        whole = sum(cell.connected == len(cell.runs) for cell in cells)
        runs = max((len(cell.runs) for cell in cells), default=0)
        times = "once each" if runs == 1 else f"{runs} runs each"
        axes.set_title(f"{whole} of {len(cells)} pairs connected in every run ({times})")
        figure.tight_layout()
        paths = [folder / "matrix.png", folder / "matrix.svg"]
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def _label(axes: Any, row: int, column: int, cell: Cell) -> None:
    total = len(cell.runs)
    median = cell.median_s
    colour = "black"
    if median is None:
        text = "no path"
        axes.fill_between((column - 0.5, column + 0.5), row - 0.5, row + 0.5, color="#dddddd", lw=0)
    else:
        colour = "white" if median > DARK_S else "black"
        won = ", ".join(SHORT.get(name, name) for name in cell.strategies.split(", "))
        part = "" if cell.connected == total else f"\n{cell.connected}/{total}"
        text = f"{median:.2f} s\n{won}{part}"
    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)

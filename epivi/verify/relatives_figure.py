"""Figure of the correlations by kind of relative, from the table `relatives`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epivi.cohort.relatives import KINDS, WITHOUT_BLOOD
from epivi.verify.figures import BLUE, GREEN, GREY, ORANGE

Rows = Sequence[Mapping[str, Any]]
COLOURS = {"within": BLUE, "across": GREEN}
ROW_INCHES, WIDTH_INCHES = 0.28, 6.4


def relatives_figure(rows: Rows, reference: str) -> Figure:
    """A panel of all pairs, and one for each column of the sheet with pairs within and across its levels.

    Dots are correlations, bars their 95 % intervals over families; a cross stands for one without an interval. Kinds
    without blood in common, which should not differ from 0, are orange.
    """
    columns = list(dict.fromkeys(row["column"] for row in rows))
    kinds = [kind for kind in [*KINDS, "same level"] if any(row["kind"] == kind for row in rows)]
    height = ROW_INCHES * len(kinds) + 0.6
    figure = Figure(figsize=(WIDTH_INCHES, height * max(len(columns), 1) + 0.8), layout="constrained")
    figure.suptitle("Correlation of logits by kind of relative", fontsize=11)
    axes = figure.subplots(max(len(columns), 1), 1, squeeze=False, sharex=True)[:, 0]
    for panel, column in zip(axes, columns, strict=False):
        _panel(panel, [row for row in rows if row["column"] == column], kinds, column)
    words = reference.replace("_", " ") or "nothing"
    axes[-1].set_xlabel(f"correlation above that of {words}; bars: 95 % over families", fontsize=8)
    return figure


def _panel(panel: Axes, rows: Rows, kinds: Sequence[str], column: str) -> None:
    shown = [kind for kind in kinds if any(row["kind"] == kind for row in rows)]
    panel.axvline(0, color=GREY, linewidth=0.8)
    for row in rows:
        shift = {"within": -0.15, "across": 0.15}.get(row["level"], 0.0)
        colour = COLOURS.get(row["level"], ORANGE if row["kind"] in WITHOUT_BLOOD else BLUE)
        place = shown.index(row["kind"]) + shift
        if not np.isfinite(row["correlation"]):
            continue
        has_interval = np.isfinite(row["lower"])
        panel.plot(row["correlation"], place, "o" if has_interval else "x", color=colour, markersize=4)
        if has_interval:
            panel.plot([row["lower"], row["upper"]], [place, place], color=colour, linewidth=1)
    labels = [f"{kind.replace('_', ' ')} ({_pairs(rows, kind)})" for kind in shown]
    panel.set_yticks(range(len(shown)), labels, fontsize=8)
    panel.set_ylim(len(shown) - 0.5, -0.5)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    if column:
        panel.set_title(f"by {column}", fontsize=9, loc="left")
        handles = [panel.plot([], [], "o", color=colour, markersize=4)[0] for colour in COLOURS.values()]
        panel.legend(handles, [f"{level} a level" for level in COLOURS], fontsize=7, frameon=False)


def _pairs(rows: Rows, kind: str) -> str:
    return " + ".join(f"{row['pairs']:,}" for row in rows if row["kind"] == kind)

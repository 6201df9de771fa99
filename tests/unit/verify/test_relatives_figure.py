"""The figure of the relatives: a mark for each correlation that is known, a panel for each column."""

from __future__ import annotations

from io import StringIO
from typing import Any

from epivi.verify.figures import BLUE, GREEN, ORANGE
from epivi.verify.relatives_figure import relatives_figure

NAN = float("nan")


def row(kind: str, correlation: float, column: str = "", level: str = "", reach: float = 0.1) -> dict[str, Any]:
    interval = {"lower": correlation - reach, "upper": correlation + reach}
    return {"column": column, "kind": kind, "level": level, "pairs": 12, "correlation": correlation} | interval


def test_marks_are_where_the_correlations_are() -> None:
    rows = [
        row("mother_child", 0.3),
        row("full_sibs", NAN),
        row("mates", 0.02, reach=NAN),
        row("mother_child", 0.5, "batch", "within"),
        row("mother_child", 0.1, "batch", "across"),
    ]
    figure = relatives_figure(rows, "unrelated")
    whole, batch = figure.axes
    dots = {
        (line.get_xdata()[0], line.get_marker(), line.get_color())
        for line in whole.lines[1:]
        if len(line.get_xdata()) == 1
    }
    assert dots == {(0.3, "o", BLUE), (0.02, "x", ORANGE)}
    assert [label.get_text() for label in whole.get_yticklabels()] == [
        "mother child (12)",
        "full sibs (12)",
        "mates (12)",
    ]
    dots = {(line.get_xdata()[0], line.get_color()) for line in batch.lines[1:] if len(line.get_xdata()) == 1}
    assert dots == {(0.5, BLUE), (0.1, GREEN)}
    assert batch.get_title(loc="left") == "by batch"
    assert "unrelated" in batch.get_xlabel()
    drawn = StringIO()
    figure.savefig(drawn, format="svg")
    assert "<svg" in drawn.getvalue()


def test_a_table_without_any_pair_is_drawn_too() -> None:
    assert list(relatives_figure([], "").axes[0].lines) == []

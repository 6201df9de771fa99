"""Figures of the calibration, from its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# Distinguished by people who see colours differently as well (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, GREY, RED = "#0072b2", "#e69f00", "#009e73", "#999999", "#d55e00"
LEVEL_COLOURS = {0.5: GREEN, 0.9: BLUE, 0.95: ORANGE}
WEIGHT_COLOURS = {"given": BLUE, "estimated": ORANGE}
TOLERANCE = 0.015  # of coverage, shaded
PANEL_INCHES = (2.3, 1.9)
WIDE_PANEL_INCHES = (3.2, 3.0)


def calibration_figures(tables: Mapping[str, Rows]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of every picture of the tables calibration_<name> of CALIBRATE_TABLES, given by <name>."""
    scenarios = _distinct(tables["sbc"], "scenario")
    for scenario in scenarios:
        yield f"sbc_{scenario}", _sbc(_where(tables["sbc"], scenario=scenario), scenario)
    for kind, name in (("(true)", "coverage"), ("(averaged)", "coverage_averaged")):
        yield name, _coverage(_where(tables["coverage"], hypothesis=kind), scenarios)
    yield "lfdr", _lfdr(tables["lfdr"], scenarios)
    yield "fdr", _fdr(tables["fdr"], scenarios)
    yield "bayes_factors", _bayes_factors(tables["bayes_factors"], scenarios)
    yield "weights", _weights(tables["weights"], scenarios)


def _where(rows: Rows, **values: Any) -> Rows:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def _distinct(rows: Rows, name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def _panels(n_rows: int, n_columns: int, inches: tuple[float, float], title: str, **shared: Any) -> tuple[Figure, Any]:
    """A figure with a grid of panels, [n_rows, n_columns]."""
    size = (max(inches[0] * n_columns + 1.2, 5.0), inches[1] * n_rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **shared)
    for panel in axes.ravel():
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sbc(rows: Rows, scenario: str) -> Figure:
    """ECDF of the transforms less the diagonal, one row of panels a hypothesis, with the simultaneous band."""
    hypotheses = _distinct(rows, "hypothesis")
    parameters = _distinct(rows, "parameter")
    title = f"{scenario}: where the truth lies in its posterior, less what is expected"
    figure, axes = _panels(len(hypotheses), len(parameters), PANEL_INCHES, title, sharex=True)
    for i, hypothesis in enumerate(hypotheses):
        for k, parameter in enumerate(parameters):
            panel, part = axes[i, k], _where(rows, hypothesis=hypothesis, parameter=parameter)
            if i == 0:
                panel.set_title(_words(parameter), fontsize=9)
            if k == 0:
                panel.set_ylabel(hypothesis, fontsize=9)
            if part:
                _ecdf_difference(panel, part)
            else:
                panel.set_axis_off()
    figure.supxlabel(
        "value of the posterior distribution function at the truth; shaded: 95 % of uniform ones", fontsize=8
    )
    return figure


def _ecdf_difference(panel: Axes, rows: Rows) -> None:
    point, ecdf, lower, upper = (_column(rows, name) for name in ("point", "ecdf", "lower", "upper"))
    is_outside = ((ecdf < lower) | (ecdf > upper)).any()
    panel.fill_between(point, lower - point, upper - point, color=GREY, alpha=0.35, linewidth=0)
    panel.axhline(0, color=GREY, linewidth=0.6)
    panel.plot(point, ecdf - point, color=RED if is_outside else BLUE, linewidth=1.2)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1])
    reach = 1.15 * max(np.abs(column - point).max() for column in (ecdf, lower, upper))
    panel.set_ylim(-reach, reach)
    panel.locator_params(axis="y", nbins=5)
    panel.text(0.98, 0.04, f"n = {rows[0]['n_loci']:,}", transform=panel.transAxes, ha="right", fontsize=6, color="0.3")


def _coverage(rows: Rows, scenarios: Sequence[str]) -> Figure:
    """Coverage less the nominal level in percentage points, by stratum; shaded: within TOLERANCE."""
    parameters = _distinct(rows, "parameter")
    kind = "averaged over hypotheses" if rows and rows[0]["hypothesis"] == "(averaged)" else "under the true hypothesis"
    title = f"coverage of intervals {kind}, less nominal"
    figure, axes = _panels(len(scenarios), len(parameters), PANEL_INCHES, title)
    for i, scenario in enumerate(scenarios):
        for k, parameter in enumerate(parameters):
            panel, part = axes[i, k], _where(rows, scenario=scenario, parameter=parameter)
            if i == 0:
                panel.set_title(_words(parameter), fontsize=9)
            if not part:
                panel.set_axis_off()
                continue
            _coverage_panel(panel, part, has_labels=k == 0)
            if k == 0:
                panel.set_ylabel(scenario, fontsize=9)
    figure.supxlabel("percentage points; bars: 95 % intervals; shaded: 1.5 points", fontsize=8)
    handles = [axes[0, 0].plot([], [], "o", color=colour, markersize=3)[0] for colour in LEVEL_COLOURS.values()]
    figure.legend(handles, [f"{level:.0%}" for level in LEVEL_COLOURS], loc="outside upper right", ncols=3, fontsize=8)
    return figure


def _coverage_panel(panel: Axes, rows: Rows, has_labels: bool) -> None:
    strata = list(dict.fromkeys((row["stratum"], row["stratum_low"], row["stratum_high"]) for row in rows))
    panel.axvspan(-100 * TOLERANCE, 100 * TOLERANCE, color=GREY, alpha=0.25, linewidth=0)
    panel.axvline(0, color=GREY, linewidth=0.6)
    for offset, (level, colour) in zip((-0.22, 0.0, 0.22), LEVEL_COLOURS.items(), strict=True):
        part = _where(rows, level=level)
        share, lower, upper = (100 * (_column(part, name) - level) for name in ("share", "lower", "upper"))
        place = np.array([strata.index((row["stratum"], row["stratum_low"], row["stratum_high"])) for row in part])
        panel.errorbar(
            share,
            place + offset,
            xerr=(share - lower, upper - share),
            fmt="o",
            color=colour,
            markersize=2.5,
            linewidth=0.8,
        )
    panel.set_ylim(len(strata) - 0.4, -0.6)
    panel.set_yticks(range(len(strata)), [_stratum_label(*stratum) for stratum in strata] if has_labels else [])
    # The same at least for panels that are calibrated, so that noise does not look like structure.
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, -3), max(high, 3))


def _stratum_label(kind: str, low: float, high: float) -> str:
    if kind == "overall":
        return "all loci"
    return f"{low:.0f}–{high:.0f} reads" if kind == "depth" else f"{100 * low:.0f}–{100 * high:.0f} % meth."


def _lfdr(rows: Rows, scenarios: Sequence[str]) -> Figure:
    figure, axes = _panels(
        1, len(scenarios), WIDE_PANEL_INCHES, "share of loci that transmit nothing, by lfdr", sharey=True
    )
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        panel.set_title(scenario, fontsize=9)
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for kind, colour in WEIGHT_COLOURS.items():
            part = _where(rows, scenario=scenario, weights=kind)
            _shares(panel, _column(part, "mean_lfdr"), part, colour, f"{kind} weights")
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-0.02, 1.02)
        panel.set_xlabel("mean lfdr of a bin", fontsize=8)
    axes[0, 0].set_ylabel("null in truth", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def _shares(panel: Axes, x: np.ndarray, rows: Rows, colour: str, label: str) -> None:
    share, lower, upper = (_column(rows, name) for name in ("share", "lower", "upper"))
    panel.errorbar(
        x, share, yerr=(share - lower, upper - share), fmt="o-", color=colour, markersize=3, linewidth=0.9, label=label
    )


def _fdr(rows: Rows, scenarios: Sequence[str]) -> Figure:
    figure, axes = _panels(
        1, len(scenarios), WIDE_PANEL_INCHES, "realized share of false calls, by nominal rate", sharey=True
    )
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        panel.set_title(scenario, fontsize=9)
        panel.plot([0, 0.32], [0, 0.32], color=GREY, linewidth=0.8)
        for number, (kind, colour) in enumerate(WEIGHT_COLOURS.items()):
            part = _where(rows, scenario=scenario, weights=kind)
            called = [row for row in part if row["n_loci"]]
            _shares(panel, _column(called, "nominal") + 0.004 * (number - 0.5), called, colour, f"{kind} weights")
            calls = ", ".join(f"{row['n_loci']:,}" for row in part)
            panel.text(
                0.02, 0.95 - 0.06 * number, f"calls: {calls}", transform=panel.transAxes, fontsize=6, color=colour
            )
        panel.set_xlim(0, 0.32)
        panel.set_ylim(-0.03, 1.25)
        panel.set_xlabel("nominal false discovery rate", fontsize=8)
    axes[0, 0].set_ylabel("false in truth", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.88))
    return figure


def _bayes_factors(rows: Rows, scenarios: Sequence[str]) -> Figure:
    title = "mean Bayes factor against the hypothesis that the loci come from; bars: 3 standard errors"
    figure, axes = _panels(1, len(scenarios), WIDE_PANEL_INCHES, title, sharey=True)
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        part = _where(rows, scenario=scenario)
        pairs = list(dict.fromkeys((row["hypothesis"], row["null"]) for row in part))
        several = len({null for _, null in pairs}) > 1
        panel.set_title(scenario, fontsize=9)
        panel.axhline(1, color=GREY, linewidth=0.8)
        for is_of_null, colour, shift, label in (
            (True, BLUE, -0.12, "over loci of the null"),
            (False, ORANGE, 0.12, "inverse, over loci of the hypothesis"),
        ):
            of = [row for row in part if (row["drawn_from"] == row["null"]) == is_of_null]
            x = [pairs.index((row["hypothesis"], row["null"])) + shift for row in of]
            error = 3 * _column(of, "standard_error")
            panel.errorbar(
                x, _column(of, "mean"), yerr=error, fmt="o", color=colour, markersize=3, linewidth=0.9, label=label
            )
        labels = [f"{hypothesis}\nvs {null}" if several else hypothesis for hypothesis, null in pairs]
        panel.set_xticks(range(len(pairs)), labels, rotation=30, ha="right")
        panel.set_xlim(-0.5, len(pairs) - 0.5)
    axes[0, 0].set_ylabel("mean Bayes factor", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def _weights(rows: Rows, scenarios: Sequence[str]) -> Figure:
    title = "weights of the hypotheses estimated from the drawn loci; bars: 95 % intervals"
    figure, axes = _panels(1, len(scenarios), WIDE_PANEL_INCHES, title, sharey=True)
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        part = _where(rows, scenario=scenario)
        x = np.arange(len(part))
        weight, lower, upper = (_column(part, name) for name in ("weight", "lower", "upper"))
        panel.set_title(scenario, fontsize=9)
        panel.plot(x - 0.12, _column(part, "drawn"), "_", color=BLUE, markersize=9, markeredgewidth=2, label="drawn")
        panel.errorbar(
            x + 0.12,
            weight,
            yerr=(weight - lower, upper - weight),
            fmt="o",
            color=ORANGE,
            markersize=3,
            label="estimated",
        )
        panel.set_xticks(x, [row["hypothesis"] for row in part], rotation=30, ha="right")
        panel.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel("weight", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def design_figure(pairs: Rows, further: Rows, confusion: Rows) -> Figure:
    """What a design can show, from its tables: divergences, Bayes factors of regions, what is best, what to add."""
    figure = Figure(figsize=(11.0, 8.4), layout="constrained")
    axes = figure.subplots(2, 2)
    for panel in axes.ravel():
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    names = list(dict.fromkeys([*_distinct(pairs, "hypothesis"), *_distinct(confusion, "hypothesis")]))
    _divergences(axes[0, 0], pairs, names)
    _region_outcomes(axes[0, 1], pairs)
    _confusion(axes[1, 0], _where(confusion, unit="region"), names)
    _further(axes[1, 1], further)
    return figure


def _shaded(panel: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Any) -> None:
    """A matrix [rows, columns] of values from 0 to 1 as shades with a text in each cell."""
    panel.imshow(values, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    panel.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    panel.set_yticks(range(len(rows)), rows)
    for i, row in enumerate(texts):
        for k, text in enumerate(row):
            panel.text(
                k, i, text, ha="center", va="center", fontsize=7, color="white" if values[i, k] > 0.75 else "0.1"
            )


def _divergences(panel: Axes, rows: Rows, names: Sequence[str]) -> None:
    nats = np.full((len(names), len(names)), np.nan)
    texts = [[""] * len(names) for _ in names]
    for row in rows:
        i, k = names.index(row["hypothesis"]), names.index(row["alternative"])
        nats[i, k] = row["least_nats"]
        texts[i][k] = "never" if row["merged"] else f"{row['least_nats']:.2g}"
    with np.errstate(divide="ignore"):
        # From a thousandth of a nat to one.
        shade = np.clip(1 + np.log10(np.nan_to_num(nats)) / 3, 0, 1)
    _shaded(panel, shade, texts, names, names)
    panel.set_title("least divergence of a locus, nats", fontsize=9)
    panel.set_ylabel("true", fontsize=8)
    panel.set_xlabel("alternative", fontsize=8)


def _region_outcomes(panel: Axes, rows: Rows) -> None:
    """Of the larger direction of every pair: the share of regions with strong, weak and misleading evidence."""
    shown = sorted((row for row in rows if not row["is_mimicked"]), key=lambda row: row["region_p_right"])[-16:]
    place = np.arange(len(shown))
    left = np.zeros(len(shown))
    for name, colour, label in (
        ("region_p_right", BLUE, "right, above 10"),
        ("region_p_weak", GREY, "weak"),
        ("region_p_misleading", RED, "misleading, below 1/10"),
    ):
        width = _column(shown, name) if shown else left
        panel.barh(place, width, left=left, color=colour, label=label, height=0.7)
        left = left + width
    realized = [(k, row["realized_region_p_right"]) for k, row in enumerate(shown)]
    seen = [(k, value) for k, value in realized if not np.isnan(value)]
    if seen:
        panel.plot([value for _, value in seen], [k for k, _ in seen], "k|", markersize=9, label="right, simulated")
    panel.set_yticks(place, [f"{row['hypothesis']} vs {row['alternative']}" for row in shown])
    panel.set_xlim(0, 1)
    panel.set_title("Bayes factor of a region", fontsize=9)
    panel.set_xlabel("share of the regions of the hypothesis named first", fontsize=8)
    panel.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _confusion(panel: Axes, rows: Rows, names: Sequence[str]) -> None:
    groups = _distinct(rows, "best")
    share = np.zeros((len(names), len(groups)))
    texts = [[""] * len(groups) for _ in names]
    for row in rows:
        i, k = names.index(row["hypothesis"]), groups.index(row["best"])
        share[i, k] = row["share"]
        texts[i][k] = f"{row['share']:.2f}"
        if not np.isnan(row["realized_share"]):
            texts[i][k] += f"\n({row['realized_share']:.2f})"
    _shaded(panel, share, texts, names, groups)
    has_realized = any(not np.isnan(row["realized_share"]) for row in rows)
    panel.set_title("hypothesis of most evidence in a region" + (" (simulated)" if has_realized else ""), fontsize=9)
    panel.set_ylabel("true", fontsize=8)
    panel.set_xlabel("of most evidence", fontsize=8)


def _further(panel: Axes, rows: Rows) -> None:
    """Gain of every option for the pair that is separated least."""
    if not rows:
        panel.set_axis_off()
        return
    least = min(rows, key=lambda row: row["least_nats"])
    shown = _where(rows, hypothesis=least["hypothesis"], alternative=least["alternative"])[::-1]
    panel.barh(range(len(shown)), _column(shown, "gain_per_sample"), color=GREEN, height=0.7)
    panel.set_yticks(range(len(shown)), [row["option"] for row in shown])
    panel.axvline(0, color=GREY, linewidth=0.6)
    panel.set_xlabel("nats a locus and sample", fontsize=8)
    panel.set_title(f"what would separate {least['hypothesis']} and {least['alternative']} better", fontsize=9)

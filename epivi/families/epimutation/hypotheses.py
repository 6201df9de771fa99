"""Hypotheses of the family `epimutation` as data: whether rates are absent, shared or the locus's own, and selection.

A hypothesis is declared in the configuration (`model.hypotheses`) in the words of config/README.md. Its free
parameters, each with a Gaussian prior on an unconstrained scale, are

    logit_gain      logit alpha of the locus, around that of its class
    logit_loss      logit beta of the locus, around that of its class
    log_fitness     log fitness of one more methylated copy
    log_size        log of the size of a log fitness whose sign is given

# METHOD: rates vary between loci on the logit scale, which is the log scale for the rates that occur (1e-2 and less)
# and keeps every rate below one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from epivi.families.family import NormalPrior

# METHOD: the size of a fitness with a given sign is log-normal with this SD, so that its posterior is near Gaussian on
# the log scale, as the guide's is.
LOG_SIZE_SD = 0.75
SIGNS = {"for": 1.0, "against": -1.0}


class EpimutationHypothesis(NamedTuple):
    """One declared hypothesis; `selection` is None where there is none, and a number where it is given."""

    name: str
    rates: Literal["none", "shared", "locus"]
    selection: float | Literal["free", "for", "against"] | None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the free unconstrained parameters, in the order of theta."""
        rates = ("logit_gain", "logit_loss") if self.rates == "locus" else ()
        if self.selection == "free":
            return (*rates, "log_fitness")
        return (*rates, "log_size") if self.selection in SIGNS else rates


class EpimutationPriors(NamedTuple):
    """Set (never learned) spread of what a locus has of its own.

    # METHOD: as the shares of the family `transmission`, the spreads are set: learned ones trade off with the weights
    # of the hypotheses.
    """

    rate_sd: float
    fitness_sd: float

    def prior(self, parameter: str, class_logit: float = 0.0) -> NormalPrior:
        """Prior of a parameter at a locus of a class whose rate has the logit `class_logit`."""
        if parameter in ("logit_gain", "logit_loss"):
            return NormalPrior(class_logit, self.rate_sd)
        if parameter == "log_fitness":
            return NormalPrior(0.0, self.fitness_sd)
        return NormalPrior(math.log(self.fitness_sd), LOG_SIZE_SD)


def parse_epimutation_hypotheses(declared: Mapping[str, Mapping[str, Any]]) -> tuple[EpimutationHypothesis, ...]:
    """The declared hypotheses in the order of the configuration (already validated by epivi.config.load)."""
    return tuple(
        EpimutationHypothesis(name, terms["rates"], terms.get("selection")) for name, terms in declared.items()
    )

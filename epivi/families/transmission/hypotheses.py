"""Hypotheses as data: which covariance components and mean terms are free, fixed or absent.

A hypothesis is declared in the configuration (`model.hypotheses`) in the words of config/README.md and never
subclassed. Its free parameters, on the unconstrained scale, are a vector theta with these names in this order:

    log_spread                 log sigma, always free
    logit_heritable_share      logit rho
    logit_environment_share    logit eta
    logit_transmissibility     logit tau

and the variance sigma^2 is divided by stick-breaking: heritable rho, environment (1 - rho) eta, residual
(1 - rho)(1 - eta).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import digamma, polygamma

from epivi.families.family import NormalPrior

Free = Literal["free"]
PARAMETER_NAMES = ("log_spread", "logit_heritable_share", "logit_environment_share", "logit_transmissibility")


class Hypothesis(NamedTuple):
    """One declared hypothesis; a component that is absent has the share None."""

    name: str
    heritable_share: float | Free | None
    maternal: float | Literal["tau"]
    paternal: float | Literal["tau"]
    environment_column: str | None
    environment_share: float | Free | None
    covariates: tuple[str, ...]

    @property
    def transmits(self) -> bool:
        """Whether anything passes from parent to offspring under this hypothesis."""
        return self.heritable_share is not None

    @property
    def has_free_transmissibility(self) -> bool:
        return self.transmits and "tau" in (self.maternal, self.paternal)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the free unconstrained parameters, in the order of theta."""
        is_free = (
            True,
            self.heritable_share == "free",
            self.environment_share == "free",
            self.has_free_transmissibility,
        )
        return tuple(name for name, free in zip(PARAMETER_NAMES, is_free, strict=True) if free)


def logit_normal(alpha: float, beta: float) -> NormalPrior:
    """The Gaussian on the logit scale with the mean and variance that logit X has when X ~ Beta(alpha, beta).

    # METHOD: the slab priors of shares and of transmissibility are logit-normal rather than Beta. Mean psi(alpha) -
    # psi(beta) and variance psi'(alpha) + psi'(beta) on the logit scale are those of the Beta, but the tails are
    # Gaussian like the guide's, so the importance weights of the outer integral stay bounded where the data say
    # little.
    """
    return NormalPrior(float(digamma(alpha) - digamma(beta)), float(np.sqrt(polygamma(1, alpha) + polygamma(1, beta))))


def parse_hypotheses(declared: Mapping[str, Mapping[str, Any]]) -> tuple[Hypothesis, ...]:
    """The declared hypotheses in the order of the configuration (already validated by epivi.config.load)."""

    def one(name: str, terms: Mapping[str, Any]) -> Hypothesis:
        environment = terms.get("environment")
        return Hypothesis(
            name=name,
            heritable_share=terms.get("heritable_share"),
            maternal=terms.get("maternal", 0.0),
            paternal=terms.get("paternal", 0.0),
            environment_column=environment["column"] if environment else None,
            environment_share=environment.get("share", "free") if environment else None,
            covariates=tuple(terms.get("covariates", ())),
        )

    return tuple(one(name, terms or {}) for name, terms in declared.items())


def share_priors(priors: Mapping[str, Mapping[str, float]]) -> dict[str, NormalPrior]:
    """Set (never learned) priors of the logit parameters, by parameter name."""
    return {
        "logit_heritable_share": logit_normal(**priors["heritable_share"]),
        "logit_environment_share": logit_normal(**priors["environment_share"]),
        "logit_transmissibility": logit_normal(**priors["tau"]),
    }

"""Hypotheses as data: which covariance components and mean terms are free, fixed or absent.

A hypothesis is declared in the configuration (`model.hypotheses`) in the words of config/README.md and never
subclassed. Its covariance is a list of components. Its free parameters, on the unconstrained scale, are a vector theta
with these names in this order:

    log_spread                 log sigma, always free
    logit_<component>_share    of each component whose share is free, in the order of the components
    logit_transmissibility     logit tau

and the variance sigma^2 is divided by stick-breaking: each component has its share of what those before it leave, the
residual has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import digamma, polygamma

from epivi.config.declarations import component_names, declared_components
from epivi.families.family import NormalPrior

Free = Literal["free"]
SPREAD, TRANSMISSIBILITY = "log_spread", "logit_transmissibility"


class Component(NamedTuple):
    """A part of the covariance between individuals.

    kind: how it is shared, a key of epivi.families.transmission.cohort.COVARIANCES. name: of its share in tables,
    `<name>_share`. source: what it is read from; None for transmission. share: of the variance that the components
    before it leave.
    """

    kind: str
    name: str
    source: str | None
    share: float | Free

    @property
    def parameter(self) -> str:
        """Name of its share in theta, where that is free."""
        return f"logit_{self.name}_share"


class Hypothesis(NamedTuple):
    """One declared hypothesis."""

    name: str
    components: tuple[Component, ...]
    maternal: float | Literal["tau"]
    paternal: float | Literal["tau"]
    covariates: tuple[str, ...]

    @property
    def transmits(self) -> bool:
        """Whether anything passes from parent to offspring under this hypothesis."""
        return any(component.kind == "heritable" for component in self.components)

    @property
    def has_free_transmissibility(self) -> bool:
        return self.transmits and "tau" in (self.maternal, self.paternal)

    @property
    def shared(self) -> tuple[Component, ...]:
        """The components that are not heritable."""
        return tuple(component for component in self.components if component.kind != "heritable")

    @property
    def free_shares(self) -> tuple[str, ...]:
        """Names of the components whose share of the whole variance is not fixed."""
        free = [component.share == "free" for component in self.components]
        return tuple(component.name for k, component in enumerate(self.components) if any(free[: k + 1]))

    @property
    def _free(self) -> tuple[Component, ...]:
        return tuple(component for component in self.components if component.share == "free")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the free unconstrained parameters, in the order of theta."""
        tau = (TRANSMISSIBILITY,) if self.has_free_transmissibility else ()
        return (SPREAD, *(component.parameter for component in self._free), *tau)

    @property
    def prior_names(self) -> tuple[str, ...]:
        """Which prior each of `parameters` has: the spread's own, else a key of `share_priors`."""
        tau = (TRANSMISSIBILITY,) if self.has_free_transmissibility else ()
        return (SPREAD, *(f"logit_{component.kind}_share" for component in self._free), *tau)


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

    names = component_names(declared.values())

    def one(name: str, terms: Mapping[str, Any]) -> Hypothesis:
        return Hypothesis(
            name=name,
            components=tuple(
                Component(kind, names[kind, source], source, share)
                for kind, source, share in declared_components(terms)
            ),
            maternal=terms.get("maternal", 0.0),
            paternal=terms.get("paternal", 0.0),
            covariates=tuple(terms.get("covariates", ())),
        )

    return tuple(one(name, terms or {}) for name, terms in declared.items())


def shared_components(hypotheses: Sequence[Hypothesis]) -> tuple[str, ...]:
    """Names of the components that are not heritable, of any hypothesis."""
    return tuple(dict.fromkeys(component.name for hypothesis in hypotheses for component in hypothesis.shared))


def share_priors(priors: Mapping[str, Any]) -> dict[str, NormalPrior]:
    """Set (never learned) priors of the logit parameters: of the shares by kind of component, and of tau."""
    shares = {f"logit_{name}": logit_normal(**shapes) for name, shapes in priors.items() if name.endswith("_share")}
    return {**shares, TRANSMISSIBILITY: logit_normal(**priors["tau"])}

"""Declarations to hypotheses, and the set priors against moments integrated over the Beta density."""

from __future__ import annotations

import mpmath
import pytest

from epivi.families.transmission.hypotheses import Component, logit_normal, parse_hypotheses, share_priors

SPREAD, TAU = "log_spread", "logit_transmissibility"
SHARE, ENVIRONMENT = "logit_heritable_share", "logit_environment_share"
CAGE = {"column": "cage"}


@pytest.mark.parametrize(
    ("terms", "parameters"),
    [
        ({}, (SPREAD,)),
        ({"heritable_share": "free", "maternal": 1, "paternal": 1}, (SPREAD, SHARE)),
        ({"heritable_share": 0.5, "maternal": 1, "paternal": 0}, (SPREAD,)),
        ({"heritable_share": "free", "maternal": "tau", "paternal": 0}, (SPREAD, SHARE, TAU)),
        ({"heritable_share": "free", "maternal": 0.3, "paternal": "tau"}, (SPREAD, SHARE, TAU)),
        ({"heritable_share": 0.5, "maternal": "tau", "paternal": "tau"}, (SPREAD, TAU)),
        ({"environment": CAGE}, (SPREAD, ENVIRONMENT)),
        ({"environment": {**CAGE, "share": 0.2}}, (SPREAD,)),
        (
            {"heritable_share": "free", "maternal": "tau", "paternal": "tau", "environment": CAGE},
            (SPREAD, SHARE, ENVIRONMENT, TAU),
        ),
    ],
)
def test_free_parameters_are_those_left_free(terms: dict, parameters: tuple[str, ...]) -> None:
    (hypothesis,) = parse_hypotheses({"h": terms})
    assert hypothesis.parameters == parameters
    assert hypothesis.transmits == ("heritable_share" in terms)
    assert hypothesis.has_free_transmissibility == (TAU in parameters)


def test_declaration_is_kept_word_for_word() -> None:
    declared = {
        "second": {"environment": {"column": "cage", "share": 0.2}, "covariates": ["batch", "age"]},
        "first": {"heritable_share": 0.4, "maternal": 0.25, "paternal": "tau"},
        "empty": None,
    }
    second, first, empty = parse_hypotheses(declared)
    assert (second.name, first.name, empty.name) == ("second", "first", "empty")
    assert second.components == (Component("environment", "environment", "cage", 0.2),)
    assert second.covariates == ("batch", "age")
    assert first.components == (Component("heritable", "heritable", None, 0.4),)
    assert (first.maternal, first.paternal) == (0.25, "tau")
    assert empty.components == ()
    assert empty.covariates == ()


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (1.0, 1.0), (0.5, 3.0), (20.0, 4.0)])
def test_logit_normal_has_the_moments_of_the_logit_of_a_beta(alpha: float, beta: float) -> None:
    def moment(power: int) -> mpmath.mpf:
        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            p = 1 / (1 + mpmath.e ** (-x))
            return x**power * p**alpha * (1 - p) ** beta / mpmath.beta(alpha, beta)  # Jacobian p (1 - p)

        return mpmath.quad(integrand, [-200, -20, 0, 20, 200])

    prior = logit_normal(alpha, beta)
    assert moment(0) == pytest.approx(1, abs=1e-10)
    assert prior.mean == pytest.approx(float(moment(1)), abs=1e-9)
    assert prior.sd**2 == pytest.approx(float(moment(2) - moment(1) ** 2), rel=1e-9)


def test_share_priors_name_each_logit_parameter() -> None:
    given = {
        "heritable_share": {"alpha": 2, "beta": 3},
        "tau": {"alpha": 4, "beta": 5},
        "environment_share": {"alpha": 6, "beta": 7},
    }
    priors = share_priors(given)
    assert priors == {SHARE: logit_normal(2, 3), TAU: logit_normal(4, 5), ENVIRONMENT: logit_normal(6, 7)}

"""The approximate methods for a Gaussian field with binomial observations, by name."""

from __future__ import annotations

from collections.abc import Callable

from epivi.field.dense.cavi import cavi
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.gaussian_vi import full_covariance, meanfield
from epivi.field.dense.laplace import laplace
from epivi.field.dense.lrvb import lrvb
from epivi.field.dense.problem import FieldPosterior, FieldProblem

FIELD_METHODS: dict[str, Callable[[FieldProblem], FieldPosterior]] = {
    "laplace": laplace,
    "ep": ep,
    "cavi": cavi,
    "meanfield": meanfield,
    "full_covariance": full_covariance,
    "lrvb": lrvb,
}

"""The approximate methods for a Gaussian field with binomial leaves, by name."""

from __future__ import annotations

from collections.abc import Callable

from epivi.infer.cavi import cavi
from epivi.infer.dense_laplace import laplace
from epivi.infer.ep import ep
from epivi.infer.field_problem import FieldPosterior, FieldProblem
from epivi.infer.gaussian_vi import full_covariance, meanfield
from epivi.infer.lrvb import lrvb

FIELD_METHODS: dict[str, Callable[[FieldProblem], FieldPosterior]] = {
    "laplace": laplace,
    "ep": ep,
    "cavi": cavi,
    "meanfield": meanfield,
    "full_covariance": full_covariance,
    "lrvb": lrvb,
}

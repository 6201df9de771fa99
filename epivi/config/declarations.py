"""What the part of the configuration about a model family may say, for every family.

Apart from the families themselves, which the configuration must not import: their code is behind some steps of the
workflow, the configuration is behind all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """What a family's part of the configuration may say.

    hypothesis_keys: keys of a hypothesis. model_keys: keys of `model`, and of `model.priors` with a dot, that no other
    family looks at. fit_methods: values of `fit.method`. has_states: whether there are discrete states of individuals,
    and changes between them on branches. has_controls: whether its evidence can be had with
    the pedigree broken. has_design: whether it can be said what a pedigree shows before anything is sequenced.
    hypothesis_problem: what is wrong with a hypothesis, given it and `model`, as the rest of a sentence; None where
    nothing is. is_null: whether a hypothesis counts as null in lfdr and q-values where the configuration names none.
    """

    hypothesis_keys: tuple[str, ...]
    model_keys: tuple[str, ...]
    fit_methods: tuple[str, ...]
    has_states: bool
    has_controls: bool
    has_design: bool
    hypothesis_problem: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
    is_null: Callable[[Mapping[str, Any]], bool]


def declared_components(hypothesis: Mapping[str, Any] | None) -> Iterator[tuple[str, str | None, Any]]:
    """Kind, source and share of each covariance component of a hypothesis of the family `transmission`, in order."""
    terms = hypothesis or {}
    if "heritable_share" in terms:
        yield "heritable", None, terms["heritable_share"]
    for kind, source in COMPONENT_SOURCES.items():
        given = terms.get(kind, [])
        for component in [given] if isinstance(given, Mapping) else given:
            yield kind, component[source], component.get("share", "free")


def component_names(hypotheses: Iterable[Mapping[str, Any] | None]) -> dict[tuple[str, str | None], str]:
    """Name of each covariance component of some hypotheses, by kind and source: `<name>_share` is its share in tables.

    A component is named after its kind; where hypotheses name several sources of one kind, after its source.
    """
    sources: dict[str, dict[str | None, None]] = {}
    for hypothesis in hypotheses:
        for kind, source, _ in declared_components(hypothesis):
            sources.setdefault(kind, {})[source] = None
    return {
        (kind, source): kind if len(of_kind) == 1 else _short(kind, source)
        for kind, of_kind in sources.items()
        for source in of_kind
    }


# Kinds of covariance components that are declared as a mapping or a list of them, and the key that says what each is
# read from. In the order in which they divide the variance, after what is heritable.
COMPONENT_SOURCES = {"environment": "column", "relatedness": "file"}


RESERVED_PREFIX = "effect_"  # of the columns of covariates' effects


def _short(kind: str, source: str | None) -> str:
    """A column by its name, a file by its name without folder and endings."""
    return Path(str(source)).name.split(".")[0] if COMPONENT_SOURCES.get(kind) == "file" else str(source)


def _transmission_problem(hypothesis: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    parents = ("maternal", "paternal")
    if "heritable_share" in hypothesis:
        missing = [parent for parent in parents if parent not in hypothesis]
        if missing:
            return f"has heritable_share but not {' and '.join(missing)}: expected both maternal and paternal"
        if all(hypothesis[parent] == 0 for parent in parents):
            return "has maternal 0 and paternal 0, so nothing is passed on: expected tau or a number above 0 for one"
    given = [parent for parent in parents if parent in hypothesis]
    if given and "heritable_share" not in hypothesis:
        return f"has {given[0]} but no heritable_share: expected heritable_share: free or a number"
    twice = [column for column in hypothesis.get("covariates", []) if column in model["covariates"]]
    if twice:
        return f"has the covariate {twice[0]!r}, which stands in model.covariates too: expected it in one of the two"
    return _component_problem(hypothesis, model)


def _component_problem(hypothesis: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Each share needs a column of its own in the tables, whose names SQL compares without regard to case."""
    sources = [(kind, source) for kind, source, _ in declared_components(hypothesis)]
    for kind, source in sources:
        if sources.count((kind, source)) > 1:
            return f"names the {kind} {COMPONENT_SOURCES[kind]} {source!r} twice: expected different ones"
    names = component_names(model["hypotheses"].values())
    taken: dict[str, tuple[str, str | None]] = {"heritable": ("heritable", None)}
    for (kind, source), name in names.items():
        if name.lower().startswith(RESERVED_PREFIX) and (kind, source) in sources:
            return (
                f"has the {kind} {COMPONENT_SOURCES[kind]} {source!r}, whose name begins as the columns of effects do: "
                f"expected another than {RESERVED_PREFIX}..."
            )
        if taken.setdefault(name.lower(), (kind, source)) != (kind, source) and (kind, source) in sources:
            return (
                f"has the {kind} {COMPONENT_SOURCES[kind]} {source!r}, whose share would have the column "
                f"{name}_share_mean of another component: expected names that differ in more than case"
            )
    return None


def _epimutation_problem(hypothesis: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    if "rates" not in hypothesis:
        return "has no rates: expected none, shared or locus"
    if hypothesis["rates"] == "none" and "selection" in hypothesis:
        return "has selection but rates none, so nothing to select: expected rates shared or locus"
    return None


DECLARATIONS: Mapping[str, Declaration] = {
    "transmission": Declaration(
        hypothesis_keys=("heritable_share", "maternal", "paternal", "environment", "relatedness", "covariates"),
        model_keys=(
            "covariates",
            "baseline_components",
            "priors.heritable_share",
            "priors.tau",
            "priors.environment_share",
            "priors.relatedness_share",
        ),
        fit_methods=("svi", "meanfield", "cavi", "laplace", "ep"),
        has_states=False,
        has_controls=True,
        has_design=True,
        hypothesis_problem=_transmission_problem,
        is_null=lambda hypothesis: "heritable_share" not in hypothesis,
    ),
    "epimutation": Declaration(
        hypothesis_keys=("rates", "selection"),
        model_keys=("classes", "mode", "priors.rate_sd", "priors.fitness_sd"),
        fit_methods=("svi",),
        has_states=True,
        has_controls=False,
        has_design=False,
        hypothesis_problem=_epimutation_problem,
        is_null=lambda hypothesis: hypothesis["rates"] == "none",
    ),
}

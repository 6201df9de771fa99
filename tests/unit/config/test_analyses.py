"""Further analyses in the configuration: an entry laid over the rest, and one clear line for what it may not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epivi.base.errors import UserError
from epivi.config.analyses import MAIN, analysis_folder, idle_removals, laid_over
from epivi.config.load import Config, load_config

MAIN_CONFIGURATION = """\
cohort: barley
pedigree: true.ped
seed: 7
model:
  covariates: [batch]
  hypotheses:
    reset: {}
    mendelian: {heritable_share: free, maternal: 1, paternal: 1}
    epigenetic: {heritable_share: free, maternal: tau, paternal: tau}
fit: {max_steps: 50}
analyses:
"""


def _load(tmp_path: Path, entries: str) -> Config:
    (tmp_path / "cohort.yaml").write_text(MAIN_CONFIGURATION + entries)
    return load_config(str(tmp_path / "cohort.yaml"))


def test_an_entry_is_laid_over_the_main_configuration(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        "  same:\n"
        "  permuted_1: {pedigree: ~/permuted_1.ped}\n"
        "  wide.prior:\n"
        "    model: {priors: {tau: {alpha: 1, beta: 1}}, covariates: []}\n"
        "    fit: {max_steps:}\n",
    )
    assert list(config.analyses) == ["same", "permuted_1", "wide.prior"]
    assert config.analyses["same"].resolved == config.resolved
    permuted = config.analyses["permuted_1"].resolved
    assert permuted["pedigree"] == str(Path.home() / "permuted_1.ped")
    assert {**permuted, "pedigree": "true.ped"} == config.resolved
    wide = config.analyses["wide.prior"].resolved
    assert wide["model"]["priors"]["tau"] == {"alpha": 1, "beta": 1}
    assert wide["model"]["priors"]["heritable_share"] == {"alpha": 2, "beta": 2}
    assert wide["model"]["covariates"] == []
    assert wide["fit"]["max_steps"] == 1000  # removed, so the default
    assert wide["model"]["hypotheses"] == config.resolved["model"]["hypotheses"]
    # What is the same whatever other analyses there are, so that one more reruns nothing of the others.
    assert config.resolved == _load(tmp_path, "  {}\n").resolved
    assert not {"analyses", "analysis"} & set(config.resolved)


def test_hypotheses_are_added_changed_and_dropped_one_by_one(tmp_path: Path) -> None:
    entry = "  few: {model: {hypotheses: {mendelian: null, epigenetic: {paternal: 0}, cage: {covariates: [cage]}}}}\n"
    hypotheses = _load(tmp_path, entry).analyses["few"].resolved["model"]["hypotheses"]
    assert hypotheses == {
        "reset": {},
        "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
        "cage": {"covariates": ["cage"]},
    }


def test_a_default_hypothesis_can_be_dropped_too() -> None:
    config = load_config(json.dumps({"analyses": {"few": {"model": {"hypotheses": {"paternal": None}}}}}))
    assert "paternal" in config.resolved["model"]["hypotheses"]
    assert "paternal" not in config.analyses["few"].resolved["model"]["hypotheses"]


def test_another_family_starts_from_its_own_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path, "  states: {model: {family: epimutation, mode: selfing}}\n")
    model = config.analyses["states"].resolved["model"]
    assert list(model["hypotheses"]) == ["stable", "neutral", "labile", "selection"]
    assert model["covariates"] == []
    assert config.analyses["states"].resolved["fit"]["max_steps"] == 50


def test_one_analysis_can_be_asked_for(tmp_path: Path) -> None:
    entries = "  one: {seed: 3}\n  two: {seed: 4}\n"
    assert _load(tmp_path, entries).analysis is None
    for name in ("two", MAIN):
        assert _load(tmp_path, f"{entries}analysis: {name}\n").analysis == name
    with pytest.raises(UserError, match="line 14: analysis is 'tow', which is not in analyses; did you mean 'two'"):
        _load(tmp_path, f"{entries}analysis: tow\n")
    assert [analysis_folder(name) for name in (None, MAIN, "two")] == ["", "", "/analyses/two"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x: {samples: other.tsv}", "analyses.x.samples is shared by all analyses of a cohort"),
        ("x: {loci: {coverage: {min: 3}}}", "analyses.x.loci is shared by all"),
        ("x: {qc: {genotypes: a.vcf}}", "analyses.x.qc is shared by all"),
        ("x: {cohort: other}", "analyses.x.cohort is shared by all"),
        ("x: {results: other}", "analyses.x.results is shared by all"),
        ("x: {evidence: {shard_loci: 3}}", "analyses.x.evidence.shard_loci is shared by all"),
        ("x: {modle: {}}", "unknown key 'analyses.x.modle'; did you mean 'model'?"),
        ("x: {model: {prior: {}}}", "unknown key 'analyses.x.model.prior'"),
        ("x: {model: {priors: {tau: {alpha: 0}}}}", "analyses.x.model.priors.tau.alpha is 0: expected a number"),
        ("x: {model: 3}", "analyses.x.model is 3: expected a mapping of keys"),
        ("x: 3", "analyses.x is 3: expected a mapping of keys"),
        ("x: {seed: .nan}", "analyses.x.seed is nan: expected a finite number"),
        ("x: {pedigree: null}", "analyses.x.pedigree is empty: expected a path"),
        ("x: {model: {hypotheses: {mendelia: null}}}", "analyses.x.model.hypotheses.mendelia is empty, which removes"),
        ("x: {model: {hypotheses: {h: {maternal: null}}}}", "analyses.x.model.hypotheses.h.maternal is empty, which"),
        ("x: {model: {hypotheses: {h: {maternal: 1}}}}", "analyses.x.model.hypotheses.h has maternal but no"),
        ("x: {model: {hypotheses: {h: {}}}}", "analyses.x.model.hypotheses.h is the same as analyses.x.model"),
        ("x: {model: {null_hypotheses: [rest]}}", "analyses.x.model.null_hypotheses names 'rest', which is no"),
        ("x: {model: {family: epimutation}, fit: {method: ep}}", "analyses.x.fit.method is ep, which family"),
        ("x: {model: {mode: selfing}}", "analyses.x.model.mode is of another family than transmission"),
        ("main: {seed: 3}", "analyses.main: expected a name of letters, digits, '.', '_' and '-'"),
        ("a/b: {seed: 3}", "analyses.a/b: expected a name"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_key_path(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _load(tmp_path, f"  {entry}\n")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'cohort.yaml'} line 12: {message}")
    assert "\n" not in text


def test_values_are_laid_over_mapping_by_mapping() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "pedigree": "x.ped"}
    entry = {"a": {"b": None, "c": {"f": 3}}, "e": [4], "pedigree": {"nodes": "n", "edges": "e"}, "g": {"h": None}}
    assert laid_over(base, entry) == {
        "a": {"c": {"d": 2, "f": 3}},
        "e": [4],
        "pedigree": {"nodes": "n", "edges": "e"},
        "g": {},
    }
    assert base["a"] == {"b": 1, "c": {"d": 2}}
    assert list(idle_removals(base, entry)) == [("g", "h")]

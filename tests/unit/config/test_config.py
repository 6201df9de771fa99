"""Configuration: defaults, hash, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from epivi.base.errors import UserError
from epivi.config.load import Config, leaf_keys, load_config, load_schema, suggestion

DEFAULT_HYPOTHESES = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
    "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
    "paternal": {"heritable_share": "free", "maternal": 0, "paternal": "tau"},
}


def _load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "cohort.yaml"
    path.write_text(text)
    return load_config(str(path))


def _message(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        _load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path / "cohort.yaml"), "FILE")


def _inline(**sections: Any) -> Config:
    return load_config(json.dumps(sections))


def test_every_default_is_filled_in() -> None:
    resolved = load_config("{}").resolved
    assert [resolved[key] for key in ("cohort", "samples", "pedigree", "results", "seed")] == [
        None,
        None,
        None,
        "results",
        1,
    ]
    assert resolved["loci"] == {
        "context": "CG",
        "modification": "m",
        "calls": {
            "bad_reads": "error",
            "modified_from": 0.75,
            "unmodified_to": 0.25,
            "most_probable_from": None,
        },
        "array": {"manifest": None, "pseudo_reads": None},
        "reference": None,
        "unit": "cpg",
        "merge_strands": True,
        "contigs": {"include": ["*"], "exclude": [], "rename": None},
        "exclude": [],
        "coverage": {"min": 1, "max": 500},
        "min_covered_samples": 0.5,
    }
    assert resolved["model"] == {
        "family": "transmission",
        "covariates": [],
        "hypotheses": DEFAULT_HYPOTHESES,
        "null_hypotheses": [],
        "classes": None,
        "mode": None,
        "baseline_components": 3,
        "priors": {
            **{
                name: {"alpha": 2, "beta": 2}
                for name in ("heritable_share", "tau", "environment_share", "relatedness_share")
            },
            "rate_sd": 1.5,
            "fitness_sd": 1,
        },
    }
    assert resolved["fit"] == {
        "method": "svi",
        "method_loci": 500,
        "shared": "evidence",
        "shared_loci": 4000,
        "guide": "structured",
        "seed": None,
        "device": "auto",
        "processes": 1,
        "batch_loci": 128,
        "max_steps": 1000,
        "learning_rate": 0.005,
        "holdout_loci": 512,
        "check_every": 50,
        "tolerance": 0.0005,
        "checkpoint_minutes": 10,
        "hidden": 64,
    }
    assert resolved["evidence"] == {"shard_loci": 1_000_000, "nodes": 64, "seed": None, "device": "auto"}
    assert resolved["compare"] == {
        "fdr": 0.05,
        "blocks": 100,
        "draws": 200,
        "prior": {"untransmitted": 5, "transmitted": 1},
        "tilt_nats": 0.005,
    }
    assert list(resolved["model"]["hypotheses"]) == list(DEFAULT_HYPOTHESES)


STATE_HYPOTHESES = {
    "stable": {"rates": "none"},
    "neutral": {"rates": "shared"},
    "labile": {"rates": "locus"},
    "selection": {"rates": "shared", "selection": "free"},
}


@pytest.mark.parametrize("hypotheses", ["", "  hypotheses:\n"], ids=["absent", "empty"])
def test_the_default_hypotheses_are_those_of_the_family(tmp_path: Path, hypotheses: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model:\n  family: epimutation\n{hypotheses}")
    config = load_config(str(path))
    assert config.section("model", "hypotheses") == STATE_HYPOTHESES
    assert config.null_hypotheses == ("stable",)
    assert config.sheet_columns == ()
    again = load_config(json.dumps({"seed": 2}), base=config.resolved)
    assert again.section("model", "hypotheses") == STATE_HYPOTHESES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {family: epimutation, covariates: [age]}\n", "line 1: model.covariates is of another family than"),
        ("model:\n  classes: a.bed\n", "line 2: model.classes is of another family than transmission"),
        ("model:\n  priors: {rate_sd: 2}\n", "line 2: model.priors.rate_sd is of another family than transmission"),
        ("model: {family: epimutation}\nfit:\n  method: laplace\n", "line 3: fit.method is laplace, which family"),
        (
            "model:\n  family: epimutation\n  hypotheses:\n    reset: {}\n",
            "line 4: model.hypotheses.reset has no rates: expected none, shared or locus",
        ),
        (
            "model:\n  family: epimutation\n  hypotheses:\n    m: {heritable_share: free, maternal: 1, paternal: 1}\n",
            "line 4: model.hypotheses.m has heritable_share, which family epimutation does not know: expected rates",
        ),
        ("model:\n  hypotheses:\n    l: {rates: locus}\n", "model.hypotheses.l has rates, which family transmission"),
        (
            "model:\n  family: epimutation\n  hypotheses:\n    s: {rates: none, selection: free}\n",
            "line 4: model.hypotheses.s has selection but rates none, so nothing to select: expected rates",
        ),
    ],
)
def test_what_belongs_to_another_family_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert expected in str(error.value)


def test_a_file_keeps_its_values_and_gets_the_defaults(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        "cohort: demo\nsamples: s.tsv\npedigree: {nodes: n.fn, edges: e.fn}\nloci:\n  unit: {tile: 200}\n  coverage: "
        "{max: 100}\nfit:\nmodel:\n  null_hypotheses: [reset]\n",
    )
    assert config.require("cohort") == "demo"
    assert config.require("pedigree") == {"nodes": "n.fn", "edges": "e.fn"}
    assert config.section("loci")["unit"] == {"tile": 200}
    assert config.section("loci", "coverage") == {"min": 1, "max": 100}
    assert config.section("fit")["guide"] == "structured"
    assert config.section("model")["null_hypotheses"] == ["reset"]
    with pytest.raises(TypeError, match="not a section"):
        config.section("loci", "unit", "tile")


def test_given_hypotheses_replace_the_default_set(tmp_path: Path) -> None:
    text = (
        "model:\n  hypotheses:\n    nothing:\n    no: {heritable_share: 0.5, maternal: 1, paternal: 1}\n"
        "    cage: {environment: {column: cage}, covariates: [age]}\n"
    )
    config = _load(tmp_path, text)
    assert config.section("model")["hypotheses"] == {
        "nothing": {},
        "no": {"heritable_share": 0.5, "maternal": 1, "paternal": 1},
        "cage": {"environment": [{"column": "cage", "share": "free"}], "covariates": ["age"]},
    }
    assert config.null_hypotheses == ("nothing", "cage")
    assert config.sheet_columns == ("age", "cage")
    base = {"model": {"hypotheses": DEFAULT_HYPOTHESES, "covariates": ["batch"]}}
    over = load_config(json.dumps({"model": {"hypotheses": {"reset": {}}}}), base=base)
    assert over.section("model")["hypotheses"] == {"reset": {}}
    assert over.section("model")["covariates"] == ["batch"]


@pytest.mark.parametrize("key", ["null", "'null'", '"null"'])
def test_the_former_name_of_the_null_hypotheses_is_read_with_advice(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"cohort: c\nmodel:\n  {key}: [reset, mendelian]\n")
    assert load_config(str(path)).null_hypotheses == ("reset", "mendelian")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} line 3: model.null is now called model.null_hypotheses; please rename it"
    ]
    caplog.clear()
    # As Snakemake hands it over: it has read the file by YAML's rules.
    base = yaml.safe_load(path.read_text())
    assert load_config("{}", base=base).null_hypotheses == ("reset", "mendelian")
    assert caplog.records == []
    path.write_text(f"model:\n  {key}: [reset]\n  null_hypotheses: [reset]\n")
    with pytest.raises(UserError, match=r"line 2: model\.null and model\.null_hypotheses are both given"):
        load_config(str(path))
    path.write_text(f"model:\n  {key}: [rest]\n")
    with pytest.raises(UserError, match=r"line 2: model\.null_hypotheses names 'rest'"):
        load_config(str(path))


def test_null_hypotheses_and_seeds() -> None:
    assert load_config("{}").null_hypotheses == ("reset",)
    assert _inline(model={"null_hypotheses": ["reset", "mendelian"]}).null_hypotheses == ("reset", "mendelian")
    config = _inline(seed=7, fit={"seed": 0})
    assert [config.seed(), config.seed("fit"), config.seed("evidence")] == [7, 0, 7]
    assert _inline(loci={"context": "CHH"}).contexts == ("CHH",)
    assert _inline(loci={"context": ["CG", "CHG"]}).contexts == ("CG", "CHG")


def test_missing_top_level_key_is_an_error_only_when_required() -> None:
    config = load_config("{}")
    with pytest.raises(UserError, match=r"^inline configuration: the key 'cohort' is missing$"):
        config.require("cohort")


def test_a_resolved_configuration_loads_again_unchanged() -> None:
    config = _inline(cohort="a", model={"hypotheses": {"reset": {}, "e": {"environment": {"column": "x"}}}}, seed=3)
    assert load_config(json.dumps(config.resolved)) == config
    part = load_config(json.dumps(config.select("model", "seed")))
    assert part.hash("model", "seed") == config.hash("model", "seed")


def test_sections_are_copies() -> None:
    config = load_config("{}")
    config.section("loci")["contigs"]["include"].append("chr1")
    config.select("model")["model"]["hypotheses"].clear()
    assert load_config("{}") == config
    load_config("{}").resolved["loci"]["contigs"]["include"].append("chr1")
    assert load_config("{}") == config


def test_hash_follows_the_values_of_its_sections_only() -> None:
    plain, changed = load_config("{}"), _inline(fit={"hidden": 32})
    assert plain.hash("loci", "model") == changed.hash("loci", "model")
    assert plain.hash("fit") != changed.hash("fit")
    assert plain.hash() != changed.hash()
    assert plain.hash("fit") == _inline(fit={"hidden": 64, "guide": "structured"}).hash("fit")


def test_hash_is_the_same_in_another_process() -> None:
    code = "from epivi.config.load import load_config; print(load_config('{}').hash())"
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert run.stdout.strip() == load_config("{}").hash()


def test_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, epivi.config.load, epivi.cohort.samples, epivi.cohort.pedigree; "
        "print([m for m in ('torch', 'pandas', 'scipy', 'pyarrow', 'jsonschema', 'yaml') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loci:\n  contxt: CG\n", "FILE line 2: unknown key 'loci.contxt'; did you mean 'context'?"),
        ("Cohort: demo\n", "FILE line 1: unknown key 'Cohort'; did you mean 'cohort'?"),
        ("covariates: [age]\n", "FILE line 1: unknown key 'covariates'; did you mean 'model.covariates'?"),
        (
            "model:\n  hypotheses:\n    a: {heritability: free}\n",
            "FILE line 3: unknown key 'model.hypotheses.a.heritability'; did you mean 'heritable_share'?",
        ),
        (
            "compare:\n  zzz: 1\n",
            "FILE line 2: unknown key 'compare.zzz'; known are fdr, blocks, draws, prior, tilt_nats",
        ),
        # an unknown key is named even where a value before it is wrong too
        ("fit: {hidden: 0}\nloki: 1\n", "FILE line 2: unknown key 'loki'; did you mean 'loci'?"),
    ],
)
def test_unknown_key(tmp_path: Path, text: str, expected: str) -> None:
    assert _message(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loci:\n  coverage:\n    min: 0\n", "FILE line 3: loci.coverage.min is 0: expected a whole number >= 1"),
        ("loci: {coverage: {max: 70000}}\n", "loci.coverage.max is 70000: expected a whole number from 1 to 65535"),
        ("loci: {coverage: {min: 9, max: 8}}\n", "loci.coverage.min is 9: expected at most loci.coverage.max, 8"),
        ("loci: {coverage: {min: true}}\n", "loci.coverage.min is true: expected a whole number >= 1"),
        ("loci: {min_covered_samples: 0}\n", "loci.min_covered_samples is 0: expected a fraction between 0 and 1"),
        ("loci: {min_covered_samples: 1.0}\n", "loci.min_covered_samples is 1.0: expected a fraction below 1"),
        ("loci: {min_covered_samples: 2.5}\n", "loci.min_covered_samples is 2.5: expected a fraction between"),
        ("loci: {unit: {tiles: 200}}\n", 'loci.unit is {"tiles": 200}: expected cpg, {tile: WIDTH}'),
        ("loci: {context: [CG, CG]}\n", 'loci.context is ["CG", "CG"]: expected CG, CHG, CHH, or a list'),
        ("loci: {contigs: {include: [chr1, 2]}}\n", "loci.contigs.include[2] is 2: expected a contig name"),
        ("loci: {contigs: {include: []}}\n", "loci.contigs.include is []: expected a list of contig names"),
        ("loci: 3\n", "FILE line 1: loci is 3: expected a mapping of keys"),
        ("cohort: a/b\n", "cohort is \"a/b\": expected a name of letters, digits, '.', '_' and '-'"),
        ("cohort: ..\n", 'cohort is "..": expected a name'),
        ("cohort: 42\n", "cohort is 42: expected a name of letters, digits, '.', '_' and '-' (write it in quotes)"),
        ("cohort: 2024-01-01\n", "\"2024-01-01\": expected a name of letters, digits, '.', '_' and '-' (write it in"),
        ("pedigree: {nodes: a}\n", 'pedigree is {"nodes": "a"}: expected a path, or {nodes: PATH, edges: PATH}'),
        ("seed: -1\n", "seed is -1: expected a whole number >= 0"),
        ("fit: {seed: 1.5}\n", "fit.seed is 1.5: expected a whole number >= 0, or null"),
        ("fit: {guide: full}\n", 'fit.guide is "full": expected structured or meanfield'),
        ("fit: {device:}\n", "fit.device is empty: expected auto, cpu or cuda"),
        ("evidence: {device: gpu}\n", 'evidence.device is "gpu": expected auto, cpu or cuda'),
        (
            "fit: {tolerance: 5e-4}\n",
            'fit.tolerance is "5e-4": expected a number above 0 (this is text: write it as 0.0005',
        ),
        ("fit: {tolerance: .inf}\n", "fit.tolerance is inf: expected a finite number"),
        ("fit: {learning_rate: .nan}\n", "fit.learning_rate is nan: expected a finite number"),
        ("compare: {fdr: 1}\n", "compare.fdr is 1: expected a number between 0 and 1"),
        ("model: {priors: {tau: {alpha: 0}}}\n", "model.priors.tau.alpha is 0: expected a number above 0"),
        ("model: {family: epimutations}\n", 'model.family is "epimutations": expected transmission or epimutation'),
        ("model: {covariates: age}\n", 'model.covariates is "age": expected a list of different sample-sheet columns'),
        ("- a\n", 'FILE: the configuration must be a mapping of keys, not ["a"]'),
    ],
)
def test_wrong_value(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in _message(tmp_path, text)


@pytest.mark.parametrize(
    ("hypotheses", "expected"),
    [
        ("{}", "FILE line 2: model.hypotheses is empty: expected at least one hypothesis"),
        ("{1a: {}}", "FILE line 2: model.hypotheses.1a: expected a name of letters"),
        ("{a b: {}}", "model.hypotheses.a b: expected a name of letters"),
        ("{a: {heritable_share: free}}", "a has heritable_share but not maternal and paternal: expected both"),
        ("{a: {heritable_share: free, paternal: 1}}", "a has heritable_share but not maternal: expected both"),
        ("{a: {maternal: tau}}", "a has maternal but no heritable_share: expected heritable_share: free or a number"),
        ("{a: {heritable_share: free, maternal: 0, paternal: 0}}", "a has maternal 0 and paternal 0, so nothing is"),
        (
            "{a: {heritable_share: 0, maternal: 1, paternal: 1}}",
            "heritable_share is 0: expected free, or a number above 0",
        ),
        ("{a: {heritable_share: tau, maternal: 1, paternal: 1}}", 'heritable_share is "tau": expected free'),
        ("{a: {heritable_share: free, maternal: free, paternal: 1}}", 'maternal is "free": expected tau, or a number'),
        (
            "{a: {heritable_share: free, maternal: 1.5, paternal: 1}}",
            "maternal is 1.5: expected tau, or a number from 0",
        ),
        ("{a: {environment: {share: free}}}", "a.environment lacks the key 'column': expected {column: SHEET_COLUMN"),
        ("{a: {environment: cage}}", 'a.environment is "cage": expected {column: SHEET_COLUMN'),
        ("{a: {environment: {column: cage, share: 0}}}", "environment.share is 0: expected free, or a number above 0"),
        ("{a: {}, b: {}}", "model.hypotheses.b is the same as model.hypotheses.a: expected different hypotheses"),
        ("{a: 3}", "model.hypotheses.a is 3: expected a mapping"),
        (
            "{a: {covariates: [age]}}\n  covariates: [age]",
            "a has the covariate 'age', which stands in model.covariates",
        ),
        (
            "{a: {}}\n  null_hypotheses: [b]",
            "FILE line 3: model.null_hypotheses names 'b', which is no hypothesis; known are a",
        ),
        (
            "{reset: {}}\n  null_hypotheses: [rest]",
            "model.null_hypotheses names 'rest', which is no hypothesis; did you mean 'reset'?",
        ),
    ],
)
def test_wrong_hypothesis(tmp_path: Path, hypotheses: str, expected: str) -> None:
    assert expected in _message(tmp_path, f"model:\n  hypotheses: {hypotheses}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cohort: a\nfit:\n  hidden: 1\n  hidden: 2\n",
            "FILE line 4: the key 'fit.hidden' is given twice, first on line 3",
        ),
        ("cohort: a\nloci:\n  context: [CG\nseed: 1\n", "FILE line 4, column 5: not valid YAML: "),
        ("cohort: a\n\tseed: 1\n", "FILE line 2, column 1: not valid YAML: "),
        ("cohort: 2024-13-45\n", "FILE: not valid YAML: "),
        ("[a]: 1\n", "FILE line 1: a key of the mapping is not text"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert _message(tmp_path, text).startswith(expected)


def test_broken_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^inline configuration line 1, column 9: not valid JSON: "):
        load_config('{"seed":}')
    with pytest.raises(UserError, match=r"^inline configuration: the key 'seed' is given twice in one mapping$"):
        load_config('{"seed": 1, "seed": 2}')
    path = tmp_path / "config.json"
    path.write_text('{"seed": 1,\n "fit": {"hiden": 3}}')
    with pytest.raises(UserError, match=r"config.json: unknown key 'fit.hiden'; did you mean 'hidden'\?$"):
        load_config(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: the configuration file does not exist$"):
        load_config(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot read the configuration file"):
        load_config(str(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load_config(str(binary))


def test_schema_defaults_satisfy_the_schema() -> None:
    import jsonschema

    schema = load_schema("config")
    jsonschema.Draft202012Validator.check_schema(schema)
    given = {key: value for key, value in load_config("{}").resolved.items() if value is not None}
    jsonschema.Draft202012Validator(schema).validate(given)


def test_suggestion() -> None:
    assert suggestion("hidn", ["hidden", "guide"]) == "did you mean 'hidden'?"
    assert suggestion("HIDDEN", ["hidden"]) == "did you mean 'hidden'?"
    assert suggestion("x", ["hidden", "guide"]) == "known are hidden, guide"
    assert suggestion("x", []) == "none is known here"


# ---- paths


PATHS = {
    "samples": "~/samples.tsv",
    "pedigree": {"nodes": "~/n.fn", "edges": "~/e.fn"},
    "results": "~/results",
    "loci": {"reference": "~/genome.fa", "unit": {"bed": "~/regions.bed"}, "array": {"manifest": "~/probes.tsv"}},
    "qc": {"genotypes": "~/calls.vcf.gz"},
    "model": {"family": "epimutation", "classes": "~/classes.bed"},
}


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    resolved = load_config(json.dumps(PATHS)).resolved
    leaves = {
        ".".join(map(str, path)): value for path, value in _leaves(resolved) if str(value).startswith("/home/ann/")
    }
    assert leaves["loci.unit.bed"] == "/home/ann/regions.bed"
    asked = {".".join(path) for path, _ in _leaves(PATHS)} - {"model.family"}
    assert set(leaves) == asked
    assert load_config('{"pedigree": "~/p.fam"}').resolved["pedigree"] == "/home/ann/p.fam"
    assert "~" not in json.dumps(load_config("{}", base=PATHS).resolved)


def test_each_key_that_is_a_path_is_tried_above() -> None:
    described = {
        key for key, schema in leaf_keys(load_schema("config")) if re.search("a path|PATH", schema.get("expected", ""))
    }
    of_hypothesis = {"model.hypotheses.<name>.relatedness.file"}  # tried below
    assert described > of_hypothesis
    described -= of_hypothesis
    tried = {".".join(path) for path, _ in _leaves(PATHS)}
    assert all(any(key == one or one.startswith(f"{key}.") for one in tried) for key in described)


def test_a_tilde_in_relatedness_files_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    several = [{"file": "~/one.tsv"}, {"file": "two.tsv"}]
    hypotheses = {"reset": {}, "two": {"relatedness": several}, "one": {"relatedness": {"file": "two.tsv"}}}
    config = load_config(json.dumps({"model": {"hypotheses": hypotheses}}))
    assert config.relatedness_files == ("/home/ann/one.tsv", "two.tsv")
    assert config.null_hypotheses == ("reset", "two", "one")


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ({"environment": []}, "model.hypotheses.a.environment is []: expected {column: SHEET_COLUMN"),
        ({"environment": [{"column": "cage"}, {"share": 0.2}]}, "environment[2] lacks the key 'column': expected {col"),
        ({"environment": [{"column": "cage"}, {"colum": "b"}]}, "environment[2].colum'; did you mean 'column'?"),
        ({"environment": [{"column": "cage"}] * 2}, "a names the environment column 'cage' twice"),
        ({"environment": [{"column": "cage"}, {"column": "Cage"}]}, "the column Cage_share_mean of another component"),
        ({"environment": [{"column": "x"}, {"column": "Heritable"}]}, "the column Heritable_share_mean of another"),
        ({"environment": [{"column": "x"}, {"column": "effect_x"}]}, "whose name begins as the columns of effects do"),
        ({"relatedness": {"share": 0.5}}, "relatedness lacks the key 'file': expected {file: PATH"),
        ({"relatedness": [{"file": "a/x.tsv"}, {"file": "b/X.tsv"}]}, "the column X_share_mean of another component"),
    ],
)
def test_components_that_cannot_be(hypothesis: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(json.dumps({"model": {"hypotheses": {"reset": {}, "a": hypothesis}}}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _leaves(value: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, child in value.items() for leaf in _leaves(child, (*path, key))]

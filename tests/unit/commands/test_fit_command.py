"""`epivi fit`: what it writes, how it stops and continues, and one line for every wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_cases import FIT_SECTION, MODEL, STEPS, command_line, configuration, results, run, write_cohort
from transmission_cases import CPU, write_store

from epivi.base.errors import UserError
from epivi.base.files import content_hash, exclusive
from epivi.config.load import load_config
from epivi.families.inputs import read_problem
from epivi.families.transmission import fit as fit_step
from epivi.families.transmission.density import Hyperparameters, LearnedPriors, build_transmission, to_batch
from epivi.families.transmission.fit import new_state
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.shared import learn_shared
from epivi.fit import svi
from epivi.fit.folder import CHECKPOINT, FIT, GUIDE, LOCK, LOSS, device_of, load_checkpoint, load_fit, save_checkpoint
from epivi.fit.minibatch import Minibatches
from epivi.fit.svi import FitSettings, holdout_bound
from epivi.loci.store import MANIFEST, PANELS, read_provenance
from epivi.tables.parquet import read_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fit") / "fit"
    assert run(folder, output, configuration()) == 0
    return output


# --- other methods


def test_another_method_learns_from_where_svi_ends(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The network is that of svi; what all loci share has moved, and the record says by what."""
    output = tmp_path / "fit"
    assert run(folder, output, configuration(method_loci=20), "--method", "meanfield") == 0
    record, by_svi = (json.loads((path / FIT).read_text()) for path in (output, undisturbed))
    assert record["settings"]["method"] == "meanfield"
    assert record["hyperparameters"]["spread_location"] != by_svi["hyperparameters"]["spread_location"]
    assert np.sum(record["hyperparameters"]["hypothesis_weights"]) == pytest.approx(1)
    networks = [torch.load(path / GUIDE, weights_only=True) for path in (output, undisturbed)]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert (output / CHECKPOINT).exists()  # from which more steps would go on


@pytest.mark.parametrize("method", ["nuts", "lrvb", "svii"])
def test_method_that_cannot_fit_is_one_line(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path / "fit", configuration(), "--method", method) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'fit.method is "{method}"' in line
    assert "svi, meanfield, cavi, laplace or ep; lrvb and nuts give no evidence to fit by" in line
    assert not (tmp_path / "fit").exists()


def test_cavi_with_conversion_error_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "samples.tsv").read_text().splitlines()
    sheet = tmp_path / "samples.tsv"
    sheet.write_text("\n".join([lines[0] + "\tfalse_methylated", *(f"{line}\t0.01" for line in lines[1:])]) + "\n")
    assert run(folder, tmp_path / "fit", configuration(method="cavi"), samples=sheet) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{sheet}: fit.method cavi needs false_methylated" in line


# --- what all loci share, by the evidence


def test_fit_ends_with_the_evidence_of_some_loci(
    folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound's values stay beside those learned; killed meanwhile, there is no record, and the same command learns
    the same without another step of the bound."""
    output, config = tmp_path / "fit", configuration(shared="evidence")
    with monkeypatch.context() as patch:
        patch.setattr(fit_step, "learn_shared", killed_in_the_middle)
        assert run(folder, output, config) == 130
    assert {path.name for path in output.iterdir()} == {CHECKPOINT}
    taken = count_steps(monkeypatch)
    assert run(folder, output, config) == 0
    assert taken == []
    record, by_bound = (json.loads((path / FIT).read_text()) for path in (output, undisturbed))
    assert record["variational_hyperparameters"] == by_bound["hyperparameters"]
    assert record["hyperparameters"] != by_bound["hyperparameters"]
    assert by_bound["variational_hyperparameters"] == by_bound["hyperparameters"]
    assert "standard_errors" not in by_bound
    assert len(record["standard_errors"]["effect_sds"]) == 1
    assert record["standard_errors"]["spread_location"] > 0
    assert record["shared"]["loci"] == record["settings"]["shared_loci"] == 48
    nats = record["shared"]["log_evidence_nats_per_locus"]
    assert nats["evidence"] > nats["variational"]
    assert any("had not converged" in warning for warning in record["warnings"])
    fitted = load_fit(output, LearnedPriors)
    assert fitted.learned.spread_scale == record["hyperparameters"]["spread_scale"]
    assert fitted.trained_at.spread_scale == by_bound["hyperparameters"]["spread_scale"]
    assert fitted.warnings == tuple(record["warnings"])
    assert run(folder, tmp_path / "whole", config) == 0
    assert results(tmp_path / "whole") == results(output)


def killed_in_the_middle(model: Any, counts: Any, seed: int, threads: int, advance: Any) -> Any:
    learn_shared(model, counts, seed, threads, lambda loci: os.kill(os.getpid(), signal.SIGINT))


# --- what it writes


def test_fit_writes_readable_results(folder: Path, undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == {FIT, GUIDE, LOSS, CHECKPOINT}
    record = json.loads((undisturbed / FIT).read_text())
    config = load_config(configuration())
    assert (record["seed"], record["steps"], record["converged"]) == (3, STEPS, False)
    assert record["config_hash"] == config.hash("model", "fit")
    assert record["settings"] == {**config.section("fit"), "seed": 3}
    assert set(record["hyperparameters"]) == set(LearnedPriors._fields)
    assert np.sum(record["hyperparameters"]["baseline_weights"]) == pytest.approx(1)
    assert len(record["hyperparameters"]["effect_sds"]) == 1
    loss = read_table(undisturbed / LOSS, "loss").to_pandas()
    assert loss["step"].tolist() == list(range(1, STEPS + 1))
    assert np.isfinite(loss["batch_elbo"]).all()
    assert (np.diff(loss["elapsed_s"]) >= 0).all()
    held_out = loss.set_index("step")["holdout_elbo"].dropna()
    assert held_out.index.tolist() == [4, 8, STEPS]
    assert record["holdout_elbo_nats_per_locus"] == pytest.approx(held_out.iloc[-1])
    provenance = read_provenance(undisturbed / LOSS)
    assert (provenance.table, provenance.seed, provenance.pedigree_hash) == ("loss", 3, record["pedigree_hash"])


def test_fit_read_back_bounds_the_held_out_loci_as_it_said(folder: Path, undisturbed: Path) -> None:
    config = load_config(configuration())
    inputs = (str(folder / name) for name in ("loci", "samples.tsv", "pedigree.tsv"))
    problem = read_problem(*inputs, config)
    fitted = load_fit(undisturbed, LearnedPriors)
    assert fitted.stamp == problem.stamp
    assert fitted.hidden == 8
    family = build_transmission(problem.cohort, problem.hypotheses, problem.priors, CPU, torch.float32)
    settings = FitSettings(1, 0.1, 1, 0.1, 3)
    state = new_state(problem.cohort, family, 2, fitted.hidden, settings, CPU)
    state.encoder.load_state_dict(fitted.encoder_state)
    state.averaged.load_state_dict(Hyperparameters.restored(fitted.learned).float().state_dict())
    minibatches = Minibatches(problem.store, 32, 32, seed=3)
    bound = holdout_bound(state, family, GUIDES["structured"], to_batch(minibatches.holdout(), 300, CPU), 3)
    expected = json.loads((undisturbed / FIT).read_text())["holdout_elbo_nats_per_locus"]
    assert bound == pytest.approx(expected, abs=1e-3)


def test_order_of_the_sheet_does_not_matter(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The store decides the order of samples; individuals and covariates follow the names."""
    header, *lines = (folder / "samples.tsv").read_text().splitlines()
    shuffled = np.random.default_rng(1).permutation(lines).tolist()
    assert shuffled != lines
    (tmp_path / "samples.tsv").write_text("\n".join([header, *shuffled]) + "\n")
    assert run(folder, tmp_path / "fit", configuration(), samples=tmp_path / "samples.tsv") == 0
    assert results(tmp_path / "fit") == results(undisturbed)


def test_meanfield_guide_is_another_fit(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "fit", configuration(guide="meanfield")) == 0
    assert results(tmp_path / "fit")[1] != results(undisturbed)[1]


def test_stamp_changes_with_what_a_fit_depends_on(folder: Path, tmp_path: Path) -> None:
    def stamp(config: str, samples: Path = folder / "samples.tsv") -> str:
        return read_problem(str(folder / "loci"), str(samples), str(folder / "pedigree.tsv"), load_config(config)).stamp

    plain = stamp(configuration())
    assert stamp(configuration(max_steps=77)) == plain, "settings of the optimizer are not the problem's"
    other_model = json.loads(configuration())
    other_model["model"]["baseline_components"] = 3
    older = tmp_path / "samples.tsv"
    older.write_text((folder / "samples.tsv").read_text().replace("\t10\n", "\t99\n"))
    assert len({plain, stamp(json.dumps(other_model)), stamp(configuration(), older)}) == 3


# --- stopping and continuing


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGTERM) -> None:
    """The process is asked to stop while it takes this step."""
    plain = fit_step.fit_steps

    def interrupted(*arguments: Any) -> Iterator[svi.LossRow]:
        for row in plain(*arguments):
            if row.step == step:
                os.kill(os.getpid(), number)
            yield row

    monkeypatch.setattr(fit_step, "fit_steps", interrupted)


@pytest.mark.parametrize(("step", "number"), [(2, signal.SIGTERM), (8, signal.SIGINT)])
def test_stopped_fit_continues_to_the_same_end(
    step: int, number: signal.Signals, folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "fit"
    handlers = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        stop_at(step, patch, number)
        assert run(folder, output, configuration()) == 130
    assert [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert {path.name for path in output.iterdir()} == {CHECKPOINT}
    torch.manual_seed(999)
    taken = count_steps(monkeypatch)
    assert run(folder, output, configuration()) == 0
    assert taken == list(range(step + 1, STEPS + 1))
    assert {path.name for path in output.iterdir()} == {FIT, GUIDE, LOSS, CHECKPOINT}
    assert results(output) == results(undisturbed)
    elapsed = read_table(output / LOSS, "loss").column("elapsed_s").to_numpy()
    assert (np.diff(elapsed) >= 0).all()


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that later runs take."""
    plain, taken = fit_step.fit_steps, []

    def counted(*arguments: Any) -> Iterator[svi.LossRow]:
        for row in plain(*arguments):
            taken.append(row.step)
            yield row

    monkeypatch.setattr(fit_step, "fit_steps", counted)
    return taken


@pytest.mark.parametrize("change", ["--no-resume", "settings"])
def test_checkpoint_of_another_fit_is_not_continued(
    change: str, folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "fit"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        before = configuration(learning_rate=0.02) if change == "settings" else configuration()
        assert run(folder, output, before) == 130
    taken = count_steps(monkeypatch)
    assert run(folder, output, configuration(), *(["--no-resume"] if change == "--no-resume" else [])) == 0
    assert taken == list(range(1, STEPS + 1))
    assert results(output) == results(undisturbed)


def test_a_fit_that_has_not_converged_goes_on_with_more_steps(
    folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the program advises; also where it was interrupted, and from as few to more. Fewer steps begin anew."""
    output = tmp_path / "fit"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run(folder, output, configuration(max_steps=STEPS - 2)) == 130
    taken = count_steps(monkeypatch)
    for max_steps, expected in ((STEPS - 2, range(4, STEPS - 1)), (STEPS, (STEPS - 1, STEPS)), (STEPS, ())):
        assert run(folder, output, configuration(max_steps=max_steps, checkpoint_minutes=max_steps)) == 0
        assert taken == list(expected)
        taken.clear()
        assert json.loads((output / FIT).read_text())["steps"] == max_steps
    one, two = (read_table(path / LOSS, "loss").to_pandas() for path in (output, undisturbed))
    assert one["step"].tolist() == two["step"].tolist() == list(range(1, STEPS + 1))
    # The same optimization, but for the rate at which it learns.
    np.testing.assert_allclose(one["batch_elbo"], two["batch_elbo"], rtol=0.02)
    assert run(folder, output, configuration(max_steps=STEPS - 1)) == 0
    assert taken == list(range(1, STEPS))


def test_checkpoint_of_other_counts_is_not_continued(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels of loci are named by the content of their counts."""
    loci, output = tmp_path / "loci", tmp_path / "fit"
    shutil.copytree(folder / "loci", loci)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run(folder, output, configuration(), loci=loci) == 130
    manifest = json.loads((loci / MANIFEST).read_text())
    for number, panel in enumerate(manifest["panels"]):
        (loci / PANELS / panel["name"]).rename(loci / PANELS / f"other{number}")
        panel["name"] = f"other{number}"
    (loci / MANIFEST).write_text(json.dumps(manifest))
    taken = count_steps(monkeypatch)
    assert run(folder, output, configuration(), loci=loci) == 0
    assert taken == list(range(1, STEPS + 1))


def test_checkpoints_are_renewed_on_the_clock(
    folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step when the interval is shorter than a step; the last one is the state before the end."""
    from epivi.fit import folder as fitted

    saved = []

    def recorded(output: Path, state: dict[str, Any], stamp: str, step: int, elapsed_s: float) -> None:
        assert state["step"] == step
        saved.append((step, elapsed_s))
        save_checkpoint(output, state, stamp, step, elapsed_s)
        assert (output / CHECKPOINT).exists()

    monkeypatch.setattr(fitted, "save_checkpoint", recorded)
    assert run(folder, tmp_path / "fit", configuration(checkpoint_minutes=1e-7)) == 0
    # And once more at the end, since the fit has not converged.
    assert [step for step, _ in saved] == [*range(1, STEPS + 1), STEPS]
    assert (np.diff([elapsed for _, elapsed in saved]) > 0).all()
    assert results(tmp_path / "fit")[1] == results(undisturbed)[1]


def test_fit_leaves_before_its_deadline_and_continues(
    folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the deadline every start takes one step, so that even jobs that are far too short come to the end."""
    output = tmp_path / "fit"
    taken = count_steps(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setenv("EPIVI_DEADLINE", "0")
        for step in (1, 2, 3):
            assert run(folder, output, configuration()) == 130
            assert taken == list(range(1, step + 1))
            assert {path.name for path in output.iterdir()} == {CHECKPOINT}
    monkeypatch.setenv("EPIVI_DEADLINE", "99999999999")
    assert run(folder, output, configuration()) == 0
    assert taken == list(range(1, STEPS + 1))
    assert results(output) == results(undisturbed)


def test_second_fit_in_the_same_folder_is_refused(
    folder: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fit"
    with exclusive(output / LOCK):
        line = error_of(capsys, folder, output, configuration())
        assert line.startswith(f"{output}: process {os.getpid()} on ")
        assert "one process at a time" in line
        assert {path.name for path in output.iterdir()} == {LOCK}
    assert run(folder, output, configuration()) == 0
    assert results(output) == results(undisturbed)


def fit_in_a_process(folder: Path, output: Path, config: str) -> subprocess.Popen[bytes]:
    """The command as a cluster runs it, to be killed."""
    line = [sys.executable, "-m", "epivi", "--quiet", *command_line(folder, output, config)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_fit_killed_at_random_moments_ends_the_same(kills: int, folder: Path, tmp_path: Path) -> None:
    """SIGKILL while it steps, evaluates or writes its checkpoint, which it does after every step; bit for bit."""
    config = configuration(max_steps=20 * kills, tolerance=1e-12, checkpoint_minutes=1e-7)
    assert run(folder, tmp_path / "whole", config) == 0
    output, steps = tmp_path / "fit", []
    moments = np.random.default_rng(5).uniform(0.0, 0.2, kills)
    for moment in moments:
        process = fit_in_a_process(folder, output, config)
        before = modified(output / CHECKPOINT)
        while process.poll() is None and modified(output / CHECKPOINT) == before:
            time.sleep(0.005)
        time.sleep(moment)
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.kill()
        process.communicate()
        steps.append(torch.load(output / CHECKPOINT, weights_only=True)["state"]["step"])
        assert not (output / FIT).exists()
    assert (np.diff([0, *steps]) > 0).all()
    assert run(folder, output, config) == 0
    assert {path.name for path in output.iterdir()} == {FIT, GUIDE, LOSS, CHECKPOINT}
    assert results(output) == results(tmp_path / "whole")


def modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


# --- wrong inputs


def error_of(capsys: pytest.CaptureFixture[str], *arguments: Any, **inputs: Any) -> str:
    """The one line of a user error."""
    capsys.readouterr()
    assert run(*arguments, **inputs) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("epivi: error: ")


def edited_sheet(folder: Path, tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "samples.tsv"
    text = (folder / "samples.tsv").read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_samples_of_other_loci(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = edited_sheet(folder, tmp_path, "s4\t", "other\t")
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), samples=renamed)
    assert line.startswith(f"{renamed}: its samples are not those of {folder / 'loci'}: 's4' is only in the loci")
    header, *rows = (folder / "samples.tsv").read_text().splitlines()
    renamed.write_text("\n".join([header, *rows, "extra\tF1_child\textra.cov.gz\t4"]) + "\n")
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), samples=renamed)
    assert "'extra' is only in the sheet" in line
    assert not (tmp_path / "fit").exists()


def test_individual_without_a_place_in_the_pedigree(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = edited_sheet(folder, tmp_path, "F2_child", "F2_chidl")
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), samples=stray)
    assert "'F2_chidl'" in line
    assert "not in the pedigree" in line


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"covariates": ["agee"]}, "no column 'agee'"),
        ({"hypotheses": {"household": {"environment": {"column": "cage"}}}}, "no column 'cage'"),
        ({"hypotheses": {"reset": {"covariates": ["batch"]}}, "covariates": []}, "no column 'batch'"),
    ],
)
def test_unknown_column(
    model: dict, expected: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.dumps({"model": {**MODEL, **model}, "fit": FIT_SECTION})
    line = error_of(capsys, folder, tmp_path / "fit", config)
    assert line.startswith(str(folder / "samples.tsv"))
    assert expected in line


def test_missing_covariate_value(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = edited_sheet(folder, tmp_path, "\t10\n", "\tNA\n")
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), samples=missing)
    assert f"{missing} line 2: column 'age' of sample 's0' is missing" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, folder, tmp_path / "fit", configuration(device="cuda"))
    assert line == "fit.device: cuda was asked for, but this machine shows no CUDA device; expected cpu or auto"
    assert device_of("auto", "fit") == device_of("cpu", "fit") == torch.device("cpu")


@pytest.mark.parametrize("name", ["loci", "samples", "pedigree"])
def test_missing_input(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), **{name: tmp_path / "nowhere"})
    assert line.startswith(str(tmp_path / "nowhere"))


def test_too_few_loci(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.ones((10, 12)), np.full((10, 12), 2)
    write_store(tmp_path / "loci", tuple(f"s{k}" for k in range(12)), {"chr1": counts})
    line = error_of(capsys, folder, tmp_path / "fit", configuration(), loci=tmp_path / "loci")
    assert "holds 10 loci" in line


DAMAGES = {
    "garbage": lambda data: b"not a checkpoint",
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "hole": lambda data: data[:200] + bytes(400) + data[600:],
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_checkpoint(damage: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fit"
    save_checkpoint(output, {"tensor": torch.zeros(500)}, "stamp", 4, 1.0)
    path = output / CHECKPOINT
    assert load_checkpoint(output, "stamp", 9) is not None
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    line = error_of(capsys, folder, output, configuration())
    assert line.startswith(f"{path}: a damaged checkpoint")
    assert line.endswith("remove it to start the fit anew")
    assert len(line) < 300
    path.unlink()
    assert run(folder, output, configuration(max_steps=1)) == 0


def test_checkpoint_of_something_else_is_damage(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="a damaged checkpoint"):
        load_checkpoint(tmp_path, "stamp", 9)


def test_checkpoint_is_for_its_stamp_alone(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "stamp", 9) is None
    save_checkpoint(tmp_path, {"step": 4}, content_hash(["one"]), 4, 12.5)
    assert load_checkpoint(tmp_path, content_hash(["one"]), 4) == ({"step": 4}, 12.5)
    assert load_checkpoint(tmp_path, content_hash(["two"]), 4) is None
    assert load_checkpoint(tmp_path, content_hash(["one"]), 3) is None


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_guide(damage: str, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / FIT).write_bytes((undisturbed / FIT).read_bytes())
    (tmp_path / GUIDE).write_bytes(DAMAGES[damage]((undisturbed / GUIDE).read_bytes()))
    with pytest.raises(UserError, match="not a whole fit written by epivi fit") as caught:
        load_fit(tmp_path, LearnedPriors)
    assert "\n" not in str(caught.value)


def test_damaged_record(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fit\.json: no such file; expected a folder written by epivi fit"):
        load_fit(tmp_path, LearnedPriors)
    record = json.loads((undisturbed / FIT).read_text())
    (tmp_path / FIT).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"guide\.pt: no such file"):
        load_fit(tmp_path, LearnedPriors)
    newer = {**record, "format_version": record["format_version"] + 1, "version": "9.9"}
    lacking = {**record, "hyperparameters": {"spread_location": 1.0}}
    for content, message in (
        (json.dumps(newer), "format version .*written by epivi 9.9"),
        (json.dumps(lacking), "not a whole fit"),
        ("[]", "not a whole fit"),
        ("{", "not a whole fit"),
    ):
        (tmp_path / FIT).write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            load_fit(tmp_path, LearnedPriors)
        assert "\n" not in str(caught.value)

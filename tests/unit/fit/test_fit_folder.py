"""What a fit keeps in its folder, and how damage is said; the Gaussians that its guides give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from epivi.base.errors import UserError
from epivi.fit.folder import (
    CHECKPOINT,
    FIT,
    GUIDE,
    device_of,
    load_checkpoint,
    load_fit,
    remove_checkpoint,
    save_checkpoint,
)
from epivi.fit.gaussian import OUTPUT_BOUND, bounded_gaussian, quiet_linear


class Learned(NamedTuple):
    spread: float
    weights: np.ndarray


def write_fit(folder: Path, **changes: object) -> None:
    record = {
        "format_version": 1,
        "version": "0",
        "stamp": "of these",
        "settings": {"hidden": 8, "guide": "structured"},
        "hyperparameters": {"spread": 0.5, "weights": [0.25, 0.75]},
    }
    (folder / FIT).write_text(json.dumps(record | changes))
    torch.save({"layer": torch.ones(2)}, folder / GUIDE)


def test_a_fit_is_read_back_or_named_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; expected a folder written by epivi fit"):
        load_fit(tmp_path, Learned)
    write_fit(tmp_path)
    fitted = load_fit(tmp_path, Learned)
    assert fitted.learned.spread == 0.5
    assert fitted.learned.weights.tolist() == [0.25, 0.75]
    assert (fitted.stamp, fitted.hidden, fitted.guide) == ("of these", 8, "structured")
    assert fitted.trained_at.weights.tolist() == [0.25, 0.75], "of an earlier version"
    write_fit(tmp_path, variational_hyperparameters={"spread": 0.4, "weights": [0.5, 0.5]}, warnings=["hardly known"])
    fitted = load_fit(tmp_path, Learned)
    assert (fitted.learned.spread, fitted.trained_at.spread, fitted.warnings) == (0.5, 0.4, ("hardly known",))
    write_fit(tmp_path, format_version=99)
    with pytest.raises(UserError, match="format version 99"):
        load_fit(tmp_path, Learned)
    write_fit(tmp_path, hyperparameters={})
    with pytest.raises(UserError, match="not a whole fit"):
        load_fit(tmp_path, Learned)


def test_a_checkpoint_is_of_its_own_fit_or_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(tmp_path, "a", 10) is None
    save_checkpoint(tmp_path, {"x": torch.arange(3)}, "a", 5, 2.5)
    state, elapsed_s = load_checkpoint(tmp_path, "a", 10) or ({}, 0.0)
    assert state["x"].tolist() == [0, 1, 2]
    assert elapsed_s == 2.5
    assert load_checkpoint(tmp_path, "b", 10) is None
    assert load_checkpoint(tmp_path, "a", 4) is None
    assert "of other inputs" in caplog.text
    assert "beyond fit.max_steps" in caplog.text
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[:-50])
    with pytest.raises(UserError, match="a damaged checkpoint"):
        load_checkpoint(tmp_path, "a", 10)
    remove_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, "a", 10) is None


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto", "fit") == torch.device("cpu")
    with pytest.raises(UserError, match=r"fit\.device: cuda was asked for"):
        device_of("cuda", "fit")


def test_predictions_start_at_their_start_and_stay_within_bounds() -> None:
    centre, width = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.1]])
    still = bounded_gaussian(torch.zeros(1, 5), centre, width)
    torch.testing.assert_close(still.mean, centre)
    torch.testing.assert_close(still.scale_tril, torch.diag_embed(width))
    far = bounded_gaussian(torch.full((1, 5), 1e6), centre, width)
    torch.testing.assert_close(far.mean, centre + OUTPUT_BOUND * width)
    assert torch.isfinite(far.scale_tril).all()
    assert (torch.diagonal(far.scale_tril, dim1=1, dim2=2) > 0).all()
    layer = quiet_linear(4, 3)
    assert layer.bias.abs().max() == 0
    assert 0 < layer.weight.abs().max() < 0.1

"""A new optimizer and a new selection method are one file each, and work as the others do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_prune import Trajectory, TrajectoryCallback, add_influence, prune
from hf_prune.errors import UnsupportedError
from hf_prune.optimizers import ADJOINTS, KINDS
from hf_prune.selection.method import METHODS
from hf_prune.testing import check_adjoint, check_selection_method
from tests.selection.scored import scored
from tests.toys import Mlp, arguments, vectors


@pytest.fixture
def toy_optimizer() -> Iterator[ModuleType]:
    yield importlib.import_module("tests.testing.toy_optimizer")
    del KINDS["Averaged"], ADJOINTS["Averaged"], sys.modules["tests.testing.toy_optimizer"]


@pytest.fixture
def toy_method() -> Iterator[ModuleType]:
    yield importlib.import_module("tests.testing.toy_method")
    del METHODS["toy"], sys.modules["tests.testing.toy_method"]


def influence_of(run: Path, optimizer: type[torch.optim.Optimizer], **options: float) -> np.ndarray:
    torch.manual_seed(0)
    model, rows = Mlp(), vectors(40)
    trainer = Trainer(
        model,
        arguments(run / "out", num_train_epochs=3),
        train_dataset=rows,
        optimizers=(optimizer(model.parameters(), lr=0.05, **options), None),
        callbacks=[TrajectoryCallback(run / "trajectory")],
    )
    trainer.train()
    return np.array(add_influence(rows, run / "trajectory", model=model, directions=4)["influence"])


def test_a_new_optimizer_is_the_derivative_of_itself(toy_optimizer: ModuleType):
    check_adjoint(toy_optimizer.Averaged)


def test_a_run_of_a_new_optimizer_is_recorded_and_scored(toy_optimizer: ModuleType, tmp_path: Path):
    """Without averaging it is plain SGD, and so are the scores."""
    found = influence_of(tmp_path / "new", toy_optimizer.Averaged, beta=0.0)
    optimizer = Trajectory.open(tmp_path / "new" / "trajectory").manifest.optimizer
    assert optimizer == {"name": "Averaged", "groups": [{"beta": 0.0}]}
    known = influence_of(tmp_path / "known", torch.optim.SGD)
    np.testing.assert_allclose(found, known, atol=1e-5 * np.abs(known).max())
    assert np.linalg.norm(known) > 0
    averaged = influence_of(tmp_path / "averaged", toy_optimizer.Averaged, beta=0.9)
    assert np.linalg.norm(averaged - known) > 0.1 * np.linalg.norm(known)


def test_a_run_of_an_optimizer_whose_file_is_not_there_is_refused_by_name(toy_optimizer: ModuleType, tmp_path: Path):
    kind, adjoint = KINDS["Averaged"], ADJOINTS["Averaged"]
    influence_of(tmp_path, kind)
    del ADJOINTS["Averaged"]
    try:
        with pytest.raises(UnsupportedError, match="The optimizer Averaged has no adjoint here"):
            add_influence(vectors(40), tmp_path / "trajectory", model=Mlp(), directions=4)
    finally:
        ADJOINTS["Averaged"] = adjoint


def test_a_new_selection_method_prunes_and_passes_the_checks(toy_method: ModuleType):
    rows = scored(240)
    check_selection_method("toy", rows)
    pruned = prune(rows, 0.5, method="toy", balance=False)
    assert max(pruned["influence_norm"]) <= np.median(rows["influence_norm"])

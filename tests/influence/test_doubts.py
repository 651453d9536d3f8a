"""What makes scores less faithful is told when rows are scored, and again when they are chosen, wherever they were."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, load_from_disk
from torch import nn

from hf_prune import TrajectoryCallback, add_influence, prune
from hf_prune._core.doubts import DOUBTED
from hf_prune._core.scoring import require_scoring
from hf_prune.publish.provenance import build, scoring_record
from tests.influence.test_objectives import STEP
from tests.toys import Mlp, train, vectors

CHAOTIC = "cotangents grew"


@pytest.fixture(scope="module")
def chaotic(tmp_path_factory: pytest.TempPathFactory):
    """A run at a learning rate at which small changes grow: its record, its model and its rows."""
    torch.manual_seed(0)
    path, rows = tmp_path_factory.mktemp("chaotic"), vectors(48)
    options = {"learning_rate": 8.0, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    callback = TrajectoryCallback(path / "trajectory", window=1.0)
    trainer = train(Mlp(), rows, path / "out", [callback], num_train_epochs=6, **options)
    return path / "trajectory", trainer.model, rows


def scored(run, **options) -> Dataset:
    path, model, rows = run
    return add_influence(rows, path, model=model, eval_dataset=vectors(16, seed=1), directions=8, **options)


def test_a_chaotic_run_is_told_of_when_scored_when_scored_again_and_when_pruned(chaotic, tmp_path, caplog):
    first = scored(chaotic)
    assert CHAOTIC in caplog.text
    caplog.clear()
    again = scored(chaotic)  # from the cache, without a sweep
    assert CHAOTIC in caplog.text
    assert require_scoring(again) == require_scoring(first)
    again.save_to_disk(str(tmp_path / "scored"))
    caplog.clear()
    pruned = prune(load_from_disk(str(tmp_path / "scored")), keep=0.5)
    assert CHAOTIC in caplog.text
    certificate = pruned.selection.certificate
    assert [note for note in certificate.notes if note.startswith(DOUBTED)]
    assert certificate.verdict.startswith("By scores that may not hold (see the notes): ")
    assert scoring_record(build(pruned)).doubts == require_scoring(first).doubts


def test_batch_norm_that_changes_the_gradient_is_told_of_when_pruned(tmp_path, caplog):
    torch.manual_seed(0)
    model, rows = Mlp(), vectors(24, noise=5.0)
    model.net.insert(1, nn.BatchNorm1d(16))
    callback = TrajectoryCallback(tmp_path / "run", window=1.0)
    trainer = train(model, rows, tmp_path / "out", [callback], **STEP)
    found = scored((tmp_path / "run", trainer.model, rows))
    caplog.clear()
    prune(found, keep=0.5)
    assert "BatchNorm" in caplog.text


def test_a_run_without_doubts_is_warned_of_nowhere(tmp_path, caplog):
    torch.manual_seed(0)
    rows = vectors(48)
    options = {"learning_rate": 0.05, "optim": "sgd"}
    trainer = train(
        Mlp(), rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "run")], num_train_epochs=3, **options
    )
    found = scored((tmp_path / "run", trainer.model, rows))
    pruned = prune(found, keep=0.5)
    assert require_scoring(found).doubts == ()
    assert DOUBTED not in caplog.text
    assert "may not hold" not in pruned.selection.certificate.explain()

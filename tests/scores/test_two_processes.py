"""With two processes, statistics and scores are those of the rows that each process was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_prune.scores import add_scores
from hf_prune.trajectory import Trajectory
from tests.launch import launch as start
from tests.record.statistics_truth import recorded_of, rows_for, truth_of
from tests.record.truth import Case
from tests.scores.truth import scores_of

CASES = {
    "uneven": ("classes", Case(rows=37)),
    "accumulation": ("classes", Case(rows=36, arguments={"gradient_accumulation_steps": 3})),
    "tokens": ("tokens", Case(rows=30, arguments={"gradient_accumulation_steps": 2})),
    "stream": (
        "classes",
        Case(
            kind="stream",
            arguments={"remove_unused_columns": False, "max_steps": 12, "gradient_accumulation_steps": 2},
        ),
    ),
}


def launch(directory: Path, *cases: str) -> Path:
    """Records these cases with two processes."""
    start("tests.scores.two_processes", directory, *cases)
    return directory


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("two"), *CASES)


@pytest.mark.parametrize("name", list(CASES))
def test_each_ranks_statistics_and_all_scores_equal_what_the_models_saw(name: str, launched: Path) -> None:
    kind, case = CASES[name]
    place = launched / name
    trajectory = Trajectory.open(place / "trajectory")
    assert trajectory.manifest.world_size == 2
    truth = [truth_of(kind, torch.load(place / f"notes-{rank}.pt", weights_only=True)) for rank in range(2)]
    for rank in range(2):
        found = recorded_of(trajectory, rank)
        assert [row[0] for row in found] == [row[0] for row in truth[rank]]
        np.testing.assert_allclose(found, truth[rank], rtol=2e-5, atol=1e-6)
    # Both processes' visits, step by step: within a step the order does not matter, for the parameters are the same.
    merged = []
    for step in trajectory.steps():
        for rank, visits in enumerate(truth):
            count = sum(len(batch.ids) for batch in step.micro_batches if batch.rank == rank)
            merged += visits[:count]
            del visits[:count]
    assert truth == [[], []]
    rows = rows_for(kind, case.rows)
    if case.kind == "stream":
        rows = rows.add_column("hf_prune_id", list(range(case.rows)))
    scored = add_scores(rows, trajectory, early=2)
    for column, expected in scores_of(merged, case.rows, early=2).items():
        np.testing.assert_allclose(scored[column], expected, rtol=1e-4, atol=1e-5, err_msg=column)

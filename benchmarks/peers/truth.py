"""What the methods predict: margins of test rows after rows were really left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from peers.recorded import Run
from peers.rerun import Network, fresh, train, window_batches
from peers.tasks import Task

# A re-run window whose margins differ by more from the recorded run's, in units of a row's own effect, is no truth.
TOLERANCE = 0.1


@dataclass(frozen=True)
class LeftOut:
    """
    Rows left out of the window of a recorded run: loss terms zeroed; batches and denominators as they were.

    Attributes:
        sets (`list[np.ndarray]`): the rows of each set.
        base (`np.ndarray`, `(m,)`): the margins of the test rows after the run.
        shifts (`np.ndarray`, `(sets, m)`): by how much they differ without the rows of a set.
        reproduced (`float`): largest difference of a margin between the recorded run and its window run again.
    """

    sets: list[np.ndarray]
    base: np.ndarray
    shifts: np.ndarray
    reproduced: float


def leave_out(run: Run, sets: list[np.ndarray]) -> LeftOut:
    """Runs the window again without each of `sets`, and once with all rows."""
    network = Network(run.logits_model())
    absent = [np.array([], dtype=np.int64), *sets]
    begin = run.thetas[run.first].expand(len(absent), -1)
    thetas = train(
        run.task,
        network,
        begin,
        window_batches(run, absent),
        moments=run.moments,
        updates=run.trajectory.updates_before(run.first),
    )
    found = network.margins(thetas, *run.task.test_tensors).double().numpy()
    recorded = network.margins(run.last[None], *run.task.test_tensors).double().numpy()[0]
    result = LeftOut(sets, found[0], found[1:] - found[0], float(np.abs(found[0] - recorded).max()))
    effect = float(np.sqrt(np.square(result.shifts).mean()))
    if result.reproduced > TOLERANCE * effect:
        raise RuntimeError(
            f"The window run again differs from the recorded run by {result.reproduced:.2g} in a margin, where "
            f"leaving out a set of rows makes {effect:.2g}: this is not the same run."
        )
    return result


def random_groups(rows: int, share: float, count: int, seed: int) -> list[np.ndarray]:
    """Random sets of `share` of the rows."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(rows)[: round(share * rows)] for _ in range(count)]


@dataclass(frozen=True)
class Subsets:
    """
    Random halves of the training rows, and the margins of models trained on each.

    Attributes:
        sets (`list[np.ndarray]`): the rows of each half.
        margins (`np.ndarray`, `(halves, retrainings, m)`): of the test rows; every retraining has a seed of its own.
    """

    sets: list[np.ndarray]
    margins: np.ndarray


def subsets(task: Task, count: int, retrainings: int, seed: int = 1000) -> Subsets:
    """Trains on `count` random halves from scratch, `retrainings` times each."""
    n = len(task.train)
    sets = [np.random.default_rng([seed, i]).permutation(n)[: n // 2] for i in range(count)]
    repeated = [rows for rows in sets for _ in range(retrainings)]
    thetas, batches = fresh(task, repeated, [seed + i for i in range(len(repeated))])
    network = Network(task.logits_model(task.model()))
    trained = train(task, network, thetas, batches)
    found = network.margins(trained, *task.test_tensors).double().numpy()
    return Subsets(sets, found.reshape(count, retrainings, -1))

"""What gradients are scaled by before they are sketched, and what a sketch loses on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_prune._core.processes import Processes
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.sketch import scales
from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.scales import GradientScales
from hf_prune.influence.sketch.store import SHARD, StepSketch, Store, packed
from hf_prune.model.objective import Objective
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from tests.influence.exact_run import ExactRun

CPU = torch.device("cpu")


def replay_of(run: ExactRun) -> Replay:
    objective = Objective(run.model, run.manifest.parameters, dtype=torch.float64)
    return Replay(run, objective, Rows(run.dataset, objective.model))


@pytest.mark.parametrize("sampled", [4096, 8])
def test_gradients_are_scaled_by_the_denominators_root_and_its_mean_is_told(
    sampled: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scales, "SAMPLED", sampled)
    run = ExactRun("AdamW", {"betas": (0.9, 0.95)}, lr=0.02)
    run.moments = [moment.index_fill(0, torch.tensor([2, 17]), 0.0) for moment in run.moments]  # never had a gradient
    replay = replay_of(run)
    found = GradientScales(replay)
    for t in (3, 7, run.steps_count):
        step = min(t, run.steps_count - 1)
        denominator = (run.moments[step + 1] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
        assert torch.allclose(replay.denominator(step), denominator), "the recorded moment after the step divides it"
        factors = denominator.rsqrt()
        factors[[2, 17]] = 0
        own = found.at(t)
        assert torch.allclose(torch.cat(own.factors), factors)
        assert [len(part) for part in own.factors] == replay.objective.sizes
        final, truth = run.moments[-1].split(replay.objective.sizes), []
        for part, weights in zip(factors.split(replay.objective.sizes), final, strict=True):
            every = max(1, len(part) // sampled)
            logs, weights = part[::every].clamp(min=1e-30).log(), weights[::every]
            truth.append((logs * weights).sum() / weights.sum())
        assert torch.allclose(own.log_means, torch.stack(truth))


def test_gradients_of_sgd_stay_as_they_are():
    replay = replay_of(ExactRun("SGD", {}))
    own = GradientScales(replay).at(3)
    assert own.factors == [None] * len(replay.objective.sizes)
    assert torch.equal(own.log_means, torch.zeros(len(replay.objective.sizes)))


def sketch_of(t: int) -> StepSketch:
    generator = torch.Generator().manual_seed(t)
    drawn = {name: torch.randn(4, generator=generator) for name in ("weights", "growth", "gradient", "curvature")}
    return StepSketch(
        ids=torch.tensor([t, 2, 3, 4]),
        groups=torch.tensor([0, 0, 1, 1]),
        sketches=torch.randn(4, 30, generator=generator) * torch.tensor([1e-6, 1.0, 1e3, 0.0])[:, None],
        unscaled=torch.randn(4, 9, generator=generator),
        gram=torch.randn(4, 4, generator=generator),
        examples=torch.tensor([0, 1, 1, 3]),
        log_scales=torch.randn(2, generator=generator),
        **drawn,
    )


def test_sketches_come_back_in_reverse_within_a_byte_of_their_largest_entry(tmp_path: Path):
    first, last = 5, 5 + 2 * SHARD + 3
    marks, skipped = [first, first + SHARD + 2, first + SHARD + 4, last], {6, 9, first + SHARD + 2, first + SHARD + 3}
    whole = CountSketch([(5, 4), (10,)], 30, seed=0, device=CPU)

    def rows_of(t: int) -> np.ndarray:
        return np.array([] if t in skipped else [t, 2, 3, 4], dtype=np.int64)

    store = Store(SharedCache(tmp_path, Processes(0, 1)), marks, whole, rows_of)
    assert [[len(shard) for shard in own] for own in store.segments] == [[SHARD, 2], [], [SHARD - 1]]
    assert store.shards == [*store.segments[0], *store.segments[2]]
    assert {*range(first, last)} - {t for shard in store.shards for t in shard} == {
        first + SHARD + 2,
        first + SHARD + 3,
    }
    assert store.missing() == store.own_share() == store.shards
    for shard in store.shards:
        store.write(shard, {t: packed(sketch_of(t)) for t in shard if t not in skipped})
    assert store.missing() == []
    found = dict(store.backwards(CPU))
    assert list(found) == [t for t in range(last - 1, first - 1, -1) if t not in skipped]
    for t, sketch in found.items():
        truth = sketch_of(t)
        for name in ("ids", "weights", "growth", "groups", "gram", "examples", "gradient", "curvature", "log_scales"):
            assert torch.equal(getattr(sketch, name), getattr(truth, name)), name
        for name in ("sketches", "unscaled"):
            left = (getattr(sketch, name) - getattr(truth, name)).abs()
            assert (left <= getattr(truth, name).abs().amax(1, keepdim=True) / 253).all(), name
    part = store.segment(0)
    assert list(dict(part.backwards(CPU))) == [t for t in found if t < marks[1]]
    part.remove()
    assert part.missing() == store.missing() == store.segments[0]


def test_factors_are_combined_to_the_losses_of_their_visits():
    sketch = sketch_of(0)
    truth = torch.zeros(4, 4)
    for factor, visit in enumerate([0, 1, 1, 3]):
        truth[factor, visit] = sketch.gradient[factor]
    assert torch.equal(sketch.loss_map(), truth)
    assert torch.equal(sketch.same, torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]))

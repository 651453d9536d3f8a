"""The sketched sweep on every kind of run, beside the dense one, which it must equal where nothing is folded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorForTokenClassification

from hf_prune import add_influence
from hf_prune.errors import UnsupportedError
from hf_prune.influence.queries import Queries, output_signs
from hf_prune.influence.sketch import logit_factors as logit_factors_module
from hf_prune.influence.sketch import query_sketches
from hf_prune.influence.sketch.engine import nearest_segment
from hf_prune.influence.sketch.logit_factors import logit_factors, random_draws
from hf_prune.influence.sketch.scales import Scales
from hf_prune.model.batch import Batch
from hf_prune.model.losses import CROSS_ENTROPY
from hf_prune.trajectory import Trajectory
from hf_prune.trajectory.snapshots import WholeSnapshot
from tests import toys
from tests.influence.runs import distance, mlp, record
from tests.influence.test_objectives import language_model, lora, ragged, tagger, tokenizer

pytestmark = pytest.mark.usefixtures("second_moment_is_held")


def test_many_logits_keep_the_whole_curvature_in_the_mean():
    logits, labels = torch.randn(1, 8).expand(2000, 8), torch.full((2000,), 2)
    total = torch.zeros(8, 8)
    batch = Batch({}, labels)
    for drawn in logit_factors(CROSS_ENTROPY, logits, batch, random_draws(batch, torch.Generator().manual_seed(0))):
        total += torch.einsum("b,bi,bj->ij", drawn.curvature, drawn.cotangents, drawn.cotangents) / 2000
    chances = logits[0].softmax(0)
    hessian = torch.diag(chances) - torch.outer(chances, chances)
    assert (total - hessian).norm() < 0.05 * hessian.norm()


def test_token_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # With every eigenvector of each loss's Hessian no part of the curvature is drawn at random.
    monkeypatch.setattr(logit_factors_module, "MOST_FACTORS", 64)
    monkeypatch.setattr(logit_factors_module, "TRACE_TOLERANCE", 1e-6)
    torch.manual_seed(0)
    rows, collator = ragged(24, label="tokens"), DataCollatorForTokenClassification(tokenizer())
    settings = {"num_train_epochs": 8, "learning_rate": 5e-3}
    run = record(tagger(), rows, rows.select(range(6)), tmp_path, collator=collator, **settings)
    for curvature in ("none", "gauss-newton"):
        assert run.apart(curvature=curvature) < 0.05


def test_a_causal_language_model(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24, padding=False).remove_columns("labels")
    rows = rows.add_column("labels", rows["input_ids"][:])
    # Few held-out rows: of more, the two engines ask other random sums.
    run = record(language_model(), rows, rows.select(range(3)), tmp_path, num_train_epochs=3)
    assert run.apart(curvature="fisher") < 0.05
    assert run.apart() < 0.15  # labels are drawn


def test_adapters_on_a_frozen_model(tmp_path: Path):
    torch.manual_seed(0)
    run = record(lora(), toys.tokens(24), toys.tokens(6, seed=9), tmp_path, num_train_epochs=3)
    assert run.apart() < 0.05


def test_accumulated_clipped_steps_with_a_short_last_batch(tmp_path: Path):
    run = mlp(tmp_path, rows=37, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_grad_norm=0.3)
    assert run.apart() < 0.05


def test_ids_of_a_column_score_as_positions(tmp_path: Path):
    rows, held_out = toys.vectors(40), toys.vectors(12, seed=9)
    named = rows.add_column("hf_prune_id", (7 * np.arange(40)[::-1] + 1000).tolist())
    found = []
    for column, data in ((None, rows), ("hf_prune_id", named)):
        torch.manual_seed(0)
        run = record(
            toys.Mlp(), data, held_out, tmp_path / str(column), id_column=column, remove_unused_columns=column is None
        )
        found.append([run.score("projected", mode) for mode in ("visits", "expected")])
    for by_position, by_column in zip(*found, strict=True):
        assert np.allclose(by_column, by_position, rtol=1e-4, atol=1e-9)


def test_a_skipped_step_leaves_nothing(tmp_path: Path):
    run = mlp(tmp_path)
    before = run.score("projected")
    (ledger,) = (run.path / "ledger").iterdir()
    lines = ledger.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if json.loads(line).get("step") == 20)
    lines[place] = json.dumps(json.loads(lines[place]) | {"skipped": True}) + "\n"
    ledger.write_text("".join(lines))
    found = run.score("projected")
    assert distance(found, run.score("dense")) < 0.05
    assert distance(found, before) > 0.01


@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_a_segment_of_skipped_steps_leaves_nothing(mode: str, tmp_path: Path):
    run = mlp(tmp_path)
    marks = Trajectory.open(run.path).snapshot_steps
    (ledger,) = (run.path / "ledger").iterdir()
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    skipped = range(marks[1], marks[2])
    for line in lines[1:]:
        line["skipped"] = line["step"] in skipped
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.apart(mode) < 0.1


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_a_window_of_skipped_steps_is_refused(tmp_path: Path, engine: str):
    run = mlp(tmp_path)
    (ledger,) = (run.path / "ledger").iterdir()
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    ledger.write_text(
        "".join(json.dumps(line | {"skipped": True} if "step" in line else line) + "\n" for line in lines)
    )
    with pytest.raises(UnsupportedError, match="was skipped"):
        run.score(engine)


def test_rows_without_a_visit_in_the_window_score_as_in_the_dense_sweep(tmp_path: Path):
    run = mlp(tmp_path, rows=48, optim="sgd", learning_rate=0.3, num_train_epochs=1)
    ledger = Trajectory.open(run.path)
    seen = {int(i) for t in range(*ledger.window) for i in ledger.step(t).ids}
    unseen = [row for row in range(48) if row not in seen]
    assert 0 < len(unseen) < 48
    dense, projected = (run.score(engine, "expected")[unseen] for engine in ("dense", "projected"))
    assert distance(projected, dense) < 0.02


def test_folded_sketches_are_near_the_whole_gradients_and_the_same_each_time(tmp_path: Path):
    run = mlp(tmp_path, hidden=256)
    found = {}
    for name, width in (("whole", 1 << 16), ("folded", 600), ("again", 600)):
        engine = run.projected(tmp_path / name, width=width)
        engine.prepare()
        held_out = engine.replay.rows.of(run.held_out)
        encoded = engine.encode(Queries(8, "outputs", 0, held_out, held_out))
        found[name] = engine.visits(encoded)
        folded = engine.sketch.width < sum(engine.replay.objective.sizes)
        assert folded == (width == 600)
    assert np.array_equal(found["folded"], found["again"])
    assert distance(found["folded"], found["whole"]) < 0.25


def test_many_held_out_logits_are_asked_in_random_sums(tmp_path: Path):
    run = mlp(tmp_path, num_train_epochs=2)
    engine = run.projected(tmp_path / "sketches")
    objective, k = engine.replay.objective, 256
    rows = engine.replay.rows.of(toys.vectors(400, seed=5))
    assert 400 * toys.CLASSES > query_sketches.MOST_VJPS
    theta, none = engine.replay.theta(engine.replay.last), Scales([None] * len(objective.sizes), torch.zeros(0))
    asked = query_sketches.output_query_sketches(engine.window, theta, none, rows, k, batch_size=64, seed=3)[:k]
    # Each query is the gradient of a sum of all logits, with the signs that its seeds give.
    signs = torch.zeros(4, 400, toys.CLASSES)
    for draw in range(query_sketches.SUMS_PER_ROW):
        own = output_signs(range(400), 1, (toys.CLASSES,), 4 + draw)[0]
        signs += own * output_signs(range(400), k, (1,), 104 + draw)[:4] / query_sketches.SUMS_PER_ROW**0.5
    inputs = rows.batch(range(400)).inputs
    vjp_fn = torch.func.vjp(lambda theta: objective.logits(theta, inputs), theta)[1]
    truth = torch.stack([vjp_fn(own / (400 * k) ** 0.5)[0] for own in signs])
    assert torch.allclose(asked[:4], engine.sketch.sketch(truth, none.factors), rtol=1e-3, atol=1e-6)
    # The answers' length is that of a row's shift, in the mean.
    step = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    shift = torch.func.jvp(lambda theta: objective.logits(theta, inputs), (theta,), (step,))[1]
    answers = asked @ engine.sketch.sketch(step[None], none.factors)[0]
    assert 0.65 < float(answers.norm() / shift.square().sum(1).mean().sqrt()) < 1.35


def test_candidates_read_each_snapshot_a_few_times_however_many_batches(tmp_path: Path, monkeypatch):
    run = mlp(tmp_path)
    pool, read, real = toys.vectors(20, seed=4), [], WholeSnapshot.read
    monkeypatch.setattr(WholeSnapshot, "read", lambda own: read.append(own.path) or real(own))
    found, reads = [], []
    for size in (20, 2):
        scored = add_influence(
            pool,
            run.path,
            model=run.model,
            eval_dataset=run.held_out,
            engine="projected",
            directions=8,
            batch_size=size,
            column=f"of_{size}",
            train_dataset=run.rows,
        )
        found.append(np.array(scored[f"of_{size}"]))
        reads.append(len(read))
    assert np.allclose(*found, rtol=1e-4, atol=1e-8)
    assert reads[1] - reads[0] <= reads[0]  # the second call finds the window's sketches


def test_the_nearest_segment_with_a_visit():
    has = np.random.default_rng(0).random((500, 6)) < 0.3
    found = nearest_segment(has)
    for row, own in enumerate(has):
        if own.any():
            for place in range(6):
                distances = np.where(own, np.abs(np.arange(6) - place), 99)
                assert found[row, place] == distances.argmin()

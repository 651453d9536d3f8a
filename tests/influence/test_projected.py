"""The sketched sweep: its gradients, its sketches, and the dense sweep that it must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune._core.processes import Processes
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.engine import SketchEngine
from hf_prune.influence.sketch.logit_factors import logit_factors, random_draws
from hf_prune.influence.sketch.per_example_vjp import PerExampleVjp
from hf_prune.model.batch import Batch
from hf_prune.model.losses import CAUSAL_CROSS_ENTROPY, CROSS_ENTROPY
from hf_prune.model.objective import Objective
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.trajectory.manifest import Parameter
from tests import toys
from tests.influence.runs import distance

pytestmark = pytest.mark.usefixtures("second_moment_is_held")

SIZES = {"vocab_size": toys.VOCABULARY, "num_labels": toys.CLASSES, "pad_token_id": 0}


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=16, **SIZES)
    )


def roberta():
    return RobertaForSequenceClassification(
        RobertaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **SIZES)
    )


def qwen2():
    return Qwen2ForSequenceClassification(
        Qwen2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            **SIZES,
        )
    )


def gpt2_lm():
    return GPT2LMHeadModel(GPT2Config(vocab_size=toys.VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def convnext():
    return ConvNextForImageClassification(
        ConvNextConfig(
            num_channels=1, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, num_labels=toys.CLASSES
        )
    )


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=toys.CLASSES)
    )


MODELS = {
    "mlp": (toys.Mlp, toys.vectors),
    "bert": (toys.bert, toys.tokens),
    "distilbert": (distilbert, toys.tokens),
    "roberta": (roberta, toys.tokens),
    "gpt2": (toys.gpt2, toys.tokens),
    "gpt2 language model": (gpt2_lm, toys.tokens),
    "llama": (toys.llama, toys.tokens),
    "qwen2": (qwen2, toys.tokens),
    "vit": (toys.vit, toys.images),
    "convnext": (convnext, toys.images),
    "resnet": (resnet, toys.images),
}


def objective_of(model: torch.nn.Module) -> Objective:
    named = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters() if p.requires_grad]
    return Objective(model, named)


@pytest.mark.parametrize("name", MODELS)
def test_hooks_give_the_gradient_of_every_example(name: str):
    make, data = MODELS[name]
    torch.manual_seed(0)
    objective = objective_of(make())
    batch = Rows(data(6), objective.model).batch(range(6))
    sketch = CountSketch(objective.shapes, 1 << 20, seed=0, device=torch.device("cpu"))
    per_example, theta = PerExampleVjp(objective, sketch, bf16=False), objective.flatten()
    assert sketch.width == len(theta)  # nothing is folded
    scales = [torch.rand(size) for size in objective.sizes]
    with per_example.forward(theta, batch.inputs) as forward:
        cotangents = torch.randn_like(forward.logits)
        scaled, unscaled = forward.vjp_both(cotangents, scales)
        again = forward.vjp(cotangents, scales)
    assert per_example.hooked
    for example in range(6):
        own = {name: value[example : example + 1] for name, value in batch.inputs.items()}
        theta.grad = None
        leaf = theta.clone().requires_grad_()
        (objective.logits(leaf, own)[0] * cotangents[example]).sum().backward()
        for found, factors in ((scaled, scales), (unscaled, [None] * len(scales))):
            truth = sketch.sketch(leaf.grad[None], factors)[0]
            assert (found[example] - truth).norm() <= 1e-4 * truth.norm()
    assert torch.equal(scaled, again)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_gives_what_autograd_gives_in_it(name: str):
    make, data = MODELS[name]
    torch.manual_seed(0)
    objective = objective_of(make())
    batch = Rows(data(6), objective.model).batch(range(6))
    sketch = CountSketch(objective.shapes, 256, seed=0, device=torch.device("cpu"))
    theta, scales = objective.flatten(), [torch.rand(size) for size in objective.sizes]
    per_example = PerExampleVjp(objective, sketch, bf16=True)
    leaf = theta.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), objective.first_derivatives():
        logits = objective.logits(leaf, batch.inputs).float()
    cotangents = torch.randn_like(logits)
    truth = torch.autograd.grad((logits * cotangents).sum(), leaf)[0][None]
    with per_example.forward(theta, batch.inputs) as forward:
        scaled, unscaled = forward.vjp_both(cotangents, scales)
        assert torch.equal(forward.logits, logits)
        with objective.first_derivatives():
            assert not torch.equal(logits, objective.logits(theta, batch.inputs))
    assert per_example.hooked
    for found, factors in ((scaled, scales), (unscaled, [None] * len(scales))):
        wanted = sketch.sketch(truth, factors)[0]
        assert (found.sum(0) - wanted).norm() <= 0.01 * wanted.norm()


def test_a_layer_that_no_hook_knows_is_left_to_vmap():
    class Odd(toys.Mlp):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(8, 8))

        def forward(self, x, labels=None):
            return super().forward(x @ self.table, labels)

    torch.manual_seed(0)
    objective = objective_of(Odd())
    batch = Rows(toys.vectors(6), objective.model).batch(range(6))
    sketch = CountSketch(objective.shapes, 1 << 20, seed=0, device=torch.device("cpu"))
    per_example, theta = PerExampleVjp(objective, sketch, bf16=False), objective.flatten()
    scales = [torch.rand(size) for size in objective.sizes]
    with per_example.forward(theta, batch.inputs) as forward:
        ones = torch.ones_like(forward.logits)
        scaled, unscaled = forward.vjp_both(ones, scales)
        assert torch.equal(forward.vjp(ones, scales), scaled)
    assert not per_example.hooked
    leaf = theta.clone().requires_grad_()
    objective.logits(leaf, batch.inputs).sum().backward()
    for found, factors in ((scaled, scales), (unscaled, [None] * len(scales))):
        truth = sketch.sketch(leaf.grad[None], factors)[0]
        assert torch.allclose(found.sum(0), truth, rtol=1e-4, atol=1e-5)


def test_sketches_keep_inner_products_in_the_mean():
    shapes = [(40, 30), (2000,), (7,)]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3207, generator=generator)
    y = y + 0.5 * x
    none: list[torch.Tensor | None] = [None] * 3
    found = []
    for seed in range(200):
        sketch = CountSketch(shapes, 1024, seed=seed, device=torch.device("cpu"))
        a, b = sketch.sketch(torch.stack([x, y]), none)
        found.append(float(a @ b))
    error = np.std(found) / len(found) ** 0.5
    assert sketch.width < 1200
    assert abs(np.mean(found) - float(x @ y)) < 4 * error
    assert np.std(found) < 2 * float(x.norm() * y.norm()) / 1024**0.5


def test_two_classes_take_one_vjp():
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 1])
    batch = Batch({}, labels)
    draws = random_draws(batch, torch.Generator().manual_seed(0))
    (only,) = logit_factors(CROSS_ENTROPY, logits, batch, draws)
    (plain,) = logit_factors(CROSS_ENTROPY, logits, batch, draws, curved=False)
    assert torch.equal(plain.cotangents, only.cotangents)
    assert torch.equal(plain.gradient, only.gradient)
    chances = logits.softmax(1)
    residual = chances - torch.nn.functional.one_hot(labels)
    assert torch.allclose(only.gradient[:, None] * only.cotangents, residual, atol=1e-6)
    hessian = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    assert torch.allclose(
        only.curvature[:, None, None] * only.cotangents[:, :, None] * only.cotangents[:, None], hessian, atol=1e-6
    )


def test_drawn_labels_give_the_gauss_newton_matrix_of_a_token_loss():
    logits, labels = torch.randn(1, 4, 70), torch.tensor([[5, 9, -100, 3]])
    generator, total = torch.Generator().manual_seed(0), torch.zeros(280, 280)
    for _ in range(4000):
        batch = Batch({}, labels)
        _, drawn = logit_factors(CAUSAL_CROSS_ENTROPY, logits, batch, random_draws(batch, generator))
        total += torch.outer(drawn.cotangents.flatten(), drawn.cotangents.flatten()) / 4000

    def loss(z: torch.Tensor) -> torch.Tensor:
        return CAUSAL_CROSS_ENTROPY.losses(z.view(1, 4, 70), labels)[0]

    hessian = torch.func.hessian(loss)(logits.flatten())
    assert (total - hessian).norm() < 0.15 * hessian.norm()


RUNS = {
    "sgd": (toys.Mlp, toys.vectors, {"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0}, 0.005),
    "momentum, clipped": (
        toys.Mlp,
        toys.vectors,
        {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05, "max_grad_norm": 0.3},
        0.005,
    ),
    "adamw, clipped": (toys.Mlp, toys.vectors, {"learning_rate": 3e-3, "max_grad_norm": 0.3}, 0.02),
    "vit": (toys.vit, toys.images, {"learning_rate": 1e-3}, 0.04),
}


@pytest.fixture(scope="module", params=RUNS)
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    make, data, settings, tolerance = RUNS[request.param]
    directory = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model, rows, held_out = make(), data(48), data(16, seed=9)
    toys.train(model, rows, directory, [TrajectoryCallback(directory / "t")], num_train_epochs=6, **settings)
    return rows, held_out, directory / "t", model, tolerance


@pytest.mark.parametrize("scored", ["visits", "candidates"])
@pytest.mark.parametrize("curvature", ["none", "fisher", "gauss-newton"])
def test_unfolded_sketches_score_as_the_dense_sweep_does(swept, curvature: str, scored: str):
    rows, held_out, record, model, tolerance = swept
    settings = {"model": model, "eval_dataset": held_out, "directions": 8, "curvature": curvature}
    settings["mode"] = "visits"
    pool = rows
    if scored == "candidates":  # their gradients are computed in the middle of each segment by both engines
        pool = Dataset.from_dict(rows.select(range(10)).to_dict(), features=rows.features)
        settings |= {"mode": "expected", "train_dataset": rows}
    found = {}
    for engine in ("dense", "projected"):
        columns = add_influence(pool, record, engine=engine, **settings)
        found[engine] = np.column_stack([np.array(columns["influence"]), columns["influence_eval_loss"]])
    assert distance(found["projected"], found["dense"]) < tolerance


def test_a_killed_pass_goes_on_where_it_stopped(swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, _, record, model, _ = swept
    replay = Replay.of(rows, Trajectory.open(record), model)

    def engine(directory: Path, processes: Processes) -> SketchEngine:
        cache = SharedCache(directory, processes)
        return SketchEngine(replay, cache, key="key", curvature="gauss-newton", gn_scale=1.0, batch_size=8)

    whole = engine(tmp_path / "whole", Processes(0, 1))
    whole.prepare()
    assert len(whole.segmented.store.shards) > 1
    halved = engine(tmp_path / "halved", Processes(0, 1))
    half = halved.segmented.store.own_share()[::2]
    with monkeypatch.context() as patched:
        patched.setattr(type(halved.segmented.store), "own_share", lambda store: half)
        halved.prepare()  # as if it had been killed halfway
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "halved").iterdir()}
    assert halved.segmented.store.missing()
    resumed = engine(tmp_path / "halved", Processes(0, 1))
    resumed.prepare()
    assert not resumed.segmented.store.missing()
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    for (t, one), (s, other) in zip(
        whole.segmented.store.backwards(torch.device("cpu")),
        resumed.segmented.store.backwards(torch.device("cpu")),
        strict=True,
    ):
        assert t == s
        assert torch.equal(one.sketches, other.sketches)
        assert torch.equal(one.gram, other.gram)


def test_new_rows_score_as_the_same_rows_trained_on(swept):
    rows, held_out, record, model, _ = swept
    settings = {"model": model, "eval_dataset": held_out, "directions": 4, "engine": "dense", "curvature": "fisher"}
    pool = Dataset.from_dict({**rows.select(range(10)).to_dict()}, features=rows.features)
    scored = add_influence(pool, record, train_dataset=rows, **settings)
    own = np.array(add_influence(rows, record, **settings)["influence"])[:10]
    assert distance(np.array(scored["influence"]), own) < 1e-4


@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_directions_in_chunks_are_the_directions_at_once(swept, mode: str):
    rows, held_out, record, model, _ = swept
    settings = {"model": model, "eval_dataset": held_out, "directions": 6, "curvature": "fisher", "mode": mode}
    whole = add_influence(rows, record, column="whole", engine="dense", **settings)
    size = Trajectory.open(record).manifest.n_parameters
    little = 4 * size * (7 + 2 * 8)  # the queries' gradients, and room for two of them
    parts = add_influence(rows, record, column="parts", engine="dense", max_memory=little, **settings)
    assert np.allclose(np.array(whole["whole"]), np.array(parts["parts"]), rtol=1e-3, atol=1e-7)
    assert not list((record / "scores").rglob("effects-*"))

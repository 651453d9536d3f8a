"""A vocabulary's logits few at a time: what whole logits and autograd give, whatever the model and the chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.draw import BLOCK, draw
from hf_prune.influence.sketch.forward_pass import ForwardPass
from hf_prune.influence.sketch.logit_factors import logit_factors, random_draws
from hf_prune.influence.sketch.per_example_vjp import PerExampleVjp
from hf_prune.influence.sketch.token_forward_pass import TokenForwardPass
from hf_prune.influence.sketch.token_loss import GROUPS, VocabularySigns
from hf_prune.model import token_head
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.losses import CAUSAL_CROSS_ENTROPY, smoothed
from hf_prune.model.objective import Objective
from hf_prune.trajectory.manifest import Parameter

VOCABULARY, LENGTH, ROWS = 600, 12, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def llama(**more) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **more))


def gpt2() -> GPT2LMHeadModel:
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, **none))


def qwen2() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def phi() -> PhiForCausalLM:
    """Its head has a bias."""
    return PhiForCausalLM(PhiConfig(**(SIZES | {"num_key_value_heads": 4})))


def gemma2() -> Gemma2ForCausalLM:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=4, final_logit_softcapping=3.0))


def lora(model: torch.nn.Module, *targets: str) -> torch.nn.Module:
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


MODELS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
    "qwen2": qwen2,
    "phi": phi,
    "llama with lora": lambda: lora(llama(), "q_proj", "v_proj"),
    "qwen2 with lora": lambda: lora(qwen2(), "q_proj", "down_proj"),
}
OTHERWISE = {
    "soft-capped": gemma2,
    "lora on the head": lambda: lora(llama(), "q_proj", "lm_head"),
}


@pytest.fixture(params=[1, 7, 10_000], ids=lambda tokens: f"{tokens} tokens at once")
def tokens_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(token_head, "AT_ONCE", request.param * VOCABULARY)
    return request.param


def objective_of(name: str) -> Objective:
    torch.manual_seed(0)
    model = (MODELS | OTHERWISE)[name]()
    named = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters() if p.requires_grad]
    return Objective(model, named)


def batch_of() -> Batch:
    """Rows of unequal length, one of which has no label, with labels on a part of the tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH), generator=generator)
    lengths = torch.tensor([12, 9, 12, 4, 7])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = torch.where((mask == 1) & (torch.rand(ROWS, LENGTH, generator=generator) < 0.7), ids, IGNORED)
    labels[2] = IGNORED
    return Batch({"input_ids": ids * mask, "attention_mask": mask}, labels)


def run(objective: Objective, width: int = 1 << 20) -> tuple[PerExampleVjp, CountSketch]:
    sketch = CountSketch(objective.shapes, width, seed=0, device=torch.device("cpu"))
    return PerExampleVjp(objective, sketch, bf16=False), sketch


def by_autograd(objective: Objective, batch: Batch, cotangents: torch.Tensor) -> torch.Tensor:
    """The gradients `(B, p)` of each example's `<cotangents, logits>`, one example after the other."""
    theta, found = objective.flatten(), []
    for example in range(len(batch)):
        leaf = theta.clone().requires_grad_()
        alone = {name: value[example : example + 1] for name, value in batch.inputs.items()}
        found += torch.autograd.grad((objective.logits(leaf, alone)[0] * cotangents[example]).sum(), leaf)
    return torch.stack(found)


def apart(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.detach() - truth.detach()).norm() / truth.detach().norm())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_both_factors_are_those_of_whole_logits(name: str, smoothing: float, tokens_at_once: int):
    objective, batch = objective_of(name), batch_of()
    loss = smoothed(CAUSAL_CROSS_ENTROPY, smoothing) if smoothing else CAUSAL_CROSS_ENTROPY
    per_example, sketch = run(objective)
    theta, draws = objective.flatten(), random_draws(batch, torch.Generator().manual_seed(2))
    scales = [torch.rand(size) for size in objective.sizes]
    with per_example.forward(theta, batch.inputs) as forward:
        assert isinstance(forward, TokenForwardPass)
        found = forward.factor_sketches(loss, batch, scales, draws, curved=True)
        assert apart(forward.logits, objective.logits(theta, batch.inputs)) < 1e-5
        (alone,) = forward.factor_sketches(loss, batch, scales, draws, curved=False)
    whole = logit_factors(loss, objective.logits(theta, batch.inputs), batch, draws)
    assert len(found) == len(whole) == 2
    for own, factor in zip(found, whole, strict=True):
        truth = by_autograd(objective, batch, factor.cotangents)
        assert apart(own.scaled, sketch.sketch(truth, scales)) < 1e-5
        assert apart(own.unscaled, sketch.sketch(truth, [None] * len(scales))) < 1e-5
        assert torch.equal(own.gradient, factor.gradient)
        assert torch.equal(own.curvature, factor.curvature)
    assert torch.equal(alone.scaled, found[0].scaled)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_models_own_loss(name: str):
    objective, batch = objective_of(name), batch_of()
    per_example, sketch = run(objective)
    theta, none = objective.flatten().requires_grad_(), [None] * len(objective.sizes)
    with per_example.forward(theta, batch.inputs) as forward:
        found = forward.loss_sketches(objective.loss(batch), batch, none)[1]
    counts = objective.items(batch)
    own = objective.model(**batch.inputs, labels=batch.labels).loss
    losses = objective.losses_in_chunks(theta, batch)
    assert float(losses @ counts / counts.sum()) == pytest.approx(float(own), rel=1e-5)
    (whole,) = torch.autograd.grad(objective.losses(theta, batch) @ counts, theta)
    (chunked,) = torch.autograd.grad(losses @ counts, theta)
    assert apart(chunked, whole) < 1e-5
    assert apart(counts @ found, sketch.sketch(whole[None], none)[0]) < 1e-5


@pytest.mark.parametrize("name", OTHERWISE)
def test_logits_that_the_head_alone_does_not_make_are_computed_whole(name: str):
    objective, batch = objective_of(name), batch_of()
    per_example, sketch = run(objective)
    theta, none = objective.flatten(), [None] * len(objective.sizes)
    draws = random_draws(batch, torch.Generator().manual_seed(2))
    assert objective.token_head(batch.inputs) is None
    with per_example.forward(theta, batch.inputs) as forward:
        assert type(forward) is ForwardPass
        found = forward.factor_sketches(objective.loss(batch), batch, none, draws, curved=True)
    whole = logit_factors(objective.loss(batch), objective.logits(theta, batch.inputs), batch, draws)
    for own, factor in zip(found, whole, strict=True):
        truth = sketch.sketch(by_autograd(objective, batch, factor.cotangents), none)
        assert apart(own.scaled, truth) < 1e-5


@pytest.mark.parametrize("name", ["llama", "llama, tied", "phi", "llama with lora"])
def test_a_loss_of_another_kind_gets_whole_logits(name: str):
    objective, batch = objective_of(name), batch_of()
    per_example, sketch = run(objective)
    theta, none = objective.flatten(), [None] * len(objective.sizes)
    cotangents = torch.randn(ROWS, LENGTH, VOCABULARY)
    with per_example.forward(theta, batch.inputs) as forward:
        found = forward.vjp_both(cotangents, none)
    truth = sketch.sketch(by_autograd(objective, batch, cotangents), none)
    assert all(apart(own, truth) < 1e-5 for own in found)


@pytest.mark.parametrize("name", MODELS)
def test_sums_of_all_logits_are_asked_by_few_signs_a_token(name: str):
    objective, batch = objective_of(name), batch_of()
    per_example, sketch = run(objective)
    theta, scales = objective.flatten(), [torch.rand(size) for size in objective.sizes]
    signs = torch.randint(0, 2, (ROWS, LENGTH, GROUPS)) * 2 - 1
    vocabulary = VocabularySigns.of(VOCABULARY, 3, theta.device)
    counted = CAUSAL_CROSS_ENTROPY.counted(batch.labels)
    with per_example.forward(theta, batch.inputs) as forward:
        found = forward.sum_sketches(vocabulary, signs, counted, scales)
    whole = vocabulary.whole(signs.float())
    assert whole.abs().eq(1).all()
    truth = by_autograd(objective, batch, whole * counted[..., None])
    assert apart(found, sketch.sketch(truth, scales)) < 1e-5


def test_signs_of_a_vocabulary_keep_lengths_in_the_mean():
    logits, found = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0)), []
    for seed in range(400):
        signs = torch.randint(0, 2, (4, GROUPS), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
        whole = VocabularySigns.of(VOCABULARY, seed + 1000, logits.device).whole(signs)
        found.append(float((whole * logits).sum()) ** 2)
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - float(logits.square().sum())) < 4 * error


@pytest.mark.parametrize("width", [5, BLOCK, 2 * BLOCK, 700])
def test_drawn_labels_have_the_chances_of_the_softmax(width: int):
    generator = torch.Generator().manual_seed(0)
    chances = (2 * torch.randn(1, width, generator=generator)).softmax(-1)
    drawn = draw(chances.expand(20_000, -1), torch.rand(20_000, generator=generator))
    counts, expected = np.bincount(drawn.numpy(), minlength=width), 20_000 * chances[0].double().numpy()
    often = expected >= 5
    seen, wanted = np.append(counts[often], counts[~often].sum()), np.append(expected[often], expected[~often].sum())
    keep = wanted > 0
    assert chisquare(seen[keep], wanted[keep] * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_a_label_without_a_chance_is_not_drawn():
    chances = torch.zeros(3, 2 * BLOCK + 10)
    chances[0, BLOCK] = chances[1, -1] = chances[2, 3] = 1.0
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert draw(chances, torch.full((3,), uniform)).tolist() == [BLOCK, 2 * BLOCK + 9, 3]


def test_half_precision_is_near():
    objective, batch = objective_of("llama with lora"), batch_of()
    sketch = CountSketch(objective.shapes, 1 << 20, seed=0, device=torch.device("cpu"))
    theta, none = objective.flatten(), [None] * len(objective.sizes)
    found = []
    for bf16 in (False, True):
        with PerExampleVjp(objective, sketch, bf16=bf16).forward(theta, batch.inputs) as forward:
            found.append(forward.loss_sketches(CAUSAL_CROSS_ENTROPY, batch, none)[0])
    assert 0 < apart(found[1], found[0]) < 0.03

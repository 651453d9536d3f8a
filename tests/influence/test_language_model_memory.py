"""Scoring a language model in parts: the same scores however few tokens and rows are there at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM

from hf_prune import Trajectory, add_influence
from hf_prune.influence.queries import Queries
from hf_prune.influence.sketch import window_pass
from hf_prune.model import token_head
from hf_prune.model.batch import IGNORED
from hf_prune.model.micro_batches import most_rows, parts_of
from hf_prune.model.objective import Objective
from hf_prune.model.retreat import with_retreat
from hf_prune.trajectory.manifest import Parameter
from tests.influence.runs import Run, distance, record
from tests.influence.test_objectives import ragged, tokenizer
from tests.influence.test_token_head import SIZES, VOCABULARY, batch_of, llama, lora, qwen2


@pytest.fixture(scope="module", params=["lora", "tied head trained"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    model = lora(llama(), "q_proj", "v_proj") if request.param == "lora" else qwen2()
    rows, collator = ragged(24, label="none"), DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    directory = tmp_path_factory.mktemp("run")
    return record(model, rows, rows.select(range(4)), directory, collator=collator, **settings)


@pytest.mark.parametrize("curvature", ["fisher", "gauss-newton"])
def test_scores_do_not_depend_on_rows_and_tokens_at_once(
    run: Run, curvature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for rows, tokens in ((2, 1 << 13), (1, 3), (8, 50)):
        monkeypatch.setattr(window_pass, "most_rows", lambda steps, rows=rows: rows)
        monkeypatch.setattr(token_head, "AT_ONCE", tokens * VOCABULARY)
        engine = run.projected(tmp_path / str(rows), curvature=curvature, batch_size=rows)
        engine.prepare()
        held_out = engine.replay.rows.of(run.held_out)
        queries = engine.encode(Queries(4, "outputs", 0, held_out, held_out))
        found.append(np.concatenate([engine.visits(queries), engine.expected(queries, engine.replay.rows)]))
    for other in found[1:]:
        assert distance(other, found[0]) < 1e-3  # a byte an entry is kept


def test_whole_logits_and_few_at_a_time_score_alike(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    for name in ("few", "whole"):
        engine = run.projected(tmp_path / name)
        if name == "whole":
            monkeypatch.setattr(engine.replay.objective, "_seeks_head", False)
            monkeypatch.setattr(engine.replay.objective, "_head", None)
        engine.prepare()
        found.append(engine.visits(engine.encode(Queries(4, "parameters", 0, engine.replay.rows, None))))
        assert (engine.replay.objective.token_head({}) is None) == (name == "whole")
    assert distance(found[0], found[1]) < 1e-3


def test_a_window_without_curvature_is_sketched_by_half(run: Run, tmp_path: Path):
    plain = run.projected(tmp_path / "plain", curvature="fisher")
    plain.prepare()
    curved = run.projected(tmp_path / "curved")
    curved.prepare()
    for (_, half), (_, whole) in zip(
        plain.segmented.store.backwards(torch.device("cpu")),
        curved.segmented.store.backwards(torch.device("cpu")),
        strict=True,
    ):
        assert 2 * len(half.sketches) == len(whole.sketches)
    again = run.projected(tmp_path / "curved", curvature="fisher")
    assert not again.segmented.store.missing()  # the curvature's sketches hold the gradients' too


def test_parts_hold_no_more_tokens_than_the_longest_rows():
    objective, batch = Objective(llama(), [Parameter("lm_head.weight", (VOCABULARY, 16), 0)]), batch_of()
    for rows in (1, 2, 5):
        numbers, seen = [], 0
        for own, part in parts_of(objective, batch, rows):
            numbers += own.tolist()
            length = part.labels.shape[1]
            assert len(part) * length <= rows * batch.labels.shape[1]
            assert part.inputs["attention_mask"][:, -1].any() or (part.labels[:, -1] != IGNORED).any()
            for name, value in part.inputs.items():
                assert torch.equal(value, batch.inputs[name][own][:, :length])
                assert not batch.inputs[name][own][:, length:].any()
            seen += int(part.inputs["attention_mask"].sum())
        assert sorted(numbers) == list(range(len(batch)))
        assert seen == int(batch.inputs["attention_mask"].sum())


def test_as_many_rows_at_once_as_in_a_micro_batch(run: Run):
    steps = Trajectory.open(run.path).steps()
    assert len(steps[0].ids) == 8
    assert most_rows(steps) == 2


def test_parameters_are_not_held_twice():
    model = lora(llama(), "q_proj")
    named = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters() if p.requires_grad]
    model.base_model.model.lm_head.weight.grad = torch.ones(VOCABULARY, 16)
    objective, before = Objective(model, named), {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in before for p in objective.model.parameters())
    assert model.base_model.model.lm_head.weight.grad is not None
    assert model.config._attn_implementation == "sdpa"
    half = Objective(llama().to(torch.bfloat16), [Parameter("lm_head.weight", (VOCABULARY, 16), 0)])
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


class Cramped(LlamaForCausalLM):
    """Memory for so many rows at once."""

    room: int | None = None

    def forward(self, input_ids=None, **kwargs):
        if self.room is not None and len(input_ids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.")
        return super().forward(input_ids, **kwargs)


def test_where_memory_runs_out_every_pass_is_made_with_fewer_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, rows = lora(Cramped(LlamaConfig(**SIZES)), "q_proj"), ragged(16, label="none")
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    run = record(model, rows, rows.select(range(6)), tmp_path, collator=collator, num_train_epochs=2)
    pool = Dataset.from_dict(rows.select(range(8)).to_dict())  # computed in the middle of each segment
    found = []
    for room in (None, 2):
        model.base_model.model.room = room
        settings = {"column": f"room_{room}", "batch_size": 8, "mode": "expected", "train_dataset": rows}
        scored = add_influence(
            pool,
            run.path,
            model=model,
            eval_dataset=run.held_out,
            data_collator=collator,
            engine="projected",
            directions=4,
            **settings,
        )
        found.append([np.array(scored[f"room_{room}{end}"]) for end in ("", "_eval_loss", "_features")])
    assert "with 2 rows at once" in caplog.text
    for free, cramped in zip(*found, strict=True):
        assert distance(cramped, free) < 1e-3


def test_what_does_not_fit_for_one_row_is_no_matter_of_rows():
    tried = []

    def work(rows: int) -> None:
        tried.append(rows)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.")

    with pytest.raises(torch.OutOfMemoryError):
        with_retreat(work, 5)
    assert tried == [5, 2, 1]

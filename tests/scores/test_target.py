"""`less` and `rds` on real recorded runs, each against a second computation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_prune import Trajectory, TrajectoryCallback, add_scores, select
from hf_prune.scores.target import WIDTH
from tests import toys


def causal() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=toys.VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def texts(rows: int, seed: int) -> Dataset:
    """Padded token rows whose labels are the tokens themselves."""
    found = toys.tokens(rows, seed=seed).remove_columns("labels")
    labels = [
        [token if seen else -100 for token, seen in zip(ids, mask, strict=True)]
        for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)
    ]
    return found.add_column("labels", labels)


def gradient(model: torch.nn.Module, row: dict[str, Any]) -> torch.Tensor:
    """Of one row's loss, by the model's own forward and autograd."""
    model.zero_grad()
    model(**{name: torch.tensor([value]) for name, value in row.items()})["loss"].backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def less_again(model: torch.nn.Module, rows: Dataset, target: Dataset, record: Path) -> np.ndarray:
    """LESS from the record's snapshots, row by row, with Adam's formula written out."""
    trajectory, total = Trajectory.open(record), np.zeros(len(rows))
    steps = trajectory.snapshot_steps
    for first, last in pairwise(steps):
        torch.nn.utils.vector_to_parameters(trajectory.parameters_at(last), model.parameters())
        divisor = torch.ones(())
        if trajectory.manifest.optimizer["name"] == "AdamW":
            divisor = (trajectory.second_moment_at(last) / (1 - 0.999**last)).sqrt() + 1e-8
        wanted = torch.stack([gradient(model, row) for row in target]).mean(0)
        rate = np.mean([trajectory.step(t).learning_rates[0] for t in range(first, last)])
        updates = [gradient(model, row) / divisor for row in rows]
        total += [rate * torch.cosine_similarity(u, wanted, dim=0).item() for u in updates]
    return total


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_less_equals_a_second_computation(optim: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows, target = toys.Mlp(), toys.vectors(24), toys.vectors(7, seed=1)
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], optim=optim)
    scored = add_scores(rows, tmp_path / "t", model=model, eval_dataset=target, batch_size=5)
    truth = less_again(toys.Mlp(), rows, target, tmp_path / "t")
    np.testing.assert_allclose(scored["less"], truth, rtol=1e-3, atol=1e-7)


def test_less_of_rows_of_tokens(tmp_path: Path) -> None:
    model, rows, target = causal(), texts(16, 0), texts(5, 1)
    recorder = TrajectoryCallback(tmp_path / "t")
    toys.train(model, rows, tmp_path / "out", [recorder], num_train_epochs=2, learning_rate=0.02)
    scored = add_scores(rows, tmp_path / "t", model=model, eval_dataset=target, batch_size=5)
    np.testing.assert_allclose(
        scored["less"], less_again(causal(), rows, target, tmp_path / "t"), rtol=2e-3, atol=1e-6
    )


def states(model: LlamaForCausalLM, row: dict[str, Any]) -> torch.Tensor:
    """The representation of one row without its padding, from the hidden states that the model returns."""
    ids = torch.tensor([[token for token, seen in zip(row["input_ids"], row["attention_mask"], strict=True) if seen]])
    with torch.no_grad():
        last = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    weights = torch.arange(1, len(last) + 1) / sum(range(1, len(last) + 1))
    return weights @ last


@pytest.mark.parametrize("count", [5, WIDTH + 7])
def test_rds_is_the_cosine_of_hidden_states_weighted_by_position(count: int, tmp_path: Path) -> None:
    model, rows, target = causal(), texts(16, 0), texts(count, 1)
    recorder = TrajectoryCallback(tmp_path / "t")
    toys.train(model, rows, tmp_path / "out", [recorder], num_train_epochs=2, learning_rate=1e-3)
    scored = add_scores(rows, tmp_path / "t", model=model, eval_dataset=target, batch_size=5)
    own, wanted = (torch.stack([states(model, row) for row in part]) for part in (rows, target))
    cosines = torch.cosine_similarity(own[:, None], wanted[None], dim=2).numpy()
    truth = np.stack([part.mean(1) for part in np.array_split(cosines, min(count, WIDTH), axis=1)], axis=1)
    np.testing.assert_allclose(scored["rds"], truth, atol=1e-5)


def test_of_a_model_with_one_vector_a_row_rds_is_its_cosine(tmp_path: Path) -> None:
    model, rows, target = toys.bert(), toys.tokens(16), toys.tokens(3, seed=1)
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    scored = add_scores(rows, tmp_path / "t", model=model, eval_dataset=target, batch_size=5)

    def pooled(part: Dataset) -> torch.Tensor:
        names = ("input_ids", "attention_mask")
        with torch.no_grad():
            return model.bert.eval()(**{name: torch.tensor(part[name]) for name in names}).pooler_output

    truth = torch.cosine_similarity(pooled(rows)[:, None], pooled(target)[None], dim=2)
    np.testing.assert_allclose(scored["rds"], truth.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path, torch.nn.Module]:
    """A recorded run without row statistics: (rows, record, trained model)."""
    directory = tmp_path_factory.mktemp("run")
    model, rows = toys.Mlp(), toys.vectors(40)
    toys.train(model, rows, directory / "out", [TrajectoryCallback(directory / "t")])
    return rows, directory / "t", model


def test_a_target_needs_no_row_statistics(run: Any) -> None:
    rows, record, model = run
    scored = add_scores(rows, record, model=model, eval_dataset=toys.vectors(6, seed=1))
    assert scored.column_names[2:] == ["grand", "less", "rds"]


def test_the_same_call_gives_the_same_fingerprint_and_another_target_another(run: Any) -> None:
    rows, record, model = run
    first, again, other = (
        add_scores(rows, record, model=model, eval_dataset=toys.vectors(6, seed=seed)) for seed in (1, 1, 2)
    )
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert first["less"] == again["less"] != other["less"]


def test_a_model_without_a_last_linear_layer_has_less_alone_and_says_so(tmp_path: Path, caplog: Any) -> None:
    model, rows = toys.Cubed(), toys.vectors(24)
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], learning_rate=1e-3)
    with caplog.at_level("WARNING", "hf_prune"):
        scored = add_scores(rows, tmp_path / "t", model=model, eval_dataset=toys.vectors(6, seed=1))
    assert scored.column_names[2:] == ["grand", "less"]
    assert "There is no column 'rds'" in caplog.text


def test_bad_targets_get_one_sentence(run: Any) -> None:
    rows, record, model = run
    with pytest.raises(ValueError, match=r"^eval_dataset needs the trained model"):
        add_scores(rows, record, eval_dataset=rows)
    for bad in ([], rows.select([])):
        with pytest.raises(TypeError, match=r"^eval_dataset must be a datasets.Dataset with rows"):
            add_scores(rows, record, model=model, eval_dataset=bad)
    with pytest.raises(ValueError, match="has a column 'less' already"):
        add_scores(rows.add_column("less", [0.0] * 40), record, model=model, eval_dataset=rows)


def test_the_columns_are_read_by_the_methods_of_their_names(run: Any) -> None:
    from hf_prune import add_influence

    rows, record, model = run
    target = toys.vectors(60, seed=1).filter(lambda row: row["labels"] == 1)
    scored = add_influence(rows, record, model=model, eval_dataset=target, directions=8)
    scored = add_scores(scored, record, model=model, eval_dataset=target)
    own = np.array(rows["labels"]) == 1
    for method in ("less", "rds", "target"):
        kept = select(scored, int(own.sum()), method=method).keep_indices
        assert own[kept].mean() > 1.5 * own.mean(), method

"""Numbered rows keep their numbers through shuffles, shards and workers, and the model never sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import Trainer

from hf_prune.record import TrajectoryCallback, with_example_ids
from hf_prune.trajectory import Trajectory
from tests.record.truth import Telling, pad, telling_rows
from tests.toys import arguments, vectors


def by_id(stream: IterableDataset) -> dict[int, list[float]]:
    return {row["hf_prune_id"]: row["x"] for row in stream}


def test_a_dataset_is_numbered_by_position() -> None:
    assert with_example_ids(vectors(5))["hf_prune_id"][:] == [0, 1, 2, 3, 4]


def test_a_stream_of_one_shard_is_numbered_by_position() -> None:
    assert list(by_id(with_example_ids(vectors(300).to_iterable_dataset()))) == list(range(300))


def test_a_streams_numbers_do_not_depend_on_the_order_of_reading() -> None:
    stream = with_example_ids(vectors(64).to_iterable_dataset(num_shards=4))
    truth = by_id(stream)
    assert len(truth) == 64
    shuffled = stream.shuffle(seed=1, buffer_size=10)
    assert by_id(shuffled) == truth
    assert list(by_id(shuffled)) != list(truth)
    shards = [by_id(stream.shard(num_shards=2, index=index)) for index in range(2)]
    assert {**shards[0], **shards[1]} == truth
    loader = torch.utils.data.DataLoader(stream.with_format("torch"), batch_size=8, num_workers=2)
    assert sorted(int(i) for batch in loader for i in batch["hf_prune_id"]) == sorted(truth)
    assert stream.num_shards == 4


def test_a_streams_features_stay() -> None:
    rows = vectors(4)
    numbered = with_example_ids(rows.to_iterable_dataset())
    assert numbered.features is not None
    assert {**rows.features} == {name: kind for name, kind in numbered.features.items() if name != "hf_prune_id"}


def test_what_cannot_be_numbered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"before shuffle\(\)"):
        with_example_ids(vectors().to_iterable_dataset().shuffle(seed=0))
    with pytest.raises(ValueError, match="already"):
        with_example_ids(with_example_ids(vectors()))
    with pytest.raises(TypeError, match="Dataset or IterableDataset"):
        with_example_ids([1, 2])  # type: ignore[type-var]


@pytest.mark.parametrize("streamed", [False, True])
def test_evaluation_works_while_rows_carry_ids(streamed: bool, tmp_path: Path) -> None:
    rows: Dataset = telling_rows(20)
    train = with_example_ids(rows.to_iterable_dataset() if streamed else rows)
    args = arguments(
        tmp_path / "out",
        remove_unused_columns=False,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer = Trainer(
        Telling(20),
        args,
        train_dataset=train,
        eval_dataset=with_example_ids(rows),
        data_collator=pad,
        callbacks=[TrajectoryCallback(tmp_path / "t")],
    )
    trainer.train()
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 2
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.id_column == "hf_prune_id"
    assert trajectory.n_rows == 20


def test_a_column_of_ones_own_is_used_by_name(tmp_path: Path) -> None:
    rows = telling_rows(20).add_column("uid", [1000 + i for i in range(20)])
    model = Telling(20)
    args = arguments(tmp_path / "out", remove_unused_columns=False, num_train_epochs=1)
    callback = TrajectoryCallback(tmp_path / "t", id_column="uid")
    Trainer(model, args, train_dataset=rows, data_collator=pad, callbacks=[callback]).train()
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.id_column == "uid"
    found = [list(b.ids) for step in trajectory.steps() for b in step.micro_batches]
    assert found == [[1000 + i for i in batch] for batch in model.seen]

"""Raw chats, prompts and texts are found again after trl's `SFTTrainer` has tokenised, shuffled and dropped rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from hf_prune import TrajectoryCallback, TrajectoryError, add_influence, prune, replay, with_example_ids
from hf_prune.publish.replay import ReplayError
from tests.record.test_sft import WORDS, model, tokenizer

trl = pytest.importorskip("trl", reason="trl is an optional integration")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}"
    "{% else %}{{ m['content'] }} <eos> {% endif %}{% endfor %}"
)
N = 48


def words(i: int, much: int = 4) -> str:
    """A text whose tokens name its row."""
    return " ".join([f"w{i % WORDS}", *["w50", "w51", "w52"][: 1 + i % 3], *[f"w{i % 7}"] * (i % much)])


def raw_rows(kind: str, long: bool) -> Dataset:
    prompts = ["w1 " * (40 if long and i % 6 == 3 else 2) for i in range(N)]
    if kind == "text":
        return Dataset.from_dict({"text": [words(i) for i in range(N)]})
    if kind == "prompt":
        return Dataset.from_dict({"prompt": prompts, "completion": [words(i) for i in range(N)]})
    sides = [
        ({"role": "user", "content": p}, {"role": "assistant", "content": words(i)}) for i, p in enumerate(prompts)
    ]
    if kind == "messages":
        return Dataset.from_dict({"messages": [list(side) for side in sides]})
    return Dataset.from_dict({"prompt": [[user] for user, _ in sides], "completion": [[said] for _, said in sides]})


def first_word(kind: str, row: dict[str, Any]) -> str:
    """Which row it is, as its text says it."""
    text = row[{"text": "text", "messages": "messages"}.get(kind, "completion")]
    return (text if isinstance(text, str) else text[-1]["content"]).split()[0]


def trained(rows: Dataset, directory: Path, **options: Any) -> Any:
    words_and_chat = tokenizer()
    words_and_chat.chat_template = TEMPLATE
    args = trl.SFTConfig(
        output_dir=str(directory / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        max_length=24,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        **options,
    )
    trainer = trl.SFTTrainer(
        model(),
        args,
        train_dataset=rows,
        eval_dataset=rows.select(range(3)),
        processing_class=words_and_chat,
        callbacks=[TrajectoryCallback(directory / "t")],
    )
    trainer.train()
    return trainer


def scoring(trainer: Any) -> dict[str, Any]:
    return {"model": trainer.model, "eval_dataset": trainer.eval_dataset, "data_collator": trainer.data_collator}


@pytest.mark.parametrize("kind", ["text", "prompt", "chat", "messages"])
def test_the_kept_rows_are_the_raw_ones_although_the_trainer_shuffled_and_dropped(kind: str, tmp_path: Path):
    rows = raw_rows(kind, long=True)
    trainer = trained(rows, tmp_path, shuffle_dataset=True, assistant_only_loss=kind == "messages")
    scored = add_influence(trainer, tmp_path / "t", directions=8)
    assert len(scored) == (N if kind == "text" else 40)
    kept = prune(scored, keep=20)
    pruned = kept.selection.apply(rows, unseen="drop")
    truth = {first_word(kind, row) for row in kept}
    assert [first_word(kind, row) for row in pruned] == [
        first_word(kind, row) for row in rows if first_word(kind, row) in truth
    ]
    assert len(pruned) == len(truth) == 20
    assert pruned.features == rows.features
    at_the_same_positions = rows.select(kept.selection.keep_indices.tolist())
    assert {first_word(kind, row) for row in at_the_same_positions} != truth


def test_raw_rows_are_published_without_tokens_and_replayed_from_the_run(tmp_path: Path):
    rows = raw_rows("prompt", long=True)
    trainer = trained(rows, tmp_path, shuffle_dataset=True)
    scored = add_influence(trainer, tmp_path / "t", directions=8)
    pruned = prune(scored, keep=20).selection.apply(rows, unseen="keep")
    pruned.save_to_disk(tmp_path / "half")
    loaded = load_from_disk(str(tmp_path / "half"))
    assert loaded.column_names == ["prompt", "completion"]
    assert loaded[:] == pruned[:]
    half = str(tmp_path / "half")
    assert "28 of the 48 rows" in (tmp_path / "half" / "README.md").read_text()
    assert "8 of the 48 rows were not among the 40 that were scored" in (tmp_path / "half" / "README.md").read_text()
    assert 'selection.apply(raw, unseen="keep")' in (tmp_path / "half" / "README.md").read_text().replace("'", '"')
    assert replay(half, source=rows)[:] == pruned[:]
    run = {"trajectory": tmp_path / "t", "level": 2, **scoring(trainer)}
    assert replay(half, source=rows, train_dataset=trainer.train_dataset, **run)[:] == pruned[:]
    with pytest.raises(ValueError, match="pass as train_dataset= what the Trainer got"):
        replay(half, source=rows, **run)
    with pytest.raises(ReplayError, match="The source is not the one"):
        replay(half, source=rows.shuffle(seed=1))


@pytest.mark.parametrize("kind", ["text", "prompt", "messages"])
def test_raw_rows_that_are_scored_themselves_are_refused_with_the_way_out(kind: str, tmp_path: Path):
    rows = raw_rows(kind, long=False)
    trainer = trained(rows, tmp_path)
    with pytest.raises(
        TrajectoryError, match=r"pass trainer.train_dataset, or .* as in add_influence\(trainer, ...\)"
    ):
        add_influence(rows, tmp_path / "t", model=trainer.model, directions=8)
    with pytest.raises(
        TrajectoryError, match=r"pass trainer.train_dataset, or .* as in add_influence\(trainer, ...\)"
    ):
        add_influence(rows.select(range(9)), tmp_path / "t", model=trainer.model, directions=8)


def test_numbers_survive_what_changes_every_text(tmp_path: Path):
    rows = raw_rows("text", long=False)
    numbered = with_example_ids(rows)
    other = numbered.map(lambda row: {"text": "w55 " + row["text"]})
    trainer = trained(other, tmp_path / "numbered", shuffle_dataset=True)
    scored = add_influence(trainer, tmp_path / "numbered" / "t", directions=8)
    kept = prune(scored, keep=20)
    assert kept.selection.apply(numbered)["text"][:] == [rows["text"][i] for i in sorted(kept["hf_prune_id"])]

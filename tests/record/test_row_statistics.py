"""Statistics of every visit are what the model itself saw, in every way to run one process, and survive a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_prune import RecordingError, TrajectoryError
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory, read_visits, summarize
from hf_prune.trajectory.visits import STATISTICS
from tests.record.statistics_truth import Noting, recorded_of, rows_for, train_noting, truth_of
from tests.record.test_resume import CutError, Interrupt
from tests.record.truth import Case, pad
from tests.toys import Mlp, arguments, bert, tokens, train, vectors

CASES = {
    "plain": Case(),
    "uneven last batch": Case(rows=37),
    "accumulation with a short last cycle": Case(rows=36, arguments={"gradient_accumulation_steps": 4}),
    "two workers": Case(rows=37, arguments={"dataloader_num_workers": 2}),
    "stream": Case(
        kind="stream",
        arguments={"remove_unused_columns": False, "max_steps": 9, "gradient_accumulation_steps": 2},
    ),
}


def assert_same(found: list[list[float]], truth: list[list[float]]) -> None:
    assert [row[0] for row in found] == [row[0] for row in truth]
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(CASES))
def test_statistics_equal_what_the_model_saw(name: str, tmp_path: Path) -> None:
    model = train_noting("classes", CASES[name], tmp_path)
    truth = truth_of("classes", model.notes)
    assert {row[-1] for row in truth} == {0.0, 1.0}
    assert_same(recorded_of(Trajectory.open(tmp_path / "trajectory")), truth)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["tokens", "next tokens", "values"])
def test_statistics_of_tokens_are_means_and_of_numbers_the_loss_alone(
    kind: str, accumulation: int, tmp_path: Path
) -> None:
    case = Case(rows=30, arguments={"gradient_accumulation_steps": accumulation, "learning_rate": 0.05})
    model = train_noting(kind, case, tmp_path)
    truth = truth_of(kind, model.notes)
    assert_same(recorded_of(Trajectory.open(tmp_path / "trajectory")), truth)
    assert np.isnan(np.array(truth)).any()
    assert np.isfinite(np.array(truth)[:, 1]).any()


def test_a_model_that_is_sure_has_small_errors_to_full_precision(tmp_path: Path) -> None:
    model = train_noting("classes", Case(), tmp_path, learning_rate=3.0, num_train_epochs=12)
    truth = truth_of("classes", model.notes)
    assert min(row[4] for row in truth) < 1e-3
    found = recorded_of(Trajectory.open(tmp_path / "trajectory"))
    np.testing.assert_allclose([row[4] for row in found], [row[4] for row in truth], rtol=1e-3)


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 4}


def assert_same_visits(left: Trajectory, right: Trajectory) -> None:
    one, two = read_visits(left), read_visits(right)
    for name in ("ids", "steps", *STATISTICS):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_resumed_run_has_the_statistics_of_an_uninterrupted_one(tmp_path: Path) -> None:
    case = CASES["accumulation with a short last cycle"]
    train_noting("classes", case, tmp_path / "whole", **CHECKPOINTS)
    place = tmp_path / "parts"
    for step, resume in ((6, None), (11, True)):
        with pytest.raises(CutError):
            train_noting("classes", case, place, callbacks=[Interrupt(step)], resume=resume, **CHECKPOINTS)
        assert len(read_visits(Trajectory.open(place / "trajectory"))) < 144
    train_noting("classes", case, place, resume=True, **CHECKPOINTS)
    assert_same_visits(Trajectory.open(tmp_path / "whole" / "trajectory"), Trajectory.open(place / "trajectory"))


class Kill(TrainerCallback):
    """kill -9 in the middle of a step, as the third micro-batch ends or before the step's row is written."""

    def __init__(self, step: int):
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_is_right_to_its_last_step_and_can_be_resumed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.record import test_row_statistics as t\n"
        "t.train_noting('classes', t.CASES['accumulation with a short last cycle'], Path({place!r}),\n"
        "    callbacks=[t.Kill(7)], **t.CHECKPOINTS)"
    ).format(place=str(tmp_path / "parts"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    case = CASES["accumulation with a short last cycle"]
    model = train_noting("classes", case, tmp_path / "whole", **CHECKPOINTS)
    record = tmp_path / "parts" / "trajectory"
    cut = Trajectory.open(record)
    assert len(cut) == 7
    truth = truth_of("classes", model.notes)
    assert_same(recorded_of(cut), truth[: len(read_visits(cut))])
    # A kill between the two files leaves the statistics a step or half a line ahead.
    part = record / "statistics" / "rank-00000-part-000.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines) + lines[-1].replace(b'"step":6', b'"step":7') + lines[-1][:40])
    assert len(read_visits(Trajectory.open(record))) == len(read_visits(cut))
    train_noting("classes", case, tmp_path / "parts", resume=True, **CHECKPOINTS)
    assert_same_visits(Trajectory.open(tmp_path / "whole" / "trajectory"), Trajectory.open(record))


def test_a_part_that_never_reached_the_ledger_does_not_count(tmp_path: Path) -> None:
    train_noting("classes", Case(), tmp_path)
    before = read_visits(Trajectory.open(tmp_path / "trajectory"))
    first = tmp_path / "trajectory" / "statistics" / "rank-00000-part-000.jsonl"
    header, line = first.read_bytes().splitlines(keepends=True)[:2]
    header = header.replace(b'"part":"0"', b'"part":"1"')
    first.with_name("rank-00000-part-001.jsonl").write_bytes(header + line.replace(b'"step":0', b'"step":20'))
    ledger = tmp_path / "trajectory" / "ledger" / "rank-00000-part-001.jsonl"
    ledger.write_bytes(header)
    after = read_visits(Trajectory.open(tmp_path / "trajectory"))
    np.testing.assert_array_equal(before.loss, after.loss)


def test_the_record_without_the_switch_says_how_to_turn_it_on(tmp_path: Path) -> None:
    train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=1)
    assert not (tmp_path / "t" / "statistics").exists()
    with pytest.raises(TrajectoryError, match=r"row_statistics=True") as caught:
        read_visits(Trajectory.open(tmp_path / "t"))
    assert "\n" not in str(caught.value)


def test_a_lost_or_damaged_file_is_named(tmp_path: Path) -> None:
    train_noting("classes", Case(), tmp_path)
    record = tmp_path / "trajectory"
    assert summarize(record)["bytes"]["statistics"] > 27 * 160
    part = record / "statistics" / "rank-00000-part-000.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"values":"', b'"values":"?', 1))
    with pytest.raises(TrajectoryError, match="step 0 and rank 0 are missing or damaged"):
        read_visits(Trajectory.open(record))
    part.unlink()
    with pytest.raises(TrajectoryError, match="missing or damaged"):
        read_visits(Trajectory.open(record))


def test_resuming_with_another_switch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        train_noting("classes", Case(), tmp_path, callbacks=[Interrupt(6)], **CHECKPOINTS)
    args = arguments(tmp_path / "out", per_device_train_batch_size=4, optim="sgd", **CHECKPOINTS)
    trainer = Trainer(
        Noting(40),
        args,
        train_dataset=rows_for("classes", 40),
        data_collator=pad,
        callbacks=[TrajectoryCallback(tmp_path / "trajectory")],
    )
    with pytest.raises(RecordingError, match="row statistics differs"):
        trainer.train(resume_from_checkpoint=True)


class Silent(Mlp):
    """Returns no logits."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(x, labels)["loss"]}


class Odd(Noting):
    """A loss that is no mean of a cross-entropy of its tokens."""

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(input_ids))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        return logits.square().mean()


class Failing(Mlp):
    """Its logits and labels fit no statistics at all, and make them fail."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        output = super().forward(x, labels)
        return output | {"logits": output["logits"].to_sparse()}


def recorded_without(
    place: Path, model: torch.nn.Module, rows: Any, message: str, caplog: pytest.LogCaptureFixture, **settings: Any
) -> None:
    recorder = TrajectoryCallback(place / "t", row_statistics=True)
    args = arguments(place / "out", num_train_epochs=2, **settings)
    collator = pad if "input_ids" in rows.column_names else None
    caplog.clear()
    trainer = Trainer(model, args, train_dataset=rows, data_collator=collator, callbacks=[recorder])
    trainer.train()
    assert len(Trajectory.open(place / "t")) == trainer.state.global_step
    warned = [record.getMessage() for record in caplog.records if "without the statistics" in record.getMessage()]
    assert len(warned) == 1
    with pytest.raises(TrajectoryError, match=message):
        read_visits(Trajectory.open(place / "t"))


def test_statistics_that_cannot_be_made_do_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorded_without(tmp_path / "a", Failing(), vectors(), "no statistics of its rows", caplog)
    recorded_without(tmp_path / "b", bert(), tokens(), "given no labels", caplog, label_smoothing_factor=0.1)
    recorded_without(tmp_path / "c", Odd(20), rows_for("tokens", 20), "not the mean", caplog)


def test_a_run_that_gave_up_its_statistics_can_be_resumed(tmp_path: Path) -> None:
    settings = {"label_smoothing_factor": 0.1, **CHECKPOINTS}
    recorder = [TrajectoryCallback(tmp_path / "t", row_statistics=True)]
    with pytest.raises(CutError):
        train(bert(), tokens(), tmp_path / "out", [*recorder, Interrupt(6)], **settings)
    recorder = [TrajectoryCallback(tmp_path / "t", row_statistics=True)]
    trainer = train(bert(), tokens(), tmp_path / "out", recorder, resume=True, **settings)
    assert len(Trajectory.open(tmp_path / "t")) == trainer.state.global_step


def test_ignored_classes_have_no_statistics_and_others_do(tmp_path: Path) -> None:
    rows = tokens(24)
    labels = [-100 if i % 4 == 0 else label for i, label in enumerate(rows["labels"])]
    rows = rows.remove_columns("labels").add_column("labels", labels)
    train(bert(), rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t", row_statistics=True)])
    visits = read_visits(Trajectory.open(tmp_path / "t"))
    assert (np.isnan(visits.loss) == (visits.ids % 4 == 0)).all()


class Pairs(Mlp):
    """Sees each row twice, as trainers of preferences do."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(torch.cat([x, x.flip(1)]))
        half = len(x)
        return {"loss": (logits[half:] - logits[:half]).square().mean(), "logits": logits}


@pytest.mark.parametrize("kind", [Silent, Pairs])
def test_where_the_models_loss_is_no_mean_over_rows_a_loss_of_ones_own_is_asked_for(
    kind: type[Mlp], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(kind(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])
    assert Trajectory.open(tmp_path / "t").manifest.loss == "custom"
    assert "add_influence will need loss=, a function (logits, labels, inputs) or (model, batch)" in caplog.text


class Cut(Pairs):
    """Sees half a row more."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(torch.cat([x, x[: len(x) // 2]]))
        return {"loss": logits.square().mean(), "logits": logits}


def test_a_model_that_sees_other_sequences_than_the_rows_is_refused_in_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="12 sequences for a micro-batch of 8 rows"):
        train(Cut(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])


def test_statistics_of_sft_trainer_are_those_of_its_log_probabilities(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is an optional integration")
    from tests.record.test_sft import model, tokenizer

    rows = Dataset.from_dict({"text": [" ".join([f"w{i}"] + ["w50"] * (1 + i % 5)) for i in range(4)]})
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trl.SFTTrainer(
        model(),
        args,
        train_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[TrajectoryCallback(tmp_path / "t", window=1.0, row_statistics=True)],
    ).train()
    visits = read_visits(Trajectory.open(tmp_path / "t"))
    for i, loss, confidence in zip(visits.ids, visits.loss, visits.confidence, strict=True):
        ids = tokenizer()(rows[int(i)]["text"] + " <eos>", return_tensors="pt")["input_ids"]
        log_probs = model()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert loss == pytest.approx(-log_probs.mean().item(), rel=1e-4)
        assert confidence == pytest.approx(log_probs.exp().mean().item(), rel=1e-4)
    assert np.isnan(visits.margin).all()
    assert np.isfinite(visits.correct).all()


def test_recording_statistics_leaves_training_bitwise_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = Mlp(), Mlp()
    second.load_state_dict(first.state_dict())
    train(first, vectors(), tmp_path / "a")
    train(second, vectors(), tmp_path / "b", [TrajectoryCallback(tmp_path / "t", row_statistics=True)])
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)

"""
The objective is that of the run: losses, labels and weights as they were trained, or a sentence that says why not.

One recorded SGD step moves the parameters by minus what the removal of its visits would, summed (see
`test_objectives`); longer runs are compared with what was recorded of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    Trainer,
    TrainerCallback,
    set_seed,
)

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, UnsupportedError, add_influence, prune
from hf_prune.influence.queries import parameter_queries
from hf_prune.model.agreement import DRAWS, check_agreement
from hf_prune.model.replay import Replay
from hf_prune.selection.classes import read_classes
from tests import toys
from tests.influence.runs import Run
from tests.influence.test_objectives import STEP, check, tokenizer

WEIGHTS = torch.tensor([1.0, 2.0, 6.0])
cross_entropy = nn.functional.cross_entropy


def step_of(
    model: nn.Module,
    rows: Dataset,
    directory: Path,
    kind: type[Trainer] = Trainer,
    *,
    trainer: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    engine: str = "dense",
    **scoring: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """As `moves` of `test_objectives`, with a Trainer of the user's own."""
    set_seed(0)
    args = toys.arguments(directory / "out", **(STEP | (arguments or {})))
    recorder = TrajectoryCallback(directory / "t", window=1.0)
    kind(model, args, train_dataset=rows, callbacks=[recorder], **(trainer or {})).train()
    record = Trajectory.open(directory / "t")
    moved = record.parameters_at(1) - record.parameters_at(0)
    scoring = {"directions": 20, "space": "parameters", "mode": "visits", "engine": engine} | scoring
    scored = add_influence(rows, record, model=model, **scoring)
    return -np.array(scored["influence"]).sum(0), (parameter_queries(moved, 20, seed=0) @ moved).numpy()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING")
    return caplog


# ---- labels ----


# the Trainer's own collator, without a tokenizer, takes no single numbers as label_ids beside labels
@pytest.mark.parametrize(
    ("names", "with_tokenizer"),
    [
        (("labels", "label"), True),
        (("labels", "label"), False),
        (("labels", "label_ids"), True),
        (("label", "label_ids"), True),
        (("label", "label_ids"), False),
    ],
)
def test_of_two_label_columns_the_one_that_was_trained_on_is_scored(
    names: tuple[str, str], with_tokenizer: bool, tmp_path: Path
):
    torch.manual_seed(0)
    rows = toys.tokens(24)
    other = [(label + 1) % 3 for label in rows["labels"]]
    rows = (rows if names[0] == "labels" else rows.rename_column("labels", names[0])).add_column(names[1], other)
    trainer = {"processing_class": tokenizer()} if with_tokenizer else {}
    check(*step_of(toys.bert(), rows, tmp_path, trainer=trainer))


def test_classes_are_balanced_by_the_labels_that_were_trained_on(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(48)
    rows = rows.rename_column("labels", "label").add_column("labels", [i % 2 for i in range(48)])
    set_seed(0)
    recorder, model = TrajectoryCallback(tmp_path / "t"), toys.bert()
    args = toys.arguments(tmp_path / "out", num_train_epochs=2)
    Trainer(model, args, train_dataset=rows, processing_class=tokenizer(), callbacks=[recorder]).train()
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=rows.select(range(8)), directions=8)
    found = read_classes(scored, None)
    assert found is not None
    assert (found.column, len(found.names)) == ("label", 3)
    kept = np.bincount(prune(scored, keep=0.5)["label"], minlength=3)
    assert abs(kept - np.bincount(rows["label"]) / 2).max() <= 1


@pytest.mark.parametrize("accumulation", [1, 3])
def test_rows_whose_class_is_ignored_have_no_influence_and_count_nowhere(accumulation: int, tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24)
    labels = [-100 if i % 4 == 0 else label for i, label in enumerate(rows["labels"])]
    rows = rows.remove_columns("labels").add_column("labels", labels)
    arguments = {"gradient_accumulation_steps": accumulation}
    check(*step_of(toys.bert(), rows, tmp_path, arguments=arguments))
    scored = add_influence(rows, tmp_path / "t", model=toys.bert(), directions=8, space="parameters", mode="visits")
    assert not np.array(scored["influence"])[::4].any()


def test_answers_in_a_text_have_two_labels_a_row(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24).remove_columns("labels")
    rows = rows.add_column("start_positions", [i % 5 for i in range(24)])
    rows = rows.add_column("end_positions", [min(9, i % 5 + i % 3) for i in range(24)])
    config = {"vocab_size": toys.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 32, "max_position_embeddings": 16}
    model = BertForQuestionAnswering(BertConfig(**config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    check(*step_of(model, rows, tmp_path))


# ---- models and collators ----


class Tuple(toys.Mlp):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.net(x)
        return (logits,) if labels is None else (cross_entropy(logits, labels), logits)


class Target(toys.Mlp):
    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> Any:
        return super().forward(x, target)


class Label(toys.Mlp):
    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> Any:
        return super().forward(x, label)


class Required(toys.Mlp):
    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        return super().forward(x, labels)


class Anything(toys.Mlp):
    def forward(self, **inputs: Any) -> Any:
        return super().forward(inputs["x"], inputs.get("labels"))


def keep(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("kind", [Tuple, Target, Label, Required, Anything])
def test_models_of_the_users_own(kind: type[toys.Mlp], engine: str, tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.vectors(24)
    name = {Target: "target", Label: "label"}.get(kind, "labels")
    own = kind in (Label, Anything)
    arguments = {"label_names": [name]} if kind is Target else {}
    found = step_of(
        kind(),
        rows if name == "labels" else rows.rename_column("labels", name),
        tmp_path,
        trainer={"data_collator": keep} if own else {},
        arguments=arguments | ({"remove_unused_columns": False} if own else {}),
        engine=engine,
        data_collator=keep if own else None,
    )
    if engine == "dense":
        check(*found)
    else:
        assert np.linalg.norm(found[0] - found[1]) < 0.03 * np.linalg.norm(found[1])


def test_probabilities_as_labels(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.vectors(24)
    soft = (0.8 * np.eye(3)[rows["labels"]] + 0.2 / 3).astype("float32").tolist()
    check(*step_of(toys.Mlp(), rows.remove_columns("labels").add_column("labels", soft), tmp_path))


def test_a_collator_reads_raw_columns(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24, padding=False)
    text = Dataset.from_dict({"text": [" ".join(map(str, row)) for row in rows["input_ids"]], "topic": rows["labels"]})

    def tokenize(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[int(word) for word in example["text"].split()] for example in examples])
        return {"input_ids": ids, "labels": torch.tensor([example["topic"] for example in examples])}

    arguments = {"remove_unused_columns": False}
    check(
        *step_of(
            toys.bert(),
            text,
            tmp_path,
            trainer={"data_collator": tokenize},
            arguments=arguments,
            data_collator=tokenize,
        )
    )
    assert Trajectory.open(tmp_path / "t").manifest.label_column == "topic"


# ---- losses of the user's own ----


def weighted_mean(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return cross_entropy(logits, labels, reduction="none"), WEIGHTS[labels]


class ClassWeights(Trainer):
    """As in the Trainer's documentation."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.CrossEntropyLoss(weight=WEIGHTS)(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


class WeightedHead(toys.Mlp):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels, weight=WEIGHTS), "logits": logits}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("make", [toys.Mlp, toys.bert, WeightedHead])
def test_class_weights_are_a_weighted_mean(make: Any, accumulation: int, tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24) if make is toys.bert else toys.vectors(24)
    kind = Trainer if make is WeightedHead else ClassWeights
    arguments = {"gradient_accumulation_steps": accumulation}
    check(*step_of(make(), rows, tmp_path, kind, arguments=arguments, loss=weighted_mean))


class SampleWeights(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weight = inputs.pop("weight")
        outputs = model(**inputs)
        loss = (cross_entropy(outputs["logits"], inputs["labels"], reduction="none") * weight).mean()
        return (loss, outputs) if return_outputs else loss


def weighted_rows() -> Dataset:
    return toys.vectors(24).add_column("weight", np.linspace(0, 2, 24).astype("float32"))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_weights_in_a_column_reach_the_loss(accumulation: int, tmp_path: Path):
    torch.manual_seed(0)

    def loss(logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return cross_entropy(logits, labels, reduction="none") * inputs["weight"]

    arguments = {"remove_unused_columns": False, "gradient_accumulation_steps": accumulation}
    check(*step_of(toys.Mlp(), weighted_rows(), tmp_path, SampleWeights, arguments=arguments, loss=loss))


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("make", [toys.bert, toys.vit])
def test_a_loss_function_that_divides_by_the_items_of_the_whole_step(make: Any, accumulation: int, tmp_path: Path):
    torch.manual_seed(0)

    def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return 2 * cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    rows = toys.tokens(20) if make is toys.bert else toys.images(20)  # the last micro-batch is smaller
    arguments = {"gradient_accumulation_steps": accumulation}
    trainer = {"compute_loss_func": summed}
    plain = lambda logits, labels: cross_entropy(logits, labels, reduction="none")  # noqa: E731
    check(*step_of(make(), rows, tmp_path, trainer=trainer, arguments=arguments, loss=plain))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_trainers_label_smoothing_needs_no_loss(accumulation: int, tmp_path: Path):
    torch.manual_seed(0)
    arguments = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": accumulation}
    check(*step_of(toys.bert(), toys.tokens(24), tmp_path, arguments=arguments))


class Distilled(Trainer):
    """Half the model's own loss, and half of a teacher's whose logits lie in a column."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        teacher = inputs.pop("teacher")
        outputs = model(**inputs)
        pull = nn.functional.kl_div(outputs["logits"].log_softmax(1), teacher.softmax(1), reduction="batchmean")
        loss = 0.5 * outputs["loss"] + 0.5 * pull
        return (loss, outputs) if return_outputs else loss


def distilled(logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    pull = nn.functional.kl_div(logits.log_softmax(1), inputs["teacher"].softmax(1), reduction="none").sum(1)
    return 0.5 * cross_entropy(logits, labels, reduction="none") + 0.5 * pull


def taught_rows() -> Dataset:
    logits = np.random.default_rng(3).normal(0, 2, (24, 3)).astype("float32").tolist()
    return toys.vectors(24).add_column("teacher", logits)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_term_beside_the_models_loss_is_noticed_and_scored_with_a_loss(
    accumulation: int, warnings: pytest.LogCaptureFixture, tmp_path: Path
):
    torch.manual_seed(0)
    arguments = {"remove_unused_columns": False, "gradient_accumulation_steps": accumulation}
    with pytest.raises(UnsupportedError, match="or on more than that; pass loss="):
        step_of(toys.Mlp(), taught_rows(), tmp_path / "a", Distilled, arguments=arguments)
    assert "add_influence will need loss=" in warnings.text
    check(*step_of(toys.Mlp(), taught_rows(), tmp_path / "b", Distilled, arguments=arguments, loss=distilled))


@pytest.mark.parametrize("values", [torch.ones(3), (torch.ones(8), torch.ones(3)), "text"])
def test_a_loss_of_another_shape_is_refused(values: Any, tmp_path: Path):
    with pytest.raises(ValueError, match="must return one loss per example"):
        step_of(toys.Mlp(), toys.vectors(24), tmp_path, loss=lambda logits, labels: values)


# ---- what does not agree with the record ----


def run_of(model: nn.Module, rows: Dataset, directory: Path, *callbacks: TrainerCallback, **settings: Any) -> Run:
    set_seed(0)
    parameters = settings.pop("parameters", None)
    recorder = TrajectoryCallback(directory / "t", window=1.0, parameters=parameters)
    args = toys.arguments(directory / "out", **({"num_train_epochs": 3, "learning_rate": 3e-3} | settings))
    Trainer(model, args, train_dataset=rows, callbacks=[recorder, *callbacks]).train()
    return Run(model, rows, toys.tokens(8) if "input_ids" in rows.column_names else toys.vectors(8), directory / "t")


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_a_weighted_head_that_the_first_batch_does_not_show_is_found_later(
    engine: str, warnings: pytest.LogCaptureFixture, tmp_path: Path
):
    torch.manual_seed(0)
    rows = toys.vectors(80).sort("labels")  # a batch of one class has the mean of equal weights
    run = run_of(WeightedHead(), rows, tmp_path, train_sampling_strategy="sequential", learning_rate=3e-2)
    run.score(engine)
    assert "the model weights rows or adds a term to its loss" in warnings.text


def test_an_adapter_on_another_base_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    adapted = get_peft_model(toys.bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    for parameter in adapted.get_base_model().bert.parameters():
        if not parameter.requires_grad:
            parameter.data.mul_(3)
    run = run_of(adapted, toys.tokens(48), tmp_path, learning_rate=3e-2)
    adapted.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(0)
    run.model = PeftModel.from_pretrained(toys.bert(), tmp_path / "adapter")
    with pytest.raises(TrajectoryError, match="an adapter on the base that it was trained on"):
        run.score("dense")


class Freeze(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            model.net[0].requires_grad_(False)


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("step", [1, 10])
def test_layers_frozen_on_the_way_are_noticed(
    step: int, engine: str, warnings: pytest.LogCaptureFixture, tmp_path: Path
):
    torch.manual_seed(0)
    run = run_of(toys.Mlp(), toys.vectors(40), tmp_path, Freeze(step), num_train_epochs=6)
    run.score(engine)
    assert "frozen after training began" in warnings.text


def test_parameters_that_were_not_recorded_do_not_hide_another_loss(
    warnings: pytest.LogCaptureFixture, tmp_path: Path
):
    torch.manual_seed(0)
    run = run_of(toys.Mlp(), toys.vectors(80), tmp_path, parameters="net.2", learning_rate=1e-2)
    run.score("dense")
    assert "computed again" not in warnings.text
    other = run.rows.map(lambda row: {"labels": (row["labels"] + 1) % 3})
    check_agreement(Replay.of(other, Trajectory.open(run.path), run.model))
    assert "The objective of" in warnings.text


def dropping(share: float) -> nn.Module:
    model = toys.bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
    return model


def test_dropout_is_no_disagreement_and_does_not_hide_one(warnings: pytest.LogCaptureFixture, tmp_path: Path):
    torch.manual_seed(0)
    run = run_of(dropping(0.1), toys.tokens(96), tmp_path, num_train_epochs=6, learning_rate=5e-3)
    run.score("dense")
    assert "The objective of" not in warnings.text
    other = toys.tokens(96).map(lambda row: {"labels": (row["labels"] + 1) % 3})
    replay = Replay.of(other, Trajectory.open(run.path), run.model)
    check_agreement(replay)
    assert "The objective of" in warnings.text


def test_dropout_of_an_adapter_that_begins_as_zero_is_no_disagreement(
    warnings: pytest.LogCaptureFixture, tmp_path: Path
):
    """In the first step it changes nothing."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.1)
    model = get_peft_model(toys.llama(), config)
    run = run_of(model, toys.tokens(48), tmp_path, num_train_epochs=4, learning_rate=5e-3)
    replay = Replay.of(run.rows, Trajectory.open(run.path), run.model)
    check_agreement(replay)
    assert {len(one.losses) for one in replay.observed} == {DRAWS}
    assert "computed again" not in warnings.text


def test_half_precision_is_no_disagreement(warnings: pytest.LogCaptureFixture, tmp_path: Path):
    torch.manual_seed(0)
    run_of(toys.bert(), toys.tokens(48), tmp_path, bf16=True, learning_rate=5e-3).score("dense")
    assert "computed again" not in warnings.text


def test_a_loss_that_is_not_the_one_trained_on_is_noticed(warnings: pytest.LogCaptureFixture, tmp_path: Path):
    torch.manual_seed(0)
    set_seed(0)
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0)
    rows = toys.vectors(80)
    args = toys.arguments(tmp_path / "out", learning_rate=3e-2)
    model = toys.Mlp()
    ClassWeights(model, args, train_dataset=rows, callbacks=[recorder]).train()
    run = Run(model, rows, toys.vectors(8), tmp_path / "t")
    assert run.score("dense", loss=weighted_mean).shape == (80, 9)
    assert "computed again" not in warnings.text
    run.score("dense", loss=lambda logits, labels: (logits - logits.mean(1, keepdim=True)).square().sum(1))
    assert "loss= does not give what the Trainer took the mean of" in warnings.text

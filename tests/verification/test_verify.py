import importlib

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from hf_prune.selection import prune
from hf_prune.verification import verify
from hf_prune.verification.gap import same_columns
from tests.toys import Mlp, arguments, vectors


@pytest.fixture(scope="module")
def full() -> Dataset:
    return vectors(48)


@pytest.fixture(scope="module")
def held_out() -> Dataset:
    return vectors(60, seed=1)


def scored(rows: Dataset) -> Dataset:
    """The rows with influence columns."""
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(len(rows), 8)).astype("float32")
    columns = {
        "influence": influence.tolist(),
        "influence_norm": np.linalg.norm(influence, axis=1).tolist(),
        "influence_eval_loss": rng.normal(size=len(rows)).tolist(),
    }
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


class Factory:
    """A factory that notes what it was asked for."""

    def __init__(self, scratch, **overrides):
        self.scratch, self.overrides = scratch, {"num_train_epochs": 2} | overrides
        self.calls: list[tuple[int, tuple]] = []
        self.trainers: list[Trainer] = []

    def __call__(self, train_dataset, seed):
        self.calls.append((seed, tuple(map(tuple, train_dataset["x"]))))
        args = arguments(self.scratch, **({"seed": seed} | self.overrides))
        self.trainers.append(Trainer(Mlp(), args, train_dataset=train_dataset))
        return self.trainers[-1]


def test_raw_rows_are_compared_with_the_raw_rows_that_they_were_taken_from():
    raw = vectors(60).add_column("text", [f"row {i}" for i in range(60)])
    prepared = raw.map(lambda row: {"input_ids": [1, 2]}).select(range(59, 9, -1))
    pruned = prune(scored(prepared), keep=20).selection.apply(raw, unseen="drop")
    assert same_columns(pruned, raw)[:] == pruned[:]
    with pytest.raises(ValueError, match="chosen from 60, and full has 50"):
        same_columns(pruned, prepared)


def test_every_arm_has_the_same_seeds_epochs_and_rows(full, held_out, tmp_path):
    factory = Factory(tmp_path)
    half = full.select(range(24))
    result = verify(factory, full, half, eval_dataset=held_out, seeds=2)
    assert [seed for seed, _ in factory.calls] == [0, 1, 0, 1, 0, 1]
    assert (result.full.rows, result.pruned.rows, result.random.rows) == (48, 24, 24)
    assert [run.steps for run in result.full.runs] == [12, 12]
    assert [run.steps for run in result.pruned.runs + result.random.runs] == [6] * 4
    assert 0 < result.full.runs[0].loss != result.full.runs[1].loss  # another seed is another training


def test_random_arm_draws_rows_of_the_full_set_anew_for_each_seed(full, held_out, tmp_path):
    factory = Factory(tmp_path, max_steps=1)
    verify(factory, full, full.select(range(24)), eval_dataset=held_out, seeds=2, budget="steps")
    first, second = (set(rows) for _, rows in factory.calls[-2:])
    everything = set(map(tuple, full["x"]))
    assert len(first) == len(second) == 24
    assert first != second
    assert first < everything
    assert second < everything


def test_budget_of_steps_gives_less_rows_as_many_steps(full, held_out, tmp_path):
    result = verify(
        Factory(tmp_path), full, full.select(range(16)), eval_dataset=held_out, seeds=1, budget="steps", random=False
    )
    assert result.full.runs[0].steps == result.pruned.runs[0].steps == 12
    assert result.random is None


def test_same_seed_gives_the_same_result(full, held_out, tmp_path):
    half = full.select(range(24))
    results = [verify(Factory(tmp_path), full, half, eval_dataset=held_out, seeds=[5]) for _ in range(2)]
    first, second = ([arm.runs[0].loss for arm in (r.full, r.pruned, r.random)] for r in results)
    assert first == second


def test_metric_may_be_a_function(full, held_out, tmp_path):
    def share_of_class_0(predictions, labels):
        assert predictions.shape == (len(labels), 3)
        return float((labels == 0).mean())

    result = verify(
        Factory(tmp_path), full, full, eval_dataset=held_out, seeds=1, metric=share_of_class_0, random=False
    )
    assert result.metric == "share_of_class_0"
    assert result.full.runs[0].metric == pytest.approx(np.mean(np.array(held_out["labels"]) == 0))


def test_prediction_is_the_certificates(full, held_out, tmp_path):
    pruned = prune(scored(full), keep=0.5)
    result = verify(Factory(tmp_path), full, pruned, eval_dataset=held_out, seeds=1, random=False)
    certificate = pruned.selection.certificate
    assert result.predicted_loss_change == certificate.predicted_eval_loss_change
    assert result.predicted_random_loss_change == certificate.random_eval_loss_change.mean


@pytest.mark.parametrize(("metric", "better"), [("loss", False), ("accuracy", True)])
def test_less_of_a_loss_is_better_without_being_told(full, held_out, tmp_path, metric, better):
    result = verify(Factory(tmp_path), full, full, eval_dataset=held_out, seeds=1, metric=metric, random=False)
    assert result.greater_is_better is better
    assert result.observed()["greater_is_better"] is better


def test_the_loss_alone_is_measured_without_keeping_outputs(full, held_out, tmp_path, monkeypatch):
    kept = []
    loop = Trainer.evaluation_loop

    def watched(self, *args, **kwargs):
        output = loop(self, *args, **kwargs)
        kept.append(output.predictions)
        return output

    monkeypatch.setattr(Trainer, "evaluation_loop", watched)
    same = {"eval_dataset": held_out, "seeds": 1, "random": False}
    loss = verify(Factory(tmp_path), full, full, metric="loss", **same)
    assert kept == [None, None]
    accuracy = verify(Factory(tmp_path), full, full, **same)
    assert loss.full.runs[0].metric == accuracy.full.runs[0].loss


def test_rows_that_were_pruned_from_another_dataset_are_refused(full, held_out, tmp_path):
    pruned = prune(scored(full), keep=0.5)
    factory = Factory(tmp_path)
    with pytest.raises(ValueError, match="were chosen from 48, and full has 40"):
        verify(factory, full.select(range(40)), pruned, eval_dataset=held_out)
    assert not factory.calls


def test_equal_steps_have_one_schedule(full, held_out, tmp_path):
    """The learning rate goes down to the last step of every arm, as it does for all rows."""
    factory = Factory(tmp_path, lr_scheduler_type="linear", logging_strategy="steps", logging_steps=1)
    verify(factory, full, full.select(range(16)), eval_dataset=held_out, seeds=1, budget="steps", random=False)
    first, second = (
        [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        for trainer in factory.trainers
    )
    assert first == second
    assert len(set(first)) == len(first) == 12


def test_a_schedule_of_the_factorys_own_is_warned_of_under_equal_steps(full, held_out, tmp_path, caplog):
    def factory(rows, seed):
        trainer = Factory(tmp_path)(rows, seed)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.lr_scheduler = torch.optim.lr_scheduler.LinearLR(trainer.optimizer, 1.0, 0.0, total_iters=4)
        return trainer

    with caplog.at_level("WARNING"):
        verify(factory, full, full.select(range(16)), eval_dataset=held_out, seeds=1, budget="steps", random=False)
    assert "schedule of its own" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "budget", "message"),
    [
        ({"seed": 3}, "epochs", "pass the factory's second argument"),
        ({"max_steps": 4}, "epochs", "set num_train_epochs"),
    ],
)
def test_factory_that_ignores_the_rules_is_refused(full, held_out, tmp_path, overrides, budget, message):
    with pytest.raises(ValueError, match=message):
        verify(Factory(tmp_path, **overrides), full, full, eval_dataset=held_out, seeds=1, budget=budget)


def test_factory_that_trains_on_all_rows_is_refused(full, held_out, tmp_path):
    inner = Factory(tmp_path)
    with pytest.raises(ValueError, match="pass the factory's first argument"):
        verify(lambda rows, seed: inner(full, seed), full, full.select(range(9)), eval_dataset=held_out, seeds=1)


@pytest.mark.parametrize(
    ("arguments_", "message"),
    [
        ({"seeds": 0}, "at least one seed"),
        ({"seeds": [1, 1]}, "each once"),
        ({"budget": "hours"}, "'epochs' or 'steps'"),
        ({"metric": 3}, "metric is a int: pass a name"),
    ],
)
def test_wrong_arguments_are_named_before_any_training(full, held_out, tmp_path, arguments_, message):
    factory = Factory(tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        verify(factory, full, full, eval_dataset=held_out, **arguments_)
    assert not factory.calls


def test_columns_that_training_did_not_see_do_not_reach_the_factory(full, held_out, tmp_path):
    seen = []

    def factory(rows, seed):
        seen.append(rows.column_names)
        return Factory(tmp_path)(rows, seed)

    pruned = full.select(range(9)).add_column("influence_norm", [0.0] * 9)
    verify(factory, full, pruned, eval_dataset=held_out, seeds=1, random=False)
    assert seen == [["x", "labels"], ["x", "labels"]]
    with pytest.raises(ValueError, match="lacks the column 'x'"):
        verify(factory, full, pruned.remove_columns("x"), eval_dataset=held_out, seeds=1)


def test_a_stopped_verification_goes_on_where_it_was(full, held_out, tmp_path):
    same = {"eval_dataset": held_out, "seeds": 2, "directory": tmp_path / "kept", "budget": "steps"}
    whole = verify(Factory(tmp_path), full, full.select(range(24)), **same | {"directory": None})
    stopped = Factory(tmp_path)

    def stopping(rows, seed):
        if len(stopped.calls) == 3:
            raise KeyboardInterrupt
        return stopped(rows, seed)

    with pytest.raises(KeyboardInterrupt):
        verify(stopping, full, full.select(range(24)), **same)
    rest = Factory(tmp_path)
    found = verify(lambda rows, seed: rest(rows, seed), full, full.select(range(24)), **same)
    assert len(rest.calls) == 3
    assert _without_seconds(found) == _without_seconds(whole)
    # what was changed is trained again: rows in another order (the pruned ones are not), seeds that are new
    for changed, trainings in (({"full": full.select(range(47, -1, -1))}, 4), ({"seeds": 3}, 3), ({}, 0)):
        again = Factory(tmp_path)
        verify(again, changed.pop("full", full), full.select(range(24)), **same | changed)
        assert len(again.calls) == trainings, changed


def test_a_damaged_result_of_a_retraining_is_named(full, held_out, tmp_path):
    same = {"eval_dataset": held_out, "seeds": 1, "directory": tmp_path / "kept", "random": False}
    verify(Factory(tmp_path), full, full, **same)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_text('{"runs": {}}')
    with pytest.raises(ValueError, match="was measured on other parts of the held-out rows: delete it"):
        verify(Factory(tmp_path), full, full, **same)
    file.write_text("{")
    with pytest.raises(ValueError, match="delete it, and the retraining is made again"):
        verify(Factory(tmp_path), full, full, **same)


def test_a_factory_in_another_file_is_another_factory(full, held_out, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from tests.verification.test_verify import Factory\nmade = []\n\n\ndef make(rows, seed):\n"
    text += "    made.append(seed)\n    return Factory('{}', learning_rate={})(rows, seed)\n"
    made = []
    for name, rate in (("one", 1e-3), ("another", 1e-3), ("yet_another", 1e-2)):
        (tmp_path / f"{name}.py").write_text(text.format(tmp_path, rate))
        module = importlib.import_module(name)
        verify(module.make, full, full, eval_dataset=held_out, seeds=1, random=False, directory=tmp_path / "kept")
        made.append(len(module.made))
    assert made == [1, 0, 1]


def _without_seconds(result):
    arms = (result.full, result.pruned, result.random)
    return [[(run.seed, run.metric, run.loss, run.steps) for run in arm.runs] for arm in arms]

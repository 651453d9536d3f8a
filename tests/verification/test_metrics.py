"""What a model can be measured by: names, functions, modules of `evaluate`, the Trainer's own metrics."""

import re
import sys

import evaluate
import numpy as np
import pytest
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput

from hf_prune.verification import verify
from hf_prune.verification.metrics import measure_of
from tests.toys import Mlp, arguments, vectors

MODULE = """
import datasets
import evaluate


class {name}(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{{features}}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, **values):
        import numpy as np

        return {result}
"""
WHOLE = '"predictions": datasets.Value("int32"), "references": datasets.Value("int32")'
REAL = '"predictions": datasets.Value("float64"), "references": datasets.Value("float64")'


def module_path(directory, name: str, features: str, result: str) -> str:
    """The path of a metric of the `evaluate` library, written as such metrics are."""
    home = directory / name
    home.mkdir()
    title = "".join(part.capitalize() for part in name.split("_"))
    (home / f"{name}.py").write_text(MODULE.format(name=title, features=features, result=result))
    return str(home)


def output(predictions, labels) -> PredictionOutput:
    return PredictionOutput(np.asarray(predictions), np.asarray(labels), {"verify_loss": 0.5, "verify_f1": 0.25})


@pytest.fixture(scope="module")
def error_rate(tmp_path_factory) -> str:
    result = '{"error_rate": float(np.mean(np.array(values["predictions"]) != np.array(values["references"])))}'
    return module_path(tmp_path_factory.mktemp("metrics"), "error_rate", WHOLE, result)


@pytest.mark.parametrize("as_path", [True, False])
def test_a_metric_of_evaluate_gets_classes_where_it_asks_for_whole_numbers(error_rate, as_path):
    measure = measure_of(error_rate if as_path else evaluate.load(error_rate))
    assert measure.name == "error_rate"
    found = output([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], [1, 1, 1, -100])
    assert measure.of(found) == pytest.approx(1 / 3)


def test_a_metric_of_evaluate_gets_real_numbers_of_a_regression(tmp_path):
    result = '{"mse": float(np.mean((np.array(values["predictions"]) - np.array(values["references"])) ** 2))}'
    measure = measure_of(module_path(tmp_path, "squared", REAL, result))
    assert measure.of(output([[1.0], [2.0]], [1.0, 4.0])) == pytest.approx(2.0)


def test_a_metric_that_cannot_be_fed_or_read_is_named(tmp_path):
    found = output([[0.1, 0.9]], [1])
    other = module_path(tmp_path, "scores", WHOLE.replace("predictions", "scores"), "{}")
    with pytest.raises(ValueError, match=r"takes \['references', 'scores'\]"):
        measure_of(other).of(found)
    with pytest.raises(ValueError, match="cannot take outputs of shape"):
        measure_of(module_path(tmp_path, "real", REAL, "{}")).of(found)
    with pytest.raises(ValueError, match=r"returned \['high', 'low'\]"):
        measure_of(module_path(tmp_path, "two", WHOLE, '{"high": 1, "low": 0}')).of(found)


def test_the_trainers_own_metrics_go_by_name():
    assert measure_of("loss").of(output([[1.0]], [0])) == 0.5
    assert measure_of("eval_f1").of(output([[1.0]], [0])) == 0.25
    with pytest.raises(ValueError, match=r"no 'bleu', only \['f1', 'loss'\]"):
        measure_of("bleu").of(output([[1.0]], [0]))


def test_ignored_positions_count_in_no_accuracy():
    assert measure_of("accuracy").of(output([[[2.0, 1.0], [0.0, 1.0]]], [[0, -100]])) == 1.0


def test_verify_retrains_and_measures_with_a_module_of_evaluate(error_rate, tmp_path):
    full, held_out = vectors(32), vectors(40, seed=1)

    def factory(rows, seed):
        return Trainer(Mlp(), arguments(tmp_path, seed=seed, num_train_epochs=1), train_dataset=rows)

    shared = {"eval_dataset": held_out, "seeds": 2, "random": False}
    found = verify(factory, full, full.select(range(16)), metric=error_rate, greater_is_better=False, **shared)
    again = verify(factory, full, full.select(range(16)), **shared)
    assert found.metric == "error_rate"
    for error, accuracy in zip(found.pruned.runs, again.pruned.runs, strict=True):
        assert error.metric == pytest.approx(1 - accuracy.metric)


def test_verify_measures_with_the_trainers_compute_metrics(tmp_path):
    full, held_out = vectors(24), vectors(24, seed=1)

    def factory(rows, seed, compute_metrics=lambda found: {"first": float(found.predictions[0, 0])}):
        args = arguments(tmp_path, seed=seed, num_train_epochs=1)
        return Trainer(Mlp(), args, train_dataset=rows, compute_metrics=compute_metrics)

    shared = {"eval_dataset": held_out, "seeds": 1, "random": False}
    found = verify(factory, full, full, metric="first", **shared)
    function = verify(factory, full, full, metric=lambda logits, labels: float(logits[0, 0]), **shared)
    assert found.full.runs[0].metric == function.full.runs[0].metric
    with pytest.raises(ValueError, match="the factory's Trainer has no compute_metrics"):
        verify(lambda rows, seed: factory(rows, seed, None), full, full, metric="first", **shared)


def test_without_evaluate_a_path_says_what_to_install_and_the_rest_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)  # as where it is not installed
    with pytest.raises(ImportError, match=re.escape("my.py needs evaluate: pip install 'hf-prune[evaluate]'.")):
        measure_of("my.py")
    with pytest.raises(TypeError, match="metric is a int"):
        measure_of(3)
    assert measure_of("accuracy").name == "accuracy"

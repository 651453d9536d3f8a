import json
import math

import pytest

from hf_prune.publish.provenance import observe
from hf_prune.verification import Arm, MeanInterval, Retraining, Verification


def arm(rows: int, metrics: list[float], losses: list[float | None] | None = None) -> Arm:
    losses = losses or [None] * len(metrics)
    runs = [
        Retraining(seed, metric, loss, 10, 1.0)
        for seed, (metric, loss) in enumerate(zip(metrics, losses, strict=True))
    ]
    return Arm(rows, tuple(runs))


def verification() -> Verification:
    return Verification(
        "accuracy",
        True,
        "epochs",
        full=arm(100, [0.9, 0.8, 1.0], [0.1, 0.2, 0.3]),
        pruned=arm(50, [0.8, 0.8, 0.8], [0.3, 0.3, 0.3]),
        random=arm(50, [0.7, 0.8, 0.6], [0.5, 0.4, 0.6]),
        predicted_loss_change=0.05,
        predicted_random_loss_change=0.25,
    )


def test_interval_is_students_t():
    estimate = MeanInterval.of([1.0, 2.0, 3.0])
    # 97.5 % quantile of t with 2 degrees of freedom: 4.302653
    half = 4.302653 / math.sqrt(3)
    assert estimate.mean == 2.0
    assert estimate.sd == pytest.approx(1.0)
    assert estimate.interval == pytest.approx((2 - half, 2 + half), rel=1e-6)


def test_one_seed_has_no_interval():
    assert MeanInterval.of([0.5]) == MeanInterval(0.5, None, None)


def test_gaps_are_paired_by_seed():
    result = verification()
    assert result.gap == MeanInterval.of([0.9 - 0.8, 0.8 - 0.8, 1.0 - 0.8])
    assert result.random_gap == MeanInterval.of([0.9 - 0.7, 0.8 - 0.8, 1.0 - 0.6])
    assert result.loss_change.mean == pytest.approx(0.1)
    assert result.random_loss_change.mean == pytest.approx(0.3)
    assert result.loss_beside_random == MeanInterval.of([0.3 - 0.5, 0.3 - 0.4, 0.3 - 0.6])
    assert result.predicted_loss_beside_random == pytest.approx(-0.2)


def test_a_model_without_loss_has_no_loss_change():
    result = Verification("accuracy", True, "epochs", arm(10, [1.0]), arm(5, [1.0]))
    assert result.loss_change is None
    assert result.full.loss is None
    assert result.random_gap is None


def test_arms_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match="other seeds"):
        Verification("accuracy", True, "epochs", arm(10, [1.0, 1.0]), arm(5, [1.0]))


def test_verification_survives_json():
    result = verification()
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Verification.from_dict(values) == result
    assert values["estimates"]["gap"]["mean"] == pytest.approx(0.1)


def test_what_was_written_before_random_rows_were_predicted_is_still_read():
    values = verification().to_dict()
    del values["predicted_random_loss_change"]
    assert Verification.from_dict(values).predicted_loss_beside_random is None


def test_explanation_names_prediction_and_observation():
    text = verification().explain()
    assert "predicted +0.05" in text
    assert "observed 0.1" in text
    assert "minus that of random rows trained for as many steps: predicted -0.2, observed -0.2 [" in text


def test_observed_is_what_provenance_takes():
    observed = observe(verification().observed())
    assert observed["gap"] == pytest.approx(0.1)
    assert observed["seeds"] == 3
    assert len(observed["interval"]) == 2
    assert observed["loss_change"] == pytest.approx(0.1)
    assert observed["loss_interval"] == list(verification().loss_change.interval)
    assert observed["random_loss_change"] == pytest.approx(0.3)

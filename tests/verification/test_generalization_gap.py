"""The module `generalization_gap` of the `evaluate` library, as its users load it."""

import json
import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
from huggingface_hub import RepoCard
from scipy import stats

from hf_prune.verification import GENERALIZATION_GAP, Arm, Retraining, Verification

FULL, LESS = [0.92, 0.90, 0.91, 0.95], [0.90, 0.91, 0.86, 0.93]
SCRIPT = """
import socket


def refuse(*args, **kwargs):
    raise OSError("no network in this test")


socket.socket.connect = refuse
import json

import evaluate
from hf_prune.verification import GENERALIZATION_GAP

gap = evaluate.load(GENERALIZATION_GAP)
print(json.dumps(gap.compute(references=[0.92, 0.90], predictions=[0.90, 0.86])))
"""


def test_it_loads_and_computes_without_a_network_in_a_fresh_home(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["generalization_gap"] == pytest.approx(0.03)


def test_gap_and_interval_are_those_of_a_paired_t_test():
    found = evaluate.load(GENERALIZATION_GAP).compute(references=FULL, predictions=LESS, level=0.9)
    paired = stats.ttest_rel(FULL, LESS)
    low, high = paired.confidence_interval(0.9)
    assert found["generalization_gap"] == pytest.approx(np.mean(FULL) - np.mean(LESS))
    assert found["interval"] == pytest.approx((low, high))
    assert found["standard_deviation"] == pytest.approx(np.std(np.subtract(FULL, LESS), ddof=1))
    assert found["seeds"] == 4


def test_one_seed_has_a_gap_and_no_interval():
    found = evaluate.load(GENERALIZATION_GAP).compute(references=FULL[:1], predictions=LESS[:1])
    assert found["generalization_gap"] == pytest.approx(0.02)
    assert found["interval"] is None


def test_it_says_what_a_verification_says():
    full, less = ([Retraining(i, value, None, 1, 1.0) for i, value in enumerate(values)] for values in (FULL, LESS))
    result = Verification("accuracy", True, "epochs", Arm(10, tuple(full)), Arm(5, tuple(less)))
    found = evaluate.load(GENERALIZATION_GAP).compute(references=FULL, predictions=LESS)
    assert (found["generalization_gap"], found["interval"]) == (result.gap.mean, result.gap.interval)


def test_level_out_of_range_is_refused():
    with pytest.raises(ValueError, match="level=95 has to lie between 0 and 1"):
        evaluate.load(GENERALIZATION_GAP).compute(references=FULL, predictions=LESS, level=95)


def test_its_card_names_it_and_its_example_is_what_it_computes():
    card = RepoCard.load(f"{GENERALIZATION_GAP}/README.md")
    assert "evaluate" in card.data.to_dict()["tags"]
    shown = evaluate.load(GENERALIZATION_GAP).compute(references=[0.92, 0.90, 0.91], predictions=[0.90, 0.89, 0.88])
    rounded = {name: np.round(value, 4).tolist() for name, value in shown.items()}
    rounded["interval"] = tuple(rounded["interval"])
    line = json.dumps(rounded).replace("[", "(").replace("]", ")")
    assert line in card.text

"""Verifying: retrain on all, pruned and random rows, and compare what happens with the prediction."""

from pathlib import Path

from hf_prune.verification.gap import verify
from hf_prune.verification.result import Arm, MeanInterval, Retraining, Verification

GENERALIZATION_GAP = str(Path(__file__).parent / "generalization_gap")
"""Where the module `generalization_gap` of the `evaluate` library is: `evaluate.load(GENERALIZATION_GAP)`."""

__all__ = ["GENERALIZATION_GAP", "Arm", "MeanInterval", "Retraining", "Verification", "verify"]

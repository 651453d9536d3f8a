"""Verifying: retrain on all rows, on the pruned ones and on random ones, and put what happens beside the prediction.

Light to import, so that the package can bind the function `verify` over this room's name without loading torch.
"""

from pathlib import Path

from hf_prune.verify.gap import verify
from hf_prune.verify.result import Arm, Estimate, Run, Verification

GENERALIZATION_GAP = str(Path(__file__).parent / "generalization_gap")
"""Where the module `generalization_gap` of the `evaluate` library is: `evaluate.load(GENERALIZATION_GAP)`."""

__all__ = ["GENERALIZATION_GAP", "Arm", "Estimate", "Run", "Verification", "verify"]

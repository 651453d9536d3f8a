"""Verifying: retrain on all rows, on the pruned ones and on random ones, and put what happens beside the prediction.

Light to import, so that the package can bind the function `verify` over this room's name without loading torch.
"""

from hf_prune.verify.gap import verify
from hf_prune.verify.result import Arm, Estimate, Run, Verification

__all__ = ["Arm", "Estimate", "Run", "Verification", "verify"]

"""Diagnosing: part of a recorded run is made again without some rows, and the effect is compared with the prediction.

Light to import, so that the package can bind the function `diagnose` over this package's name without loading torch.
"""

from hf_prune.diagnose.compare import diagnose
from hf_prune.diagnose.diagnosis import Condition, Diagnosis, Group

__all__ = ["Condition", "Diagnosis", "Group", "diagnose"]

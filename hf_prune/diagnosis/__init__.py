"""Diagnosing: part of a recorded run is repeated without some rows, and the effect is compared with the prediction."""

from hf_prune.diagnosis.compare import diagnose
from hf_prune.diagnosis.diagnosis import Condition, Diagnosis, Group

__all__ = ["Condition", "Diagnosis", "Group", "diagnose"]

"""Choosing the rows that stay: a linear program on the influence columns, its baselines, and the certificate."""

from .certificate import Certificate
from .path import prune_path
from .prune import prune, select
from .pruned import PrunedDataset
from .selection import Selection

__all__ = ["Certificate", "PrunedDataset", "Selection", "prune", "prune_path", "select"]

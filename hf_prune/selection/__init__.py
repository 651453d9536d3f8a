"""Choosing the rows that stay: methods, the solver behind the library's own, and the certificate."""

from hf_prune._core.config import SelectionConfig
from hf_prune.selection import methods as methods  # registers them
from hf_prune.selection.api import prune, select
from hf_prune.selection.certificate import Certificate
from hf_prune.selection.path import prune_path
from hf_prune.selection.pruned import PrunedDataset, PrunedDatasetDict
from hf_prune.selection.selection import Selection

__all__ = [
    "Certificate",
    "PrunedDataset",
    "PrunedDatasetDict",
    "Selection",
    "SelectionConfig",
    "prune",
    "prune_path",
    "select",
]

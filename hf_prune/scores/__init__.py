"""Well-known scores as columns, from the same recorded run and without further training."""

from hf_prune.scores.columns import add_scores

__all__ = ["add_scores"]

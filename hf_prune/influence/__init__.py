"""After training: how the trained model would change without each row."""

from hf_prune.influence.api import add_influence

__all__ = ["add_influence"]

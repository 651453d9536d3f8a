"""Recording a training run; `hf_prune.trajectory` reads what is written here."""

from hf_prune.record.callback import TrajectoryCallback
from hf_prune.record.ids import with_example_ids

__all__ = ["TrajectoryCallback", "with_example_ids"]

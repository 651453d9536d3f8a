"""Room 1: recording a training run, and reading the record."""

from hf_prune.record.callback import TrajectoryCallback
from hf_prune.record.estimate import Estimate, estimate
from hf_prune.record.ids import with_example_ids
from hf_prune.record.manifest import Manifest, Parameter
from hf_prune.record.summary import summarize
from hf_prune.record.trajectory import MicroBatch, Step, Trajectory
from hf_prune.record.visits import Visits, read_visits

__all__ = [
    "Estimate",
    "Manifest",
    "MicroBatch",
    "Parameter",
    "Step",
    "Trajectory",
    "TrajectoryCallback",
    "Visits",
    "estimate",
    "read_visits",
    "summarize",
    "with_example_ids",
]

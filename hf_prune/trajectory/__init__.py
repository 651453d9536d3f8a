"""Reading the record of a training run. Nothing here needs the Trainer that made it."""

from hf_prune.trajectory.machines import gather
from hf_prune.trajectory.manifest import Manifest, Parameter
from hf_prune.trajectory.spikes import Spike, Spikes, find_spikes
from hf_prune.trajectory.summary import summarize
from hf_prune.trajectory.trajectory import MicroBatch, Step, Trajectory
from hf_prune.trajectory.visits import Visits, read_visits

__all__ = [
    "Manifest",
    "MicroBatch",
    "Parameter",
    "Spike",
    "Spikes",
    "Step",
    "Trajectory",
    "Visits",
    "find_spikes",
    "gather",
    "read_visits",
    "summarize",
]

"""Dataset pruning by SGD-influence for the Hugging Face Trainer: record, score, prune, publish."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Their rooms have the functions' names: imported later, the modules would take the functions' places.
from hf_prune.diagnose import diagnose
from hf_prune.verify import verify

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_prune._estimate import estimate
    from hf_prune.errors import RecordingError, TrajectoryError, UnsupportedError
    from hf_prune.influence import add_influence
    from hf_prune.publish import replay
    from hf_prune.record import TrajectoryCallback, with_example_ids
    from hf_prune.scores import add_scores
    from hf_prune.selection import PrunedDataset, Selection, prune, prune_path, select
    from hf_prune.trajectory import Trajectory

# Names are imported on first use: `hf-prune --help` must not wait for torch.
_HOMES = {
    "RecordingError": "errors",
    "TrajectoryError": "errors",
    "UnsupportedError": "errors",
    "TrajectoryCallback": "record",
    "Trajectory": "trajectory",
    "estimate": "_estimate",
    "with_example_ids": "record",
    "add_influence": "influence",
    "add_scores": "scores",
    "prune": "selection",
    "prune_path": "selection",
    "select": "selection",
    "Selection": "selection",
    "PrunedDataset": "selection",
    "replay": "publish.replay",
}

__all__ = [
    "PrunedDataset",
    "RecordingError",
    "Selection",
    "Trajectory",
    "TrajectoryCallback",
    "TrajectoryError",
    "UnsupportedError",
    "add_influence",
    "add_scores",
    "diagnose",
    "estimate",
    "prune",
    "prune_path",
    "replay",
    "select",
    "verify",
    "with_example_ids",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_prune' has no attribute {name!r}")
    return getattr(import_module(f"hf_prune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

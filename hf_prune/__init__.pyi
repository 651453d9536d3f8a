# The public names, and where each is defined: the only list of them. `__init__.py` reads it when it is imported.

from hf_prune._core.config import SelectionConfig as SelectionConfig
from hf_prune._estimate import estimate as estimate
from hf_prune.attribution.api import attribute as attribute
from hf_prune.attribution.result import Attribution as Attribution
from hf_prune.diagnosis.compare import diagnose as diagnose
from hf_prune.diagnosis.diagnosis import Diagnosis as Diagnosis
from hf_prune.errors import RecordingError as RecordingError
from hf_prune.errors import TrajectoryError as TrajectoryError
from hf_prune.errors import UnsupportedError as UnsupportedError
from hf_prune.influence.api import add_influence as add_influence
from hf_prune.logging import get_verbosity as get_verbosity
from hf_prune.logging import set_verbosity as set_verbosity
from hf_prune.publish.commit import PushError as PushError
from hf_prune.publish.limits import ReplayError as ReplayError
from hf_prune.publish.replay import replay as replay
from hf_prune.record.callback import TrajectoryCallback as TrajectoryCallback
from hf_prune.record.ids import with_example_ids as with_example_ids
from hf_prune.scores.columns import add_scores as add_scores
from hf_prune.selection import PrunedDataset as PrunedDataset
from hf_prune.selection import PrunedDatasetDict as PrunedDatasetDict
from hf_prune.selection import prune as prune
from hf_prune.selection import prune_path as prune_path
from hf_prune.selection import select as select
from hf_prune.selection.certificate import Certificate as Certificate
from hf_prune.selection.selection import Selection as Selection
from hf_prune.trajectory.trajectory import Trajectory as Trajectory
from hf_prune.verification.gap import verify as verify
from hf_prune.verification.probe import Probe as Probe
from hf_prune.verification.result import Verification as Verification

__version__: str

"""The functions behind `PrunedDataset.save_to_disk` and `PrunedDataset.push_to_hub`."""

from hf_prune.publish.push import push_to_hub
from hf_prune.publish.save import save

__all__ = ["push_to_hub", "save"]

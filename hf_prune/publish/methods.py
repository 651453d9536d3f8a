"""The functions behind `PrunedDataset.save_to_disk` and `PrunedDataset.push_to_hub`."""

from hf_prune.publish.files import write as write_files
from hf_prune.publish.push import push_to_hub

__all__ = ["push_to_hub", "write_files"]

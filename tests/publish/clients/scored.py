"""A scored dataset goes to the Hub and comes back, pushed by `datasets` alone."""

import json
import sys

from datasets import load_dataset

from hf_prune._core.scoring import scoring_of
from hf_prune.selection import prune
from tests.publish import samples

if __name__ == "__main__":
    scored = samples.scored(run=samples.manifest())
    scored.push_to_hub("alice/scored")
    told = {}
    for split in ("train", "train[:50%]"):
        loaded = load_dataset("alice/scored", split=split)
        told[split] = scoring_of(loaded) == scoring_of(scored) and scoring_of(loaded) is not None
    told["selection"] = (
        prune(load_dataset("alice/scored", split="train"), 0.5).selection == prune(scored, 0.5).selection
    )
    json.dump(told, sys.stdout)

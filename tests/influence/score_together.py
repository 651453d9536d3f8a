"""Run under torchrun: processes that score one run together. Usage: score_together.py DIRECTORY"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_prune import add_influence, attribute
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.sketch import segments
from tests import toys

SCORINGS = {
    "dense": {"engine": "dense", "mode": "expected"},
    "dense visits": {"engine": "dense", "mode": "visits"},
    "segments": {"engine": "projected", "mode": "expected", "seed": 1},
    "projected": {"engine": "projected", "mode": "expected"},
    "projected visits": {"engine": "projected", "mode": "visits", "seed": 2},
    "one direction": {"engine": "projected", "mode": "expected", "directions": 1, "eval_dataset": None},
    "unvisited": {"engine": "projected", "mode": "expected", "directions": 2},
}

COLUMNS = ("influence", "influence_eval_loss")
ENGINES = ("dense", "projected")


def score(directory: Path, model: torch.nn.Module, name: str) -> np.ndarray:
    """The influence columns of the run in `directory`; for `"segments"` the disk is small."""
    segments.KEPT_SHARE = 0.0 if name == "segments" else 0.5
    asked = {"eval_dataset": toys.vectors(10, seed=9), "directions": 6, **SCORINGS[name]}
    record = directory / ("few" if name == "unvisited" else "t")
    scored = add_influence(toys.vectors(40), record, model=model, curvature="gauss-newton", **asked)
    return np.column_stack([np.array(scored[column]) for column in scored.column_names if column in COLUMNS])


def ask(directory: Path, model: torch.nn.Module, engine: str) -> np.ndarray:
    """What each row of the run in `directory` does to single queries."""
    rows, queries = toys.vectors(40), toys.vectors(5, seed=9)
    return attribute(directory / "t", queries, dataset=rows, model=model, engine=engine).influence


if __name__ == "__main__":
    PartialState(cpu=True)
    here = Path(sys.argv[1])
    trained = toys.Mlp()
    trained.load_state_dict(torch.load(here / "model.pt", weights_only=True))
    read, original = Counter(), SharedCache.read

    def counted(cache: SharedCache, name: str) -> dict[str, torch.Tensor]:
        read[scoring, name] += 1
        return original(cache, name)

    SharedCache.read = counted  # type: ignore[method-assign]
    for scoring in SCORINGS:
        np.save(here / f"{scoring}-{os.environ['RANK']}.npy", score(here, trained, scoring))
    for engine in ENGINES:
        np.save(here / f"attribution {engine}-{os.environ['RANK']}.npy", ask(here, trained, engine))
    own = {name: times for (scoring, name), times in read.items() if scoring == "projected" and name[:5] == "steps"}
    (here / f"read-{os.environ['RANK']}.json").write_text(json.dumps(own))
    torch.distributed.destroy_process_group()

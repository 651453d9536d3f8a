"""Run under torchrun: processes that score one run together. Usage: score_together.py DIRECTORY"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_prune import add_influence, attribute
from hf_prune.influence.sketch import segments
from tests import toys

SCORINGS = {
    "dense": {"engine": "dense", "mode": "expected"},
    "dense visits": {"engine": "dense", "mode": "visits"},
    "segments": {"engine": "projected", "mode": "expected", "seed": 1},
    "projected": {"engine": "projected", "mode": "expected"},
}

ENGINES = ("dense", "projected")


def score(directory: Path, model: torch.nn.Module, name: str) -> np.ndarray:
    """The influence columns of the run in `directory`; for `"segments"` the disk is small."""
    segments.KEPT_SHARE = 0.0 if name == "segments" else 0.5
    scored = add_influence(
        toys.vectors(40),
        directory / "t",
        model=model,
        eval_dataset=toys.vectors(10, seed=9),
        directions=6,
        curvature="gauss-newton",
        **SCORINGS[name],
    )
    return np.column_stack([np.array(scored["influence"]), scored["influence_eval_loss"]])


def ask(directory: Path, model: torch.nn.Module, engine: str) -> np.ndarray:
    """What each row of the run in `directory` does to single queries."""
    rows, queries = toys.vectors(40), toys.vectors(5, seed=9)
    return attribute(directory / "t", queries, dataset=rows, model=model, engine=engine).influence


if __name__ == "__main__":
    PartialState(cpu=True)
    here = Path(sys.argv[1])
    trained = toys.Mlp()
    trained.load_state_dict(torch.load(here / "model.pt", weights_only=True))
    for scoring in SCORINGS:
        np.save(here / f"{scoring}-{os.environ['RANK']}.npy", score(here, trained, scoring))
    for engine in ENGINES:
        np.save(here / f"attribution {engine}-{os.environ['RANK']}.npy", ask(here, trained, engine))
    torch.distributed.destroy_process_group()

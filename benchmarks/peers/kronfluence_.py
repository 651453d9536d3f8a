"""EK-FAC influence functions of kronfluence (arXiv 2308.03296): its defaults, and its heuristic damping."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

from peers.recorded import Run
from peers.tasks import margins

BATCH = 128


class Classification(Task):
    """The training loss, and the margin as what is measured."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        x, y = batch
        logits = model(x)
        if sample:
            with torch.no_grad():
                y = torch.multinomial(logits.softmax(-1), 1).flatten()
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        x, y = batch
        return margins(model(x), y).sum()


def ekfac(runs: list[Run], first: int = 0) -> np.ndarray:
    """Influence functions with the Hessian factored layer by layer; `nn.Linear` and `nn.Conv2d` are looked at."""
    return np.mean([_scores(run) for run in runs], axis=0)


def _scores(run: Run) -> np.ndarray:
    torch.manual_seed(0)
    task = Classification()
    with tempfile.TemporaryDirectory() as directory:
        analyzer = Analyzer(
            "run", prepare_model(run.logits_model(), task), task, cpu=True, disable_tqdm=True, output_dir=directory
        )
        train, test = TensorDataset(*run.task.train_tensors), TensorDataset(*run.task.test_tensors)
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=BATCH, factor_args=FactorArguments(strategy="ekfac")
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            test,
            train,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=None),
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found.T.double().numpy() / len(run.task.train)

"""
AdamW-influence (arXiv 2605.18814) and DVEmb (arXiv 2412.09538) of dattri-llm, neither projected nor masked.

The library's own sweeps go back over the recorded steps. It would train by itself to see them; here it is given each
step's gradients at the recorded parameters, and AdamW's moments before and after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from dattri_llm.attribution import AdamWInfluenceAttributor, AttributionArguments, DVEmbAttributor
from dattri_llm.gradient.gradient import Gradient
from torch import nn
from torch.func import functional_call, grad, vmap

from peers.recorded import Run
from peers.rerun import Network
from peers.tasks import margins

LAYER = "parameters"
# Of larger models only so many of the last parameters are looked at, as TRAK does here.
MOST = 1 << 21
# What the Trainer gives to AdamW if nothing else is said.
BETAS, EPS = (0.9, 0.999), 1e-8
# A step made again that differs from the recorded one by more, in units of the step, is another optimizer's.
TOLERANCE = 0.1


class FrozenSecondMoment(AdamWInfluenceAttributor):
    """The same sweep in which the second moment does not react, to see what its derivative is good for."""

    @staticmethod
    def _layer_terms(dyn: dict, name: str, device: torch.device | str) -> tuple[Any, ...]:
        gradient, denominator, slope, common, decay = AdamWInfluenceAttributor._layer_terms(dyn, name, device)
        return gradient, denominator, torch.zeros_like(slope), common, decay


def adamw_influence(runs: list[Run], first: int = 0) -> np.ndarray:
    """Goes back over the steps from `first` on with both moments differentiated."""
    return np.mean([_adamw(run, first, AdamWInfluenceAttributor) for run in runs], axis=0)


def adamw_influence_frozen(runs: list[Run], first: int = 0) -> np.ndarray:
    """The same with the second moment held."""
    return np.mean([_adamw(run, first, FrozenSecondMoment) for run in runs], axis=0)


def dvemb(runs: list[Run], first: int = 0) -> np.ndarray:
    """Goes back over the steps from `first` on as if each were SGD's."""
    return np.mean([_dvemb(run, first) for run in runs], axis=0)


class Steps:
    """The gradients of a run's last parameters, `(B, p)`; what the sweeps read step by step."""

    def __init__(self, run: Run):
        self.run, self.network = run, Network(run.logits_model())
        ends = np.cumsum(self.network.sizes[::-1])
        count = int((ends <= MOST).sum())
        self.size, self.last = int(ends[count - 1]), self.network.names[-count:]

    def for_steps(self, steps: Iterable[int]) -> Iterator[tuple[int, Gradient, list[str]]]:
        """Each row's share of its batch's gradient, as the library has it: divided by the batch, not clipped."""
        x, y = self.run.task.train_tensors
        for t in steps:
            ids = self.run.trajectory.step(t).ids
            rows = torch.from_numpy(ids)
            found = self.of_rows(self.run.thetas[t], losses, x[rows], y[rows]) / len(rows)
            yield t, Gradient({LAYER: "materialized"}, {LAYER: found}, {LAYER: "nn.Linear"}), [str(i) for i in ids]

    def queries(self) -> torch.Tensor:
        """The gradient of each test row's margin, `(m, p)`."""
        return self.of_rows(self.run.last, margins, *self.run.task.test_tensors)

    def of_rows(self, theta: torch.Tensor, measure: Callable, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        values = self._values(theta)

        def one(last: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return measure(self._logits({**values, **last}, x[None]), y[None])[0]

        found = vmap(grad(one), (None, 0, 0))({name: values[name] for name in self.last}, x, y)
        return torch.cat([found[name].flatten(1) for name in self.last], 1)

    def of_batch(self, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The gradient of the mean loss in all parameters, `(p,)`."""
        found = grad(lambda values: losses(self._logits(values, x), y).mean())(self._values(theta))
        return torch.cat([found[name].flatten() for name in self.network.names])

    def moments(self, first: int) -> dict[int, dict[str, Any]]:
        """AdamW's state around each step from `first` on, made again from the gradients at the recorded parameters."""
        run, (beta1, beta2) = self.run, BETAS
        x, y = run.task.train_tensors
        limit = run.task.settings.get("max_grad_norm", 1.0)
        held = run.moments if first == run.first else {}
        m, v = (held.get(name, torch.zeros_like(run.last)) for name in ("exp_avg", "exp_avg_sq"))
        found: dict[int, dict[str, Any]] = {}
        after = self._state(m, v)
        for t in range(first, len(run.trajectory)):
            step, theta = run.trajectory.step(t), run.thetas[t]
            rows, rate = torch.from_numpy(step.ids), step.learning_rates[0]
            count = run.trajectory.updates_before(t) + 1
            g = self.of_batch(theta, x[rows], y[rows])
            g = g * (limit / (g.norm() + 1e-6)).clamp(max=1)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.square()
            made = -rate * m / (1 - beta1**count) / ((v / (1 - beta2**count)).sqrt() + EPS)
            recorded = run.thetas[t + 1] - theta
            if (made - recorded).norm() > TOLERANCE * recorded.norm():
                raise RuntimeError(f"Step {t} made again differs from the recorded one: it was not this optimizer's.")
            before, after = after, self._state(m, v)
            found[t] = {"pre": before, "post": after, "step": count, "lr": rate}
            found[t] |= {"betas": BETAS, "eps": EPS, "weight_decay": 0.0}
        return found

    def by_row(self, scores: torch.Tensor, ids: list[str]) -> np.ndarray:
        """Scores of visits as sums over each row's, `(n, m)`."""
        found = np.zeros((len(self.run.task.train), scores.shape[1]))
        np.add.at(found, np.array(ids, dtype=int), scores.double().numpy())
        return found

    def _values(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = theta.split(self.network.sizes)
        shaped = (part.view(shape) for part, shape in zip(parts, self.network.shapes, strict=True))
        return dict(zip(self.network.names, shaped, strict=True))

    def _logits(self, values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(self.network.model, (values, self.network.buffers), (x,))

    def _state(self, m: torch.Tensor, v: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {LAYER: (m[-self.size :].clone(), v[-self.size :].clone())}


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _adamw(run: Run, first: int, kind: type[AdamWInfluenceAttributor]) -> np.ndarray:
    steps, order = Steps(run), range(first, len(run.trajectory))
    with tempfile.TemporaryDirectory() as directory:
        scores, ids, _ = kind(AttributionArguments(directory, use_cpu=True)).sweep_queries(
            steps, steps.moments(first), steps.queries(), layers=[LAYER], prop_steps=list(order), output_steps={*order}
        )
    # The library says how a loss falls where a row is left out.
    return -steps.by_row(scores, ids)


def _dvemb(run: Run, first: int) -> np.ndarray:
    steps, order = Steps(run), range(first, len(run.trajectory))
    queries = steps.queries()
    with tempfile.TemporaryDirectory() as directory:
        scores, ids, _ = DVEmbAttributor(AttributionArguments(directory, use_cpu=True))._propagate_test_and_score(
            {LAYER: queries},
            len(queries),
            steps,
            list(order),
            {*order},
            learning_rate={t: run.trajectory.step(t).learning_rates[0] for t in order},
            loss_reduction="mean",
            hessian_mode="full",
            verbose=False,
        )
    return steps.by_row(scores, ids)

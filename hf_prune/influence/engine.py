"""The two engines behind one protocol, and which of them scores a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol

import numpy as np
from msgspec import Meta

from hf_prune.errors import UnsupportedError
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.calibration import LEAST, MOST, measure_gn_scale
from hf_prune.influence.cost import SMALL_SWEEP, VOCABULARY, scoring_bytes
from hf_prune.influence.dense.engine import DenseEngine
from hf_prune.influence.loss_queries import LossQueries
from hf_prune.influence.queries import Queries
from hf_prune.influence.row_slopes import RowSlopes
from hf_prune.influence.sketch.engine import SketchEngine
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.optimizers import adjoint_class, adjoint_for
from hf_prune.trajectory.manifest import Manifest

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """
    Predicts what removing rows does to queries.

    An engine has its own form of the queries, which `encode` makes.
    """

    def prepare(self) -> None:
        """Does once what serves all queries."""

    def encode(self, queries: Queries | LossQueries) -> Any:
        """The queries as gradients at the last parameters, that of the held-out loss last."""

    def visits(self, queries: Any) -> np.ndarray:
        """The influence `(n, k)` of each training row through its own recorded visits."""

    def expected(self, queries: Any, rows: Rows) -> np.ndarray:
        """The influence `(m, k)` of each of `rows` in expectation over the order of batches."""

    def candidates(self, queries: Any) -> Callable[[Rows], np.ndarray]:
        """The same of rows that were not trained on, part by part: what parts share is computed once."""

    def slopes(self, queries: Any, mode: str, rows: Rows, wanted: np.ndarray) -> Iterator[RowSlopes]:
        """The parts that the effects of the `wanted` ones of `rows` are sums of."""


def make_engine(
    name: str,
    replay: Replay,
    cache: SharedCache,
    *,
    key: str,
    curvature: str,
    batch_size: int,
    max_memory: int | None = None,
) -> Engine:
    """
    The engine of this name, with its Gauss-Newton scale measured: once, for all processes and later calls.

    Args:
        name (`str`): `"dense"` or `"projected"`.
        key (`str`): a digest of all that the scores depend on.
    """
    scale = 1.0
    if curvature == "gauss-newton":
        scale = cache.value(
            "gn_scale.json", lambda: measure_gn_scale(replay), Annotated[float, Meta(ge=LEAST, le=MOST)]
        )
    if name == "projected":
        return SketchEngine(replay, cache, key=key, curvature=curvature, gn_scale=scale, batch_size=batch_size)
    return DenseEngine(
        replay, cache, key=key, curvature=curvature, gn_scale=scale, batch_size=batch_size, max_memory=max_memory
    )


def choose_engine(
    engine: str,
    curvature: str,
    manifest: Manifest,
    directions: int,
    *,
    of_logits: bool = True,
    vocabulary: int = 0,
) -> tuple[str, str]:
    """
    The engine and the curvature that `"auto"` stands for.

    Dense where its vectors are small and logits few, or the exact curvature is asked for by name; projected otherwise.
    Exact curvature for SGD, Gauss-Newton for Adam, whose steps are short. Of a pair's scores and of a user's
    `loss(model, batch)` Gauss-Newton holds little or nothing: exact in the dense engine, and in the projected one the
    gradients' outer product for the latter.

    Args:
        of_logits (`bool`, *optional*, defaults to `True`): Whether the loss is a function of logits or scores.
        vocabulary (`int`, *optional*, defaults to 0): Classes of the model's token head.

    Raises:
        `ValueError`: when exact curvature is asked of the projected engine, or Gauss-Newton of a loss without logits.
        `UnsupportedError`: when the projected engine is asked for an optimizer that it has no adjoint for.
    """
    if engine == "projected" and curvature == "exact":
        raise ValueError(
            "The projected engine has no exact curvature; use curvature='gauss-newton', or engine='dense'."
        )
    if curvature == "gauss-newton" and not of_logits:
        raise ValueError(
            "A loss(model, batch) has no logits for curvature='gauss-newton'; use 'exact' or 'fisher', or leave it "
            "out."
        )
    scaled = adjoint_class(manifest.optimizer["name"]).has_second_moment
    small = scoring_bytes(manifest.n_parameters, directions) <= SMALL_SWEEP and vocabulary <= VOCABULARY
    coupled = _decays_before_scaling(manifest)
    if engine == "auto":
        engine = "dense" if small or curvature == "exact" or coupled else "projected"
    if engine == "projected" and coupled:
        raise UnsupportedError("The projected engine has no adjoint for Adam with coupled weight decay; use AdamW.")
    if curvature == "auto":
        held = of_logits and manifest.pairs is None and scaled
        curvature = "gauss-newton" if of_logits else "fisher"
        if engine == "dense" and not held:
            curvature = "exact"
        if not scaled and engine == "projected":
            logger.warning(
                f"SGD at this size is scored with curvature={curvature!r}, which is less faithful than the exact one "
                "where the learning rate is large; curvature='exact' takes many times as long."
            )
    return engine, curvature


def _decays_before_scaling(manifest: Manifest) -> bool:
    adjoint = adjoint_for(manifest.optimizer, [1] * len(manifest.parameters), [p.group for p in manifest.parameters])
    return adjoint.decays_before_scaling

"""Which engine scores: the dense sweep, exact and for small models, or the sketched one, for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hf_prune._core.io import write_atomically
from hf_prune._core.processes import Processes
from hf_prune.errors import UnsupportedError
from hf_prune.influence.cost import SMALL_SWEEP, direction_bytes, scoring_bytes
from hf_prune.influence.optimizers import update_for
from hf_prune.influence.optimizers.adam import Adam
from hf_prune.trajectory.manifest import Manifest

logger = logging.getLogger(__name__)


def choose(engine: str, curvature: str, manifest: Manifest, directions: int) -> tuple[str, str]:
    """
    The engine and the curvature that `"auto"` stands for.

    Dense where its vectors are small, or the exact curvature is asked for by name; projected otherwise. Exact
    curvature for SGD, Gauss-Newton for Adam, whose steps are short.

    Raises:
        `ValueError`: when exact curvature is asked of the projected engine.
        `UnsupportedError`: when the projected engine is asked for an optimizer that it has no adjoint for.
    """
    if engine == "projected" and curvature == "exact":
        raise ValueError(
            "The projected engine has no exact curvature; use curvature='gauss-newton', or engine='dense'."
        )
    sgd = manifest.optimizer["name"] == "SGD"
    small = scoring_bytes(manifest.n_parameters, directions) <= SMALL_SWEEP
    coupled = not sgd and _coupled(manifest)
    if engine == "auto":
        engine = "dense" if small or curvature == "exact" or coupled else "projected"
    if engine == "projected" and coupled:
        raise UnsupportedError("The projected engine has no adjoint for Adam with coupled weight decay; use AdamW.")
    if curvature == "auto":
        curvature = "exact" if sgd and engine == "dense" else "gauss-newton"
        if sgd and engine == "projected":
            logger.warning(
                "SGD at this size is scored with Gauss-Newton curvature, which is less faithful than the exact one "
                "where the learning rate is large; curvature='exact' takes many times as long."
            )
    return engine, curvature


def _coupled(manifest: Manifest) -> bool:
    update = update_for(manifest.optimizer, [1] * len(manifest.parameters), [p.group for p in manifest.parameters])
    return isinstance(update, Adam) and not update.decoupled and bool(update.weight_decay.any())


def directions_at_once(size: int, directions: int, room: int, segments: int = 0) -> int:
    """
    How many of `directions` over `size` parameters the dense sweep can carry at once in `room` bytes.

    Raises:
        `ValueError`: when there is no room for one.
    """
    questions, one = (directions + 1) * size * 4, direction_bytes(size, segments)
    at_once = (room - questions) // one
    if at_once < 1:
        raise ValueError(
            f"Scoring {directions} directions of {size:,} parameters by the dense engine takes at least "
            f"{(questions + one) / 1e9:.1f} GB of memory and there are {room / 1e9:.1f} GB; use "
            "engine='projected' with curvature='gauss-newton', fewer directions, or record fewer parameters."
        )
    return int(min(at_once, directions + 1))


def in_parts(
    directory: Path, total: int, at_once: int, ranks: Processes, work: Callable[[slice], np.ndarray]
) -> np.ndarray:
    """
    `work(directions) -> (n, k')` over all directions, part by part: `(n, total)`.

    Processes share the parts; each part is a file, so that what a killed run finished is not done again.
    """
    at_once = min(ranks.broadcast(at_once), -(-total // ranks.world))
    parts = [slice(start, min(start + at_once, total)) for start in range(0, total, at_once)]
    directory.mkdir(parents=True, exist_ok=True)
    for part in parts[ranks.rank :: ranks.world]:
        if not _file(directory, part).exists():
            _save(_file(directory, part), work(part))
    ranks.barrier()
    return np.concatenate([load_file(_file(directory, part))["effects"] for part in parts], axis=1)


def _file(directory: Path, part: slice) -> Path:
    return directory / f"directions-{part.start:05d}-{part.stop:05d}.safetensors"


def _save(path: Path, effects: np.ndarray) -> None:
    tensors = {"effects": np.ascontiguousarray(effects, dtype=np.float64)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))

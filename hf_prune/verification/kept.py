"""Retrainings whose results are kept in a directory, so that a killed probe or verification goes on where it was."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_prune._core.digest import content_digest
from hf_prune._core.io import remove_temporaries, write_bytes
from hf_prune._core.reading import Reader
from hf_prune.verification.result import Retraining
from hf_prune.verification.runs import RetrainingProtocol

_READER = Reader(ValueError, "delete it, and the retraining is made again")


@dataclass(frozen=True)
class _File:
    """What is kept of a retraining: what it is worth on each set of held-out rows."""

    runs: dict[str, Retraining]


class KeptRetrainings:
    """
    Retrains by a protocol what was not retrained before.

    A retraining is known again by its rows, the held-out rows, its seed and steps, the metric's name, and the files
    that factory and metric were written in.

    Args:
        protocol (`RetrainingProtocol`): How.
        directory (`str` or `Path`, *optional*): Where results are kept; without it nothing is.
    """

    def __init__(self, protocol: RetrainingProtocol, directory: str | Path | None):
        self.protocol, self.directory = protocol, None if directory is None else Path(directory)
        self.settings: list[object] = []
        if self.directory is not None:
            remove_temporaries(self.directory)
            held_out = [[name, content_digest(rows)] for name, rows in protocol.eval_datasets.items()]
            metric = source_of(protocol.metric) if callable(protocol.metric) else ""
            self.settings = [held_out, protocol.budget, protocol.measure.name, metric, source_of(protocol.factory)]

    def retrain(self, dataset: Dataset, seed: int, *, steps: int | None = None) -> dict[str, Retraining]:
        """As [`RetrainingProtocol.retrain`]; a result that is known already is read."""
        if self.directory is None:
            return self.protocol.retrain(dataset, seed, steps=steps)
        known = json.dumps([content_digest(dataset), seed, steps, *self.settings])
        file = self.directory / f"{sha256(known.encode()).hexdigest()}.json"
        if file.exists():
            return self._read(file)
        runs = self.protocol.retrain(dataset, seed, steps=steps)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json.dumps(asdict(_File(runs))).encode())
        return runs

    def _read(self, file: Path) -> dict[str, Retraining]:
        content = _READER.content(file) or b""
        runs = _READER.typed(_READER.value(content, file), _File, file).runs
        if set(runs) != set(self.protocol.eval_datasets):
            raise ValueError(f"{file} was measured on other parts of the held-out rows: {_READER.mend}.")
        return {name: runs[name] for name in self.protocol.eval_datasets}


def source_of(function: Callable[..., Any]) -> str:
    """
    The text that the function stands in, that of its whole file where it has one; else nothing. Of a `partial` also
    what it was given.
    """
    if isinstance(function, partial):
        return f"{source_of(function.func)} {function.args!r} {sorted(function.keywords.items())!r}"
    for place in (inspect.getmodule(function), function, type(function)):
        with suppress(OSError, TypeError):  # what was typed into an interpreter or a notebook
            return inspect.getsource(place)  # type: ignore[arg-type]
    return ""

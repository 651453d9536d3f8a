"""What [`attribute`] found: the influence of every row on every query, and the rows at the top and at the bottom."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from datasets import Dataset, Features, Value
from msgspec import Meta
from safetensors.numpy import save_file

from hf_prune._core.config import AttributionConfig
from hf_prune._core.io import write_atomically
from hf_prune._core.notebook import attribution_html
from hf_prune._core.reading import Id, Reader, Real, check_fields
from hf_prune.trajectory.tensor_files import read_tensors

SCHEMA_VERSION = 2
_HEAD = "hf_prune.attribution"
_READER = Reader(ValueError, "attribute again")
Number = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,14})$")]
"""The position of a row, as a name in JSON."""


@dataclass(frozen=True)
class Query:
    """
    One query.

    Args:
        completion (`str`): What the model said, or the row that was asked about.
        prompt (`str`, *optional*): What it was given.
        loss (`float`): Its loss at the end of the run.
        tokens (`tuple[str, ...]`): Its labelled tokens, with `tokens="query"`.
    """

    completion: str
    prompt: str | None
    loss: Real
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowText:
    """
    What a training row is, in words.

    Args:
        id (`int`): The id that it was recorded with.
        text (`str`, *optional*): Its text.
        label (`str`, *optional*): Its class.
        tokens (`tuple[str, ...]`): Its labelled tokens, with `tokens="row"`.
    """

    id: Id
    text: str | None
    label: str | None = None
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttributedRow:
    """
    A row with its influence on one query.

    Args:
        row (`int`): Its position in the dataset.
        influence (`float`): The predicted change of the query's loss if the row is removed; positive: the row helped.
        content (`RowText`): What it is.
        parts (`np.ndarray`, *optional*): Of each of `content.tokens`; their sum is the influence.
    """

    row: int
    influence: float
    content: RowText
    parts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Attribution:
    """
    The influence of training rows on queries. [`attribute`] makes it.

    Args:
        config (`AttributionConfig`): How it was made.
        queries (`tuple[Query, ...]`): What was asked, Q queries.
        influence (`np.ndarray`): The predicted change of each query's loss if a row is removed, float32 of shape
            `(Q, n)`; positive: removing the row raises the loss, so the row helped the model to say it.
        rows (`Mapping[int, RowText]`): Those rows in words that are among the k first or last of a query.
        trajectory_digest (`str`): Of the run.
        token_influence (`tuple[np.ndarray, ...]`): With `tokens="query"`, for each query the influence on the loss of
            each of its tokens, `(tokens, n)`; the mean over tokens is the query's.
        row_parts (`tuple[Mapping[int, np.ndarray], ...]`): With `tokens="row"`, for each query the parts of its rows.
        doubts (`tuple[str, ...]`): What was noticed that makes the influence less faithful, a sentence each.

    Example:

    ```py
    >>> found = attribute("run/trajectory", ["Paris is in France."], dataset=train, model=model)
    >>> found.top(0)[0].content.text
    >>> found.to_dataset()
    ```
    """

    config: AttributionConfig
    queries: tuple[Query, ...]
    influence: np.ndarray
    rows: Mapping[int, RowText]
    trajectory_digest: str
    token_influence: tuple[np.ndarray, ...] = ()
    row_parts: tuple[Mapping[int, np.ndarray], ...] = field(default=())
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.queries), self.influence.shape[-1])
        if self.influence.shape != shape or any(len(own) != shape[1] for t in self.token_influence for own in t):
            raise ValueError(f"influence has shape {self.influence.shape} for {shape[0]} queries: attribute again.")
        if self.token_influence and len(self.token_influence) != len(self.queries):
            raise ValueError("There are token_influence for some queries only: attribute again.")

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.queries)

    def top(self, query: int = 0, k: int | None = None) -> list[AttributedRow]:
        """
        The rows that helped the model most to say it: without them its loss would rise most.

        Args:
            query (`int`, *optional*, defaults to 0): Number of the query.
            k (`int`, *optional*): How many; by default, and at most, those that were asked for.
        """
        return self._listed(query, first_rows(self.influence[query], self._count(k)))

    def bottom(self, query: int = 0, k: int | None = None) -> list[AttributedRow]:
        """The rows that spoke against it, likewise: without them the query's loss would fall most."""
        return self._listed(query, last_rows(self.influence[query], self._count(k)))

    def to_dataset(self) -> Dataset:
        """The rows at the top and at the bottom of each query, one line each, as a `Dataset`."""
        lines = [
            {
                "query": number,
                "prompt": query.prompt,
                "completion": query.completion,
                "side": side,
                "rank": rank,
                "row": one.row,
                "id": one.content.id,
                "influence": one.influence,
                "text": one.content.text,
                "label": one.content.label,
            }
            for number, query in enumerate(self.queries)
            for side, found in (("top", self.top(number)), ("bottom", self.bottom(number)))
            for rank, one in enumerate(found, 1)
        ]
        texts = dict.fromkeys(("prompt", "completion", "side", "text", "label"), Value("string"))
        numbers = dict.fromkeys(("query", "rank", "row", "id"), Value("int64")) | {"influence": Value("float32")}
        return Dataset.from_list(lines, features=Features({name: (texts | numbers)[name] for name in lines[0]}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Writes all of it to one safetensors file, which is there whole or not at all.

        Args:
            path (`str` or `os.PathLike`): The file; its directory is made if it does not exist.
        """
        file = Path(path)
        if file.is_dir():
            raise ValueError(f"{file} is a directory: pass a file, such as {file}/attribution.safetensors.")
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"influence": self.influence}
        arrays |= {f"tokens.{number}": values for number, values in enumerate(self.token_influence)}
        for number, parts in enumerate(self.row_parts):
            arrays |= {f"parts.{number}.{row}": values for row, values in parts.items()}
        head = {
            "schema_version": SCHEMA_VERSION,
            "config": self.config.to_dict(),
            "trajectory_digest": self.trajectory_digest,
            "queries": [asdict(query) for query in self.queries],
            "rows": {str(row): asdict(content) for row, content in self.rows.items()},
            "doubts": self.doubts,
        }
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        write_atomically(file, lambda temporary: save_file(arrays, temporary, {_HEAD: json.dumps(head)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attribution:
        """
        Reads what `save` wrote, and checks it.

        Args:
            path (`str` or `os.PathLike`): The file.

        Raises:
            `ValueError`: if it is not such a file, or one of a newer version.
        """
        file = Path(path)
        tensors, metadata = read_tensors(_READER, file)
        if _HEAD not in metadata:
            raise ValueError(f"{file} is not what Attribution.save wrote: {_READER.mend}.")
        values = _READER.mapping(metadata[_HEAD].encode(), file)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{file} was written by another version of hf-prune: upgrade it, or {_READER.mend}.")
        head: _Head = _READER.typed(values, _Head, file)
        for kind, dicts in ((Query, values["queries"]), (RowText, values["rows"].values())):
            for one in dicts:
                check_fields(kind, one)
        try:
            return _made(head, {name: value.numpy() for name, value in tensors.items()})
        except (KeyError, TypeError) as error:  # bfloat16 is no type of numpy
            raise ValueError(f"{file} does not hold all that it names ({error}): {_READER.mend}.") from error

    def _repr_html_(self) -> str:
        return attribution_html(self)

    def _count(self, k: int | None) -> int:
        if k is not None and not 1 <= k <= self.config.k:
            raise ValueError(
                f"k={k} is not within 1..{self.config.k}, the rows that were asked for: call attribute with a larger "
                "k, or sort `influence` yourself."
            )
        return self.config.k if k is None else k

    def _listed(self, query: int, numbers: np.ndarray) -> list[AttributedRow]:
        parts = self.row_parts[query] if self.row_parts else {}
        found = self.influence[query]
        return [
            AttributedRow(int(row), float(found[row]), self.rows[int(row)], parts.get(int(row))) for row in numbers
        ]


@dataclass(frozen=True)
class _Head:
    """What a saved attribution holds beside its arrays."""

    schema_version: int
    config: dict[str, Any]
    trajectory_digest: str
    queries: list[Query]
    rows: dict[Number, RowText]
    doubts: tuple[str, ...]


def _made(head: _Head, arrays: Mapping[str, np.ndarray]) -> Attribution:
    """The attribution, whose arrays must be those that its head names."""
    config, influence = AttributionConfig.from_dict(head.config), arrays["influence"]
    if influence.ndim != 2 or len(influence) != len(head.queries) or not influence.size:
        raise ValueError(f"influence has shape {influence.shape} for {len(head.queries)} queries: attribute again.")
    n = influence.shape[1]
    rows = {int(row): content for row, content in head.rows.items()}
    shown = [np.unique(np.concatenate([first_rows(own, config.k), last_rows(own, config.k)])) for own in influence]
    every = {row for own in shown for row in own.tolist()}
    wanted: dict[str, tuple[int, ...]] = {"influence": influence.shape}
    if config.tokens == "query":
        wanted |= {f"tokens.{number}": (len(query.tokens), n) for number, query in enumerate(head.queries)}
    if config.tokens == "row":
        wanted |= {f"parts.{q}.{row}": (len(rows[row].tokens),) for q, own in enumerate(shown) for row in own.tolist()}
    if not every <= set(rows) or set(arrays) != set(wanted):
        raise ValueError("The rows and arrays of the attribution are not those of its queries: attribute again.")
    for name, shape in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"The array {name} of the attribution does not hold its numbers: attribute again.")
    parts: list[Mapping[int, np.ndarray]] = []
    if config.tokens == "row":
        parts += [{row: arrays[f"parts.{q}.{row}"] for row in own.tolist()} for q, own in enumerate(shown)]
    return Attribution(
        config=config,
        queries=tuple(head.queries),
        influence=influence,
        rows=rows,
        trajectory_digest=head.trajectory_digest,
        token_influence=tuple(arrays[name] for name in wanted if name.startswith("tokens.")),
        row_parts=tuple(parts),
        doubts=head.doubts,
    )


def first_rows(influence: np.ndarray, k: int) -> np.ndarray:
    """The k rows of the largest influence `(n,)`, largest first; of equal ones the earlier first."""
    return np.argsort(-influence, kind="stable")[:k]


def last_rows(influence: np.ndarray, k: int) -> np.ndarray:
    """The k rows of the smallest influence, smallest first."""
    return np.argsort(influence, kind="stable")[:k]

"""Rows in words: their own texts, or their tokens decoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from hf_prune._core.texts import label_of, text_columns, text_of
from hf_prune.attribution.result import RowText
from hf_prune.model.rows import LABELS


class RowWords:
    """
    Says what rows of a dataset are.

    Args:
        dataset (`Dataset`): The rows.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Decodes rows that have no text of their own.
        id_column (`str`, *optional*): The column of recorded ids; by default an id is a position.
    """

    def __init__(self, dataset: Dataset, processing_class: Any = None, id_column: str | None = None):
        self.tokenizer = processing_class
        names = text_columns(dataset)
        label = next((name for name in LABELS if _is_label(dataset.features.get(name))), None)
        self.texts = [name for name in names if name != label]
        self.label = label
        self.id_column = id_column if id_column in dataset.column_names else None
        tokens = ["input_ids"] if not self.texts and processing_class and "input_ids" in dataset.column_names else []
        known = [*self.texts, *tokens, *([label] if label else []), *([self.id_column] if self.id_column else [])]
        self.dataset, self.rows = dataset, dataset.with_format(None).select_columns(list(dict.fromkeys(known)))

    def __call__(self, numbers: Iterable[int]) -> dict[int, RowText]:
        """The rows with these numbers."""
        places = [int(number) for number in numbers]
        found = self.rows.select(places) if self.rows.column_names else [{} for _ in places]
        return {place: self._words(place, row) for place, row in zip(places, found, strict=True)}

    def decoded(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Tokens one by one; by their numbers where there is no tokenizer."""
        return tuple(str(i) if self.tokenizer is None else self.tokenizer.decode([i]) for i in ids)

    def _words(self, place: int, row: dict[str, Any]) -> RowText:
        text = text_of(row, self.texts)
        if text is None and "input_ids" in row:
            text = self.tokenizer.decode(np.asarray(row["input_ids"]).ravel().tolist(), skip_special_tokens=True)
        label = label_of(self.dataset, self.label, row.get(self.label or ""))
        return RowText(place if self.id_column is None else int(row[self.id_column]), text, label)


def _is_label(feature: Any) -> bool:
    return isinstance(feature, ClassLabel | Value)

"""What is asked, as a user has it: texts, prompts with completions, chats, or rows; made into rows of the model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_prune._core.texts import conversation
from hf_prune.model.batch import IGNORED

_FORMS = (
    "a text, {'prompt': ..., 'completion': ...}, a list of {'role', 'content'} that ends with the assistant's, or "
    "{'messages': that list}"
)
_FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


@dataclass(frozen=True)
class Asked:
    """
    One query in words.

    Attributes:
        completion (`str`): what the model said.
        prompt (`str`, *optional*): what it was given.
    """

    completion: str
    prompt: str | None = None


def tokenized(queries: Iterable[Any], processing_class: Any) -> tuple[Dataset, list[Asked]]:
    """
    Tokenises queries given as text or chat; only tokens of what the model said have labels.

    Args:
        queries (`Iterable`): each in one of the forms that [`attribute`] names.
        processing_class (`PreTrainedTokenizerBase`): the model's tokenizer.
    """
    if processing_class is None:
        raise ValueError("Queries as text take the model's tokenizer: pass processing_class=tokenizer.")
    rows, asked = [], []
    for number, query in enumerate(queries):
        prompt, whole, words = _encoded(query, processing_class, number)
        labels = [IGNORED] * len(prompt) + whole[len(prompt) :]
        if isinstance(query, Mapping) and query.get("span") is not None:
            kept = _span(whole[len(prompt) :], query["span"], processing_class, number)
            labels = [label if place - len(prompt) in kept else IGNORED for place, label in enumerate(labels)]
        if all(label == IGNORED for label in labels[1:]):
            raise ValueError(f"Query {number} has no token that the model was to say: pass a longer text or a prompt.")
        rows.append({"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels})
        asked.append(words)
    if not rows:
        raise ValueError("There are no queries: pass at least one.")
    return Dataset.from_list(rows), asked


def pad_right(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates what [`tokenized`] made."""
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)
        for name, fill in _FILL.items()
    }


def _encoded(query: Any, tokenizer: Any, number: int) -> tuple[list[int], list[int], Asked]:
    """The tokens of the prompt, those of prompt and completion, and the words."""
    if isinstance(query, str):
        return [], _ids(tokenizer, query), Asked(query)
    if isinstance(query, Mapping) and query.get("prompt") is None:
        query = query.get("messages") if query.get("messages") is not None else query.get("text", query)
        if isinstance(query, str):
            return [], _ids(tokenizer, query), Asked(query)
    if isinstance(query, Mapping):
        prompt, completion = query.get("prompt"), query.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            words = Asked(completion, prompt)
            return *_prefix(_ids(tokenizer, prompt), _ids(tokenizer, prompt + completion), number), words
        query = [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else None
    if not isinstance(query, list) or not query or not all(isinstance(m, Mapping) for m in query):
        raise TypeError(f"Query {number} is of no known form: pass {_FORMS}.")
    *before, last = query
    if last.get("role") != "assistant" or not before:
        raise ValueError(f"The chat of query {number} must end with what the assistant said to others' messages.")
    prompt = _chat(tokenizer, before, add_generation_prompt=True)
    words = Asked(str(last.get("content")), conversation(before))
    return *_prefix(prompt, _chat(tokenizer, query), number), words


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _chat(tokenizer: Any, messages: list[Any], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"])


def _prefix(prompt: list[int], whole: list[int], number: int) -> tuple[list[int], list[int]]:
    """The prompt's tokens as the whole begins with them: one at the border may be another there."""
    same = next((place for place, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    if same < len(prompt) - 1 or len(whole) <= same:
        raise ValueError(
            f"The tokens of query {number} do not begin with those of its prompt: pass prompt and completion as they "
            "stand in the training text, or rows that are tokenised already."
        )
    return whole[:same], whole


def _span(completion: list[int], span: str, tokenizer: Any, number: int) -> set[int]:
    """Which tokens of the completion overlap the first occurrence of a text."""
    ends = [len(tokenizer.decode(completion[: place + 1])) for place in range(len(completion))]
    start = tokenizer.decode(completion).find(span) if isinstance(span, str) else -1
    if start < 0 or not span:
        raise ValueError(f"The span {span!r} of query {number} is not in its completion: copy it from there.")
    begins = [0, *ends[:-1]]
    return {
        place
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True))
        if begin < start + len(span) and end > start
    }

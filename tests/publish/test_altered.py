"""Altered records are read or refused in a few words: `ALTERED_FILES=10000 pytest tests/publish/test_altered.py`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_prune.publish import files
from hf_prune.publish.replay import Record, ReplayError
from hf_prune.selection import prune
from tests.publish import samples

TRIED = int(os.environ.get("ALTERED_FILES", "300"))
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**62, 2**64, 10**400, 1.5, 1e308),
    *("", "x", "a" * 5_000, "\u202e", "\x00", "../..", [], {}, [1], ["x"], {"a": 1}, [[[]]]),
]
IDS, PROVENANCE = "hf_prune/kept_ids.parquet", "hf_prune/provenance.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("altered")
    files.write(prune(samples.scored(run=samples.manifest()), keep=0.5), directory, observed=samples.OBSERVED)
    return directory


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def alter_document(document: Any, rng: random.Random) -> None:
    """Removes, adds or replaces one value."""
    *path, last = rng.choice(list(places(document)))
    for key in path:
        document = document[key]
    action = rng.random()
    if action < 0.15:
        del document[last]
    elif action < 0.25 and isinstance(document, dict):
        document["unknown"] = rng.choice(VALUES)
    else:
        document[last] = rng.choice(VALUES)


def alter_bytes(content: bytes, rng: random.Random) -> bytes:
    """Replaces a few bytes, or cuts the file."""
    altered = bytearray(content)
    for _ in range(rng.choice([1, 2, 8])):
        if altered and rng.random() < 0.2:
            del altered[rng.randrange(len(altered)) :]
        elif altered:
            altered[rng.randrange(len(altered))] = rng.randrange(256)
    return bytes(altered)


def outcome(directory: Path) -> str | None:
    """The words of the refusal; any other error than that goes through."""
    try:
        Record.open(str(directory))
    except ReplayError as error:
        return str(error)
    return None


def check(told: list[str | None]) -> None:
    refused = [words for words in told if words is not None]
    assert len(refused) > len(told) / 2
    assert max(map(len, refused)) < 800


def test_altered_provenance_is_read_or_refused_in_a_few_words(published):
    good, told = (published / PROVENANCE).read_text(), []
    for seed in range(TRIED):
        rng, document = random.Random(seed), json.loads(good)
        for _ in range(rng.choice([1, 1, 2, 3])):
            alter_document(document, rng)
        (published / PROVENANCE).write_text(json.dumps(document))
        told.append(outcome(published))
    (published / PROVENANCE).write_text(good)
    assert outcome(published) is None
    check(told)


def test_altered_ids_are_refused_in_a_few_words_or_are_the_same_ids(published):
    good, told = (published / IDS).read_bytes(), []
    ids = Record.open(str(published)).keep_indices.tolist()
    for seed in range(TRIED):
        (published / IDS).write_bytes(alter_bytes(good, random.Random(seed)))
        told.append(outcome(published))
        if told[-1] is None:
            assert Record.open(str(published)).keep_indices.tolist() == ids
    (published / IDS).write_bytes(good)
    check(told)

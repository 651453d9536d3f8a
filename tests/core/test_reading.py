"""What is written is read again; whatever else is read is a value of its type, or refused in our words."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_prune._core.config import ScoringConfig
from hf_prune._core.id_files import read_ids
from hf_prune._core.reading import Reader
from hf_prune._core.records import RecordedRun, ScoringRecord
from hf_prune.errors import TrajectoryError
from hf_prune.record.ledger_writer import LedgerWriter
from hf_prune.selection.certificate import Certificate
from hf_prune.selection.selection import Applied
from hf_prune.trajectory.files import part_path
from hf_prune.trajectory.ledger import LedgerRow, read_lines, read_rows
from hf_prune.trajectory.manifest import Manifest, read_manifest
from hf_prune.trajectory.visits import StatisticsRow
from hf_prune.verification import Arm, Retraining, Verification
from tests.altered import said


class OwnError(ValueError):
    """Tells our refusals from what parsers raise."""


READER = Reader(OwnError, "write it again")
KINDS: list[Any] = [Manifest, LedgerRow, StatisticsRow, Certificate, Applied, Verification, Arm, RecordedRun]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
finite = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(0, 2**53 - 1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["run_id", "", "\x00"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def refused(read: Any, *arguments: Any) -> Any:
    """What `read` returns, or the words of our error; any other error goes through."""
    try:
        return read(*arguments)
    except ValueError as error:
        if not said(error) and not isinstance(error, OwnError):
            raise
        return str(error)


@FEW
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_value_or_refused(content: bytes):
    refused(READER.value, content, "file")
    for kind in KINDS:
        refused(READER.line, content, kind, "file")


@FEW
@given(values)
def test_any_json_is_a_value_or_refused(value: Any):
    content = json.dumps(value).encode()
    told = refused(READER.value, content, "file")
    if not isinstance(told, str):
        assert told == json.loads(content)
    for kind in KINDS:
        refused(READER.typed, value, kind, "file")


@FEW
@given(st.data())
def test_any_value_in_any_field_is_of_its_type_or_refused(data: st.DataObject):
    from tests.publish import samples

    record = ScoringRecord(ScoringConfig(directions=8), RecordedRun.of("d" * 64, samples.manifest()), 0.5, 0.25)
    document = record.to_dict()
    part = data.draw(st.sampled_from([document, document["config"], document["run"], document["run"]["optimizer"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    try:
        found = ScoringRecord.from_dict(document)
    except ValueError:
        return
    assert ScoringRecord.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()


@st.composite
def ledger_rows(draw: st.DrawFn, step: int) -> LedgerRow:
    ids = draw(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), max_size=3))
    per_batch = st.lists(st.none() | finite, min_size=len(ids), max_size=len(ids))
    return LedgerRow(
        step, draw(finite), ids, draw(per_batch), draw(per_batch), draw(per_batch), draw(st.lists(finite, max_size=2)),
        draw(st.floats()), draw(st.booleans()),
    )  # fmt: skip


@FEW
@given(data=st.data(), steps=st.integers(0, 5), torn=st.integers(0, 5))
def test_a_ledger_is_read_as_it_was_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, steps: int, torn: int
):
    root = tmp_path_factory.mktemp("ledger")
    (root / "ledger").mkdir()
    rows = [data.draw(ledger_rows(step)) for step in range(steps)]
    path = part_path(root, 0, 0)
    writer = LedgerWriter(path, {"run_id": "r", "rank": "0", "part": "0"})
    for row in rows:
        writer.write(row)
    writer.close()
    assert repr([row for [row] in read_rows(root, "r", 1)]) == repr(rows)  # NaN equals NaN
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - torn])
    assert len(read_rows(root, "r", 1)) == max(0, steps - (torn > 0))


def test_a_line_that_is_there_twice_or_out_of_order_is_refused(tmp_path: Path):
    row = LedgerRow(0, 0.5, [[1, 2]], [1.0], [0.3], [None], [0.1], 1.0, False)
    (tmp_path / "ledger").mkdir()
    path = part_path(tmp_path, 0, 0)
    for steps in ([0, 0], [1, 0], [0, 2]):
        path.unlink(missing_ok=True)
        writer = LedgerWriter(path, {"run_id": "r", "rank": "0", "part": "0"})
        for step in steps:
            writer.write(replace(row, step=step))
        writer.close()
        with pytest.raises(TrajectoryError, match=f"step {steps[1]} follows step {steps[0]}"):
            read_lines(path, "r", LedgerRow)


@pytest.mark.parametrize("size", [0, -1, 10**9, 2**70, True, 1.5, None, "2"])
def test_a_number_of_processes_that_cannot_be_is_refused_at_once(size: Any, tmp_path: Path):
    from tests.publish import samples

    values = samples.manifest(world_size=size)
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(TrajectoryError, match=r"world_size|lacks the field|too large a number"):
        read_manifest(tmp_path)


@FEW
@given(st.lists(st.tuples(count, finite.filter(lambda x: abs(x) < 1e100)), min_size=1, max_size=5))
def test_a_verification_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, float]]
):
    runs = tuple(Retraining(seed, metric, None, 10, 1.5) for seed, metric in found)
    made = Verification("accuracy", True, "steps", Arm(10, runs), Arm(5, runs), None, 0.5, None)
    file = tmp_path_factory.mktemp("verified") / "verification.json"
    file.write_text(json.dumps(made.to_dict()))
    assert Verification.load(file) == made


@FEW
@given(st.sets(st.integers(0, 2**40), max_size=30))
def test_ids_are_read_as_they_were_written(chosen: set[int]):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": pa.array(sorted(chosen), pa.int64())}), sink)
    content = sink.getvalue().to_pybytes()
    np.testing.assert_array_equal(read_ids(READER, content, "ids", 2**41, len(chosen)), sorted(chosen))
    with pytest.raises(OwnError, match="were recorded"):
        read_ids(READER, content, "ids", 2**41, len(chosen) + 1)


@FEW
@given(st.binary(max_size=300), st.integers(0, 2**31))
def test_ids_of_any_bytes_are_refused(content: bytes, seed: int):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": pa.array(range(50), pa.int64())}), sink)
    good = bytearray(sink.getvalue().to_pybytes())
    good[random.Random(seed).randrange(len(good))] ^= 1 + seed % 255
    for damaged in (content, bytes(good)):
        found = refused(read_ids, READER, damaged, "ids", 50, 50)
        assert isinstance(found, str) or found.shape == (50,)


def test_a_small_file_of_very_many_ids_is_not_unpacked():
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema({"id": pa.int64()}), compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(pa.table({"id": pa.array(np.zeros(10**6, dtype=np.int64))}))
    content = sink.getvalue().to_pybytes()
    assert len(content) < 10**5
    with pytest.raises(OwnError, match="has 20,000,000 ids, and 7 were recorded"):
        read_ids(READER, content, "ids", 10, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**5 + b"]" * 10**5, "nested too deeply"),
        (b"[" * 40 + b"]" * 40, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"a": 18446744073709551616}', "too large a number"),
        (b'{"a": 1, "a": 2}', "a field is there twice"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_what_json_does_not_have_is_refused_in_a_sentence(content: bytes, message: str):
    with pytest.raises(OwnError, match=f"^file is .*{message}.*: write it again.$"):
        READER.value(content, "file")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OwnError, match="is not a regular file: write it again"):
            READER.content(tmp_path / name)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(OwnError, match="has 5 bytes, and at most 4 are read"):
        READER.content(tmp_path / "large", 4)
    assert READER.content(tmp_path / "nowhere") is None
    with pytest.raises(OwnError, match="cannot be read"):
        READER.content(tmp_path / "\x00")


def test_a_tensor_file_that_is_no_file_is_refused_without_waiting(tmp_path: Path):
    from hf_prune.trajectory.tensor_files import read_shapes, read_tensors

    os.mkfifo(tmp_path / "pipe")
    for read in (read_shapes, read_tensors):
        with pytest.raises(OwnError, match=r"is damaged .*not a regular file"):
            read(READER, tmp_path / "pipe")


def test_every_number_of_a_certificate_can_be_shown():
    from hf_prune.selection import select
    from tests.publish import samples

    values = asdict(select(samples.scored(run=samples.manifest()), 0.5).certificate)
    for name in values:
        for wrong in (None, -1, "x", [], {}, True):
            told = refused(Certificate.from_dict, values | {name: wrong})
            assert isinstance(told, str) or (told.explain() and math.isfinite(told.kept / told.n))

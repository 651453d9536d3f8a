"""A pool or a stream of candidates is scored part by part: the scores of one pass, in the memory of a part."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, Value

from hf_prune import add_influence, add_scores, prune
from hf_prune._core.scoring import claim_of
from hf_prune.influence import pool
from tests import toys
from tests.influence.runs import Run, distance, record
from tests.influence.test_objectives import ragged, tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("run")
    return record(toys.bert(), toys.tokens(48), toys.tokens(8, seed=2), directory, num_train_epochs=3)


def candidates(rows: int = 50) -> Dataset:
    return toys.tokens(rows, seed=7).add_column("text", [f"row {i}" for i in range(rows)])


def scored(run: Run, rows: Dataset | IterableDataset, **options: Any) -> Dataset:
    settings = {"model": run.model, "eval_dataset": run.held_out, "train_dataset": run.rows, "directions": 8}
    return add_influence(rows, run.path, **(settings | {"engine": "projected", "curvature": "fisher"} | options))


@pytest.mark.parametrize("engine", ["projected", "dense"])
def test_a_stream_has_the_scores_of_the_same_pool_whatever_its_parts(
    engine: str, run: Run, monkeypatch: pytest.MonkeyPatch
):
    whole = scored(run, candidates(), engine=engine)
    monkeypatch.setattr(pool, "PART", 7)
    stream = scored(run, candidates().to_iterable_dataset(), engine=engine)
    assert isinstance(stream, Dataset)
    assert stream.column_names == whole.column_names
    assert stream.features == whole.features
    for name in ("influence", "influence_norm", "influence_eval_loss", "influence_features"):
        np.testing.assert_allclose(stream[name], whole[name], rtol=2e-3, atol=1e-5)
    assert stream["text"][:] == candidates()["text"][:]
    assert claim_of(stream, "influence").words == claim_of(whole, "influence").words


def test_fewer_candidates_than_directions_have_scores_too(run: Run):
    few = scored(run, candidates().select(range(3)))
    assert distance(np.array(few["influence"]), np.array(scored(run, candidates())["influence"])[:3]) < 1e-4


def test_candidates_that_were_trained_on_have_the_scores_of_their_visits(run: Run):
    trained = scored(run, run.rows, train_dataset=None)
    assert distance(np.array(scored(run, run.rows)["influence"]), np.array(trained["influence"])) < 0.3


def test_tokens_are_counted_in_the_pool_as_in_training(tmp_path: Path):
    """Where the loss is a mean over tokens, a part needs the mean over all training rows."""
    from transformers import DataCollatorForTokenClassification

    from tests.influence.test_objectives import tagger

    collator = DataCollatorForTokenClassification(tokenizer())
    rows, held_out = ragged(40, label="tokens"), ragged(8, label="tokens")
    run = record(tagger(), rows, held_out, tmp_path, collator=collator, num_train_epochs=3)
    trained = scored(run, run.rows, train_dataset=None, engine="dense", data_collator=collator)
    stream = scored(run, run.rows.to_iterable_dataset(), engine="dense", data_collator=collator)
    np.testing.assert_allclose(stream["influence"], trained["influence"], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["target", "less", "rds"])
def test_a_stream_is_pruned_for_a_task_by(method: str, run: Run):
    rows = scored(run, candidates().to_iterable_dataset())
    options = {"model": run.model, "eval_dataset": run.held_out, "train_dataset": run.rows}
    rows = add_scores(rows, run.path, **options)
    kept = prune(rows, keep=10, method=method)
    assert len(kept) == 10
    assert kept.selection.apply(candidates())["text"][:] == kept["text"][:]


def test_less_and_rds_of_candidates_are_those_of_the_same_rows_trained_on(run: Run):
    options = {"model": run.model, "eval_dataset": run.held_out}
    trained = add_scores(run.rows, run.path, **options)
    pooled = add_scores(run.rows.select(range(9)), run.path, train_dataset=run.rows, **options)
    assert [name for name in pooled.column_names if name not in run.rows.column_names] == ["less", "rds"]
    for name in ("less", "rds"):
        np.testing.assert_allclose(pooled[name], trained[:9][name], rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"get less and rds alone: pass rows of the target task as eval_dataset"):
        add_scores(run.rows, run.path, train_dataset=run.rows, model=run.model)


def unlike() -> Iterator[dict[str, Any]]:
    """The first part of the stream has no texts."""
    for i, row in enumerate(toys.tokens(2000, seed=7)):
        yield row | {"text": None if i < 1100 else "said"}


def test_streams_that_cannot_be_scored_are_refused(run: Run):
    with pytest.raises(TypeError, match=r"pass what was trained on as train_dataset= to score a stream"):
        scored(run, candidates().to_iterable_dataset(), train_dataset=None)
    with pytest.raises(ValueError, match=r"The stream has no rows"):
        scored(run, candidates().to_iterable_dataset().filter(lambda row: False))
    assert pool.PART < 1100
    rows = IterableDataset.from_generator(unlike)
    with pytest.raises(ValueError, match=r"Rows of the stream are not alike .* as in stream\.cast\(features\)\.$"):
        scored(run, rows, directions=2)
    features = candidates(1).features
    assert not list((Path(run.path) / "scores").glob("*.partial"))
    cast = scored(run, rows.cast(features), directions=2)
    assert cast.features["text"] == Value("string")
    assert len(cast) == 2000


@pytest.mark.parametrize("first", ["with", "without"])
def test_streams_whose_columns_change_are_refused(first: str, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "PART", 7)

    def changing() -> Iterator[dict[str, Any]]:
        for i, row in enumerate(toys.tokens(14, seed=7)):
            yield row | {"text": "said"} if (i < 7) == (first == "with") else row

    with pytest.raises(ValueError, match=r"(?s)Rows of the stream are not alike .* as in stream\.cast\(features\)\.$"):
        scored(run, IterableDataset.from_generator(changing), directions=2)


PEAK = """
import sys, threading, time
from pathlib import Path
from datasets import IterableDataset
from hf_prune import add_influence
from hf_prune.influence import pool
from tests import toys
from tests.influence.runs import record

pool.PART = 256
run = record(toys.bert(), toys.tokens(48), toys.tokens(8, seed=2), Path(sys.argv[1]), num_train_epochs=2)

def rows(count):
    for row in toys.tokens(count, seed=3):
        yield row | {"text": "x" * 20_000}

def used():
    # what lies in memory and in no file: pages of the file that is written count as well otherwise
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def watch(peaks):
    while True:
        peaks[0] = max(peaks[0], used())
        time.sleep(0.01)

peaks = [0]
threading.Thread(target=watch, args=(peaks,), daemon=True).start()

def peak(count):
    peaks[0] = 0
    stream = IterableDataset.from_generator(rows, gen_kwargs={"count": count})
    scored = add_influence(stream, run.path, model=run.model, eval_dataset=run.held_out, train_dataset=run.rows,
                           directions=8, engine="projected", curvature="fisher")
    assert len(scored) == count
    return peaks[0]

print(peak(1600), peak(9600))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stream_takes_the_memory_of_a_part(tmp_path: Path):
    """Thirty-eight parts take what seven take, though their texts alone are 160 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = map(float, done.stdout.split("\n")[-2].split())
    assert many - few < 80

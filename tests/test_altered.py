"""
Altered files of every format are refused in a few words, or stand for the same.

`ALTERED_FILES=1000 pytest -s tests/test_altered.py` tries so many of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value

from hf_prune import Attribution
from hf_prune._core.processes import Processes
from hf_prune._core.scoring import scoring_of
from hf_prune.influence import add_influence
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.store import StepSketch, Store, packed
from hf_prune.optimizers import adjoint_for
from hf_prune.publish import files
from hf_prune.publish.replay import Record
from hf_prune.record import TrajectoryCallback
from hf_prune.record.pending import HostCopy
from hf_prune.record.pieces import OwnPiece, OwnPieces
from hf_prune.record.snapshot_writer import SnapshotWriter
from hf_prune.scores import grand
from hf_prune.selection import Selection, prune, select
from hf_prune.selection.evidence import Candidate, Evidence
from hf_prune.selection.harm import Harm
from hf_prune.trajectory import Trajectory, summarize
from hf_prune.trajectory.files import snapshot_path
from hf_prune.trajectory.manifest import read_manifest
from hf_prune.trajectory.parts import saved_snapshots
from hf_prune.trajectory.snapshots import PARAMETERS, SECOND_MOMENT
from hf_prune.trajectory.visits import read_visits
from hf_prune.verification import Arm, Retraining, Verification
from hf_prune.verification.kept import KeptRetrainings
from tests.altered import Format, try_altered
from tests.attribution.test_result import found as attribution
from tests.publish import samples
from tests.toys import Mlp, train, vectors

TRIED = int(os.environ.get("ALTERED_FILES", "100"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of two processes that was resumed: what one process wrote, told as that of two."""
    root = tmp_path_factory.mktemp("run")
    callback = TrajectoryCallback(root / "record", row_statistics=True, snapshots_per_epoch=2)
    train(Mlp(), vectors(), root / "out", [callback])
    record = root / "record"
    for directory in ("ledger", "statistics"):
        first = record / directory / "rank-00000-part-000.jsonl"
        header, *lines = first.read_text().splitlines(keepends=True)
        for rank in (0, 1):
            for part, (start, stop) in enumerate([(0, 20), (16, 32)]):
                head = json.dumps(json.loads(header) | {"rank": str(rank), "part": str(part)}) + "\n"
                path = record / directory / f"rank-{rank:05d}-part-{part:03d}.jsonl"
                path.write_text(head + "".join(lines[start:stop]))
    manifest = json.loads((record / "manifest.json").read_text())
    (record / "manifest.json").write_text(json.dumps(manifest | {"world_size": 2}))
    return record


@pytest.fixture(scope="session")
def run_in_parts(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same record with its snapshots in two parts."""
    record = tmp_path_factory.mktemp("parts") / "record"
    shutil.copytree(run, record)
    manifest = read_manifest(record)
    for step, saved in saved_snapshots(record, manifest).items():
        snapshot = saved.read()
        kinds = {PARAMETERS: snapshot.parameters, SECOND_MOMENT: snapshot.second_moment}
        samples = HostCopy(torch.arange(4.0))
        for rank in range(2):
            pieces, halves = [], {kind: [] for kind in kinds}
            for index, one in enumerate(manifest.parameters):
                start = rank * -(-one.shape[0] // 2)
                for kind, vector in kinds.items():
                    whole = vector.split([one.size for one in manifest.parameters])[index].view(one.shape)
                    halves[kind].append(whole.chunk(2)[rank])
                pieces.append(OwnPiece(one.name, 0, start, tuple(halves[PARAMETERS][-1].shape)))
            own = OwnPieces(rank, tuple(pieces))
            writer = SnapshotWriter(record, manifest.run_id, own.size, "float32", own)
            writer.take(step, halves, samples, [])
            writer.close()
        snapshot_path(record, step).unlink()
    return record


def read_record(directory: Path) -> dict[str, Any]:
    trajectory = Trajectory.open(directory)
    manifest = trajectory.manifest
    adjoint = adjoint_for(manifest.optimizer, [1], [0])
    summary = summarize(directory)
    first = trajectory.window[0]
    return {
        "rows": trajectory.n_rows,
        "steps": trajectory.steps(),
        "window": trajectory.window,
        "updates": trajectory.updates_before(len(trajectory)),
        "optimizer": [float(value) for name, value in vars(adjoint).items() if name not in ("layout", "held")],
        "clip": manifest.max_grad_norm,
        "parameters": [trajectory.parameters_at(t).tolist() for t in (first, first + 1)],
        "second_moment": [trajectory.second_moment_at(t).tolist() for t in (first, first + 1)],
        "samples": trajectory.samples_at(first).tolist(),
        "weights": summary["weights"],
    }


def sound_record(value: dict[str, Any]) -> bool:
    numbers = [x for step in value["steps"] for x in (step.epoch, *step.learning_rates)]
    numbers += [
        x for s in value["steps"] for b in s.micro_batches for x in (b.scale, b.num_items, b.loss) if x is not None
    ]
    numbers += [
        value["clip"],
        *value["optimizer"],
    ]
    ids = np.concatenate([step.ids for step in value["steps"]])
    indices = [step.index for step in value["steps"]]
    return (
        bool(np.isfinite(numbers).all())
        and bool(((ids >= 0) & (ids < value["rows"])).all())
        and indices == list(range(len(indices)))
        and value["window"][1] <= len(indices)
        and np.isfinite(value["parameters"]).all()
        and np.isfinite(value["samples"]).all()
    )


def record_format(run: Path, pattern: str) -> Format:
    names = sorted(str(path.relative_to(run)) for path in run.glob(pattern))
    assert names
    return Format(run, names, read_record, sound_record)


def check(form: Format, tmp_path: Path, count: int = TRIED) -> None:
    found = try_altered(form, count, tmp_path / "altered")
    print(
        f"{found.tried} tried: {found.refused} refused, {found.same} the same, {found.sound} sound, "
        f"{len(found.opaque)} opaque, {len(found.false)} false"
    )
    assert not found.opaque, "\n".join(found.opaque[:20])
    assert not found.false, "\n".join(found.false[:20])
    assert found.refused > found.tried / 5


@pytest.mark.parametrize("pattern", ["manifest.json", "ledger/*", "snapshots/*"])
def test_records_of_runs(run: Path, pattern: str, tmp_path: Path):
    check(record_format(run, pattern), tmp_path)


def test_snapshots_in_parts(run_in_parts: Path, tmp_path: Path):
    check(record_format(run_in_parts, "snapshots/*"), tmp_path)


def test_statistics_of_rows(run: Path, tmp_path: Path):
    names = sorted(str(path.relative_to(run)) for path in run.glob("statistics/*"))

    def read(directory: Path) -> list[Any]:
        visits = read_visits(Trajectory.open(directory))
        return [visits.ids.tolist(), visits.steps.tolist(), visits.loss.tolist(), visits.correct.tolist()]

    def sound(value: list[Any]) -> bool:
        return len(value[0]) == len(value[2]) == len(value[3])

    check(Format(run, names, read, sound), tmp_path)


def sketch(rng: torch.Generator, folded: CountSketch, visits: int = 3) -> StepSketch:
    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    return StepSketch(
        ids=torch.arange(visits),
        weights=some(visits),
        growth=some(visits),
        groups=torch.arange(visits),
        sketches=some(2 * visits, folded.width),
        unscaled=some(2 * visits, 4),
        gram=some(2 * visits, 2 * visits),
        examples=torch.arange(2 * visits) // 2,
        gradient=some(2 * visits),
        curvature=some(2 * visits),
        log_scales=some(len(folded.sizes)),
    )


def test_sketches(tmp_path: Path):
    cache = SharedCache(tmp_path / "work", Processes(0, 1))
    rng = torch.Generator().manual_seed(0)
    folded = CountSketch([(4, 5), (3,)], 16, seed=0, device=torch.device("cpu"))

    def rows_of(t: int) -> np.ndarray:
        return np.arange(0 if t == 5 else 3)

    store = Store(cache, [0, 8, 20], folded, rows_of)
    for shard in store.shards:
        store.write(shard, {t: packed(sketch(rng, folded)) for t in shard if t != 5})

    def read(directory: Path) -> list[Any]:
        store = Store(SharedCache(directory, Processes(0, 1)), [0, 8, 20], folded, rows_of)
        return [
            (t, {name: value.tolist() for name, value in vars(found).items()})
            for t, found in store.backwards(torch.device("cpu"))
        ]

    check(Format(tmp_path / "work", sorted(path.name for path in (tmp_path / "work").iterdir()), read), tmp_path)


def test_scores_that_a_record_keeps(run: Path, tmp_path: Path):
    dataset, model = vectors(), Mlp()

    def read(directory: Path) -> list[Any]:
        with torch.random.fork_rng():
            scored = add_influence(dataset, directory, model=model, directions=4, engine="dense", curvature="none")
        return [scored["influence"], scored["influence_norm"]]

    shutil.copytree(run, tmp_path / "record")
    read(tmp_path / "record")
    names = [str(path.relative_to(tmp_path / "record")) for path in (tmp_path / "record" / "scores").glob("*.arrow")]
    check(Format(tmp_path / "record", names, read), tmp_path, TRIED // 4)


def selected(tmp_path: Path) -> Selection:
    selection = select(samples.scored(run=samples.manifest()), 0.5, balance="label")
    candidate = Candidate("hard", 0.8, 0.02, 0.01, 0.01, 0.01, 3)
    evidence = Evidence(
        "accuracy", "epochs", 40, "e" * 64, 9, 4.5, (candidate, replace(candidate, name="balanced")), "hard", True
    )
    harm = Harm("rule", 2, tuple(selection.drop_indices[:2].tolist()))
    return replace(selection, certificate=replace(selection.certificate, harm=harm, evidence=evidence))


def sign(directory: Path) -> None:
    """Writes the digests of the files as they are now, as one who altered them on purpose would."""
    try:
        head = json.loads((directory / "selection.json").read_text())
        for name in head["sha256"]:
            head["sha256"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return
    (directory / "selection.json").write_text(json.dumps(head))


def parts_of(selection: Selection) -> dict[str, Any]:
    identity = selection.identity
    columns = [] if identity is None else identity.columns
    return {
        "kept": selection.keep_indices.tolist(),
        "rows": selection.n_rows,
        "certificate": selection.certificate.to_dict(),
        "words": selection.certificate.explain(),
        "config": selection.config,
        "resolved": selection.resolved,
        "scoring": selection.scoring,
        "identity": {name: (identity.digests(name).tolist(), identity.ending(name)) for name in columns},
    }


def read_selection(directory: Path) -> dict[str, Any]:
    return parts_of(Selection.load(directory))


def sound_selection(value: dict[str, Any]) -> bool:
    json.dumps(value["certificate"], allow_nan=False)
    kept, identity = value["kept"], value["identity"]
    return (
        kept == sorted(set(kept))
        and (not kept or 0 <= kept[0] <= kept[-1] < value["rows"])
        and len(kept) == value["certificate"]["kept"]
        and all(len(digests) == value["rows"] for digests, _ in identity.values())
    )


@pytest.mark.parametrize("names", [["selection.json"], ["kept_ids.parquet", "dropped_ids.parquet", "rows.parquet"]])
def test_selections(names: list[str], tmp_path: Path):
    selected(tmp_path).save(tmp_path / "half")
    check(Format(tmp_path / "half", names, read_selection, sound_selection, sign), tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    files.write(prune(samples.scored(run=samples.manifest()), keep=0.5), directory, observed=samples.OBSERVED)
    return directory


def read_published(directory: Path) -> dict[str, Any]:
    record = Record.open(str(directory))
    return parts_of(record.selection()) | {"provenance": record.provenance}


@pytest.mark.parametrize("name", ["hf_prune/kept_ids.parquet", "hf_prune/provenance.json"])
def test_what_was_published(name: str, published: Path, tmp_path: Path):
    check(Format(published, [name], read_published, sound_selection), tmp_path)


def test_how_rows_were_scored(tmp_path: Path):
    dataset = samples.scored(run=samples.manifest())
    (tmp_path / "stamp").mkdir()
    (tmp_path / "stamp" / "stamp.json").write_text(dataset.features["influence_norm"].id)

    def read(directory: Path) -> Any:
        stamp = (directory / "stamp.json").read_bytes().decode(errors="replace")
        features = Features({**dataset.features, "influence_norm": Value("float32", id=stamp)})
        found = scoring_of(Dataset(dataset.data, info=type(dataset.info)(features=features)))
        return None if found is None else json.dumps(found.to_dict(), allow_nan=False)

    check(Format(tmp_path / "stamp", ["stamp.json"], read, lambda value: True), tmp_path)


def test_verifications(tmp_path: Path):
    runs = tuple(Retraining(seed, 0.9 - 0.01 * seed, 0.3, 10, 1.0) for seed in range(3))
    made = Verification("accuracy", True, "epochs", Arm(60, runs), Arm(30, runs), Arm(30, runs), 0.1, 0.2)
    (tmp_path / "verified").mkdir()
    (tmp_path / "verified" / "verification.json").write_text(json.dumps(made.to_dict()))

    def read(directory: Path) -> list[Any]:
        found = Verification.load(directory / "verification.json")
        return [found, found.explain(), found.observed()]

    def sound(value: list[Any]) -> bool:
        return bool(json.dumps(value[2], allow_nan=False))

    check(Format(tmp_path / "verified", ["verification.json"], read, sound), tmp_path)


@pytest.mark.parametrize("tokens", [None, "query", "row"])
def test_attributions(tokens: str | None, tmp_path: Path):
    attribution(tokens).save(tmp_path / "found" / "attribution.safetensors")

    def read(directory: Path) -> list[Any]:
        found = Attribution.load(directory / "attribution.safetensors")
        listed = [[(row.row, row.influence) for row in (*found.top(q), *found.bottom(q))] for q in range(len(found))]
        return [listed, found.to_dataset().to_list(), found._repr_html_(), found.queries]

    check(Format(tmp_path / "found", ["attribution.safetensors"], read, lambda value: len(value[0]) > 0), tmp_path)


def test_results_of_probes(tmp_path: Path):
    (tmp_path / "probe").mkdir()
    run = Retraining(seed=1, metric=0.5, loss=0.75, steps=10, seconds=1.0)
    (tmp_path / "probe" / "a.json").write_text(json.dumps({"runs": {"all": asdict(run)}}))
    kept = KeptRetrainings(SimpleNamespace(eval_datasets={"all": None}), None)  # type: ignore[arg-type]

    def sound(value: dict[str, Retraining]) -> bool:
        one = value["all"]
        return list(value) == ["all"] and one.steps >= 0 and bool(np.isfinite([one.metric, one.loss or 0]).all())

    check(Format(tmp_path / "probe", ["a.json"], lambda d: kept._read(d / "a.json"), sound), tmp_path)


def test_values_that_scoring_keeps(tmp_path: Path):
    def value(directory: Path, name: str, kind: Any, made: Any = None) -> Any:
        return SharedCache(directory, Processes(0, 1)).value(name, lambda: made, kind)

    kinds = {
        "gn_scale.json": (1.5, float),
        "layout.json": ([0.25, 0.5, 0.25], list[float]),
        "held-out.json": (0.2, float | None),
    }
    for name, (made, kind) in kinds.items():
        value(tmp_path / "work", name, kind, made)

    def read(directory: Path) -> list[Any]:
        return [value(directory, name, kind) for name, (_, kind) in kinds.items()]

    def sound(found: list[Any]) -> bool:
        return all(np.isfinite(np.asarray(x, dtype=float)).all() for x in found if x is not None)

    check(Format(tmp_path / "work", list(kinds), read, sound), tmp_path)


def test_gradient_norms_that_are_kept(tmp_path: Path):
    grand.keep(tmp_path / "scores" / "grand.safetensors", np.arange(20, dtype=np.float32))
    form = Format(
        tmp_path / "scores", ["grand.safetensors"], lambda d: grand.cached(d / "grand.safetensors", 20).tolist()
    )
    check(form, tmp_path)

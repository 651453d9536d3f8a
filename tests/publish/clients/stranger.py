"""A client that replays what strangers published, in a directory that is full of traps."""

import gzip
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from PIL import Image

from hf_prune.publish.replay import ReplayError, replay
from hf_prune.selection import prune
from tests.publish import samples
from tests.publish.clients.wire import push

SOURCE = "alice/Reviews"
api = HfApi()


class Trap:
    """Unpickling it writes the file that must not be there afterwards."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, bytes]]:
        return (_write, (str(self.marker), b"ran"))


def _write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def said(act: Callable[[], Any]) -> str:
    try:
        return f"{len(act())} rows"
    except ReplayError as error:
        return str(error)


def lay_traps(directory: Path, marker: Path) -> None:
    """Folders and files that `load_dataset` would take for the names of packaged builders and of the source."""
    content = pickle.dumps(Trap(marker))
    for folder in ("pandas", "text", SOURCE, f"hf:/datasets/{SOURCE}"):
        (directory / folder).mkdir(parents=True)
        for name in ("rows.pkl", "train.pkl", "rows.pth"):
            (directory / folder / name).write_bytes(content)
    for name in ("train.pkl", "rows.pkl"):
        (directory / name).write_bytes(content)
    samples.plain(60, seed=9).to_parquet(directory / SOURCE / "train.parquet")
    (directory / "secret.csv").write_text("text\nsecret\n")


class Forger:
    """Copies of an honest directory, with fields of its provenance set."""

    def __init__(self, honest: Path):
        self.honest, self.made = honest, 0

    def __call__(self, **source: Any) -> str:
        self.made += 1
        directory = Path(shutil.copytree(self.honest, self.honest.with_name(f"forged-{self.made}")))
        path = directory / "hf_prune/provenance.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"source": known["source"] | source}))
        return str(directory)


def hostile(trap: bytes, cwd: Path) -> dict[str, dict[str, bytes]]:
    """Source repositories that are not plain data of their own, by what is wrong with them."""
    csv = b"text\na\n"

    def card(patterns: Any) -> bytes:
        configs = [{"config_name": "default", "data_files": patterns}]
        return f"---\n{json.dumps({'configs': configs})}\n---\n".encode()

    return {
        "pickles": {"rows.pkl": trap},
        "pickles-by-card": {"rows.csv.pkl": trap, "README.md": card("rows.csv.pkl")},
        "pickles-as-csv": {"rows.csv": trap},
        "pickles-as-parquet": {"rows.parquet": trap},
        "tar": {"rows.tar": _tar(trap)},
        "zip": {"rows.zip": _zip(trap)},
        "script": {"script.py": b"open('marker', 'w')", "rows.csv": csv},
        "absolute": {"rows.csv": csv, "README.md": card(str(cwd / "secret.csv"))},
        "absolute-split": {
            "rows.csv": csv,
            "README.md": card([{"split": "train", "path": [str(cwd / "secret.csv")]}]),
        },
        "file-url": {"rows.csv": csv, "README.md": card(f"file://{cwd}/secret.csv")},
        "url": {"rows.csv": csv, "README.md": card("http://127.0.0.1:9/rows.csv")},
        "chained": {"rows.csv": csv, "README.md": card("zip://rows.csv::/secret.zip")},
        "up": {"rows.csv": csv, "README.md": card("../../My-Reviews@main/data/*.parquet")},
        "yaml-file": {"rows.csv": csv, ".huggingface.yaml": card("/etc/*.csv").replace(b"---", b"")},
        "yaml-bomb": {"rows.csv": csv, "README.md": b"---\na: " + b"[" * 50_000 + b"\n---\n"},
        "yaml-large": {"rows.csv": csv, "README.md": b"---\na: " + b"x" * 3_000_000 + b"\n---\n"},
        "no-utf-8": {"rows.csv": csv, "README.md": b"---\na: \xff\n---\n"},
        "empty": {"notes": b""},
    }


def plain_data() -> dict[str, dict[str, bytes]]:
    """Source repositories in the formats that are loaded, 60 rows each."""
    lines = [json.dumps({"text": f"row {i}"}) for i in range(60)]
    sink = io.BytesIO()
    Image.new("RGB", (1, 1)).save(sink, "webp")
    return {
        "csv": {"rows.csv": "\n".join(["text", *(f"row {i}" for i in range(60))]).encode()},
        "json-lines": {"rows.jsonl.gz": gzip.compress("\n".join(lines).encode())},
        "text": {"train.txt": "\n".join(f"row {i}" for i in range(60)).encode()},
        "pictures": {f"train/{i:02d}.webp": sink.getvalue() for i in range(60)},
        "named-by-card": {
            "some/rows.csv": "\n".join(["text;more", *(f"row {i};1" for i in range(60))]).encode(),
            "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: some/*.csv\n  sep: ;\n---\n",
        },
    }


def plain_source(name: str, files: dict[str, bytes], directory: Path) -> str:
    """Prunes and saves an honest source, and replays without passing it."""
    push(f"alice/plain-{name}", files)
    source = load_dataset(f"alice/plain-{name}", split="train")
    prune(samples.scored(source), keep=0.5).save_to_disk(directory / f"plain-{name}")
    return said(lambda: replay(str(directory / f"plain-{name}")))


def _tar(trap: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("0.pth", "0.pyd", "0.pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(trap)
            archive.addfile(entry, io.BytesIO(trap))
    return sink.getvalue()


def _zip(trap: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("train.pkl", trap)
        archive.writestr("train.csv", "text\na\n")
    return sink.getvalue()


def altered(
    repo_id: str, change: Callable[[Dataset], Dataset], honest: Dataset, more: dict[str, bytes] | None = None
) -> str:
    """Publishes honestly, replaces the rows, and replays."""
    honest.push_to_hub(repo_id)
    path = "data/train-00000-of-00001.parquet"
    sink = pa.BufferOutputStream()
    change(load_dataset(repo_id, split="train")).to_parquet(sink)
    push(repo_id, {path: sink.getvalue().to_pybytes()} | (more or {}))
    return said(lambda: replay(repo_id))


def blown_up(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(["x" * 100]).take(pa.array([0] * rows))}), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def visit(directory: Path) -> dict[str, Any]:
    """Returns what happened in an empty directory."""
    told: dict[str, Any] = {}
    marker, cwd = directory / "marker", directory / "here"
    samples.plain().push_to_hub(SOURCE)
    source = load_dataset(SOURCE, split="train")
    commit = str(api.dataset_info(SOURCE).sha)
    honest = prune(samples.scored(source), keep=0.5)
    honest.save_to_disk(directory / "honest")
    forged = Forger(directory / "honest")

    lay_traps(cwd, marker)
    os.chdir(cwd)
    pickle.loads((cwd / "rows.pkl").read_bytes())
    told["trap_works"] = marker.exists()
    marker.unlink()
    told["folder_is_preferred"] = load_dataset(SOURCE, split="train")["x"] == samples.plain(60, seed=9)["x"]

    told["same_name_here"] = list(replay(str(directory / "honest"))) == list(
        source.select(honest.selection.keep_indices.tolist())
    )
    told["bare"] = {
        name: said(lambda name=name: replay(forged(id=name, revision=commit)))
        for name in ("pandas", "text", "csv", "rows", "./pandas", str(cwd / "pandas"), "alice/../pandas", "buckets/x")
    }
    told["unpinned"] = {
        str(name): said(lambda name=name: replay(forged(revision=name))) for name in (None, "main", "HEAD", commit[:7])
    }
    told["config"] = said(lambda: replay(forged(config_name="../../here")))
    told["split"] = said(lambda: replay(forged(split="../train")))
    told["no_such_commit"] = said(lambda: replay(forged(revision="0" * 40)))
    told["hostile"] = {}
    for name, files in hostile(pickle.dumps(Trap(marker)), cwd).items():
        at = push(f"alice/{name}", files)
        told["hostile"][name] = said(lambda name=name, at=at: replay(forged(id=f"alice/{name}", revision=at)))

    told["plain"] = {name: plain_source(name, files, directory) for name, files in plain_data().items()}

    told["blown_up_source"] = said(
        lambda: replay(forged(id="alice/blown", revision=push("alice/blown", {"train.parquet": blown_up(3_000_000)})))
    )
    told["altered"] = altered(
        "alice/altered",
        lambda old: old.map(lambda row, i: {"label": 1 - row["label"]} if i == 3 else row, with_indices=True),
        honest,
    )
    told["shorter"] = altered("alice/shorter", lambda old: old.select(range(29)), honest)
    told["swapped"] = altered("alice/swapped", lambda old: old.select([1, 0, *range(2, 30)]), honest)
    told["column"] = altered(
        "alice/column", lambda old: old.add_column("more", [0] * 30), honest, {"README.md": b"no metadata"}
    )
    told["honest"] = altered("alice/honest", lambda old: old, honest)
    told["marker"] = marker.exists() or (cwd / "marker").exists()
    return told


if __name__ == "__main__":
    json.dump(visit(Path(sys.argv[1])), sys.stdout)

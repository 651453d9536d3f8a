"""Files are there whole or not at all; what killed processes left is removed, and nothing that a process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_prune._core import io

ROOT, HEX = Path(__file__).parents[2], "0123456789abcdef" * 2


def test_what_a_killed_write_left_is_removed_by_the_next_one_of_that_file_and_nothing_else(tmp_path):
    others = [f".b.json.{HEX}.tmp", f".a.json.{HEX[1:]}.tmp", ".a.json.mine.tmp", f"a.json.{HEX}.tmp", ".mine.tmp"]
    for name in (f".a.json.{HEX}.tmp", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    (tmp_path / f".a.json.{HEX[::-1]}.tmp").touch()
    io.write_bytes(tmp_path / "a.json", b"{}")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a.json"])
    io.remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*others[1:], "a.json"])


def test_who_writes_many_files_removes_what_killed_writes_left_once_for_all(tmp_path, monkeypatch):
    (tmp_path / f".a.json.{HEX}.tmp").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda directory: pytest.fail("the directory is listed for each file"))
        io.write_atomically(tmp_path / "a.json", lambda path: path.write_bytes(b"{}"), one_of_many=True)
    assert sorted(os.listdir(tmp_path)) == [f".a.json.{HEX}.tmp", "a.json"]
    io.remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "write", [lambda path: save_file({"a": torch.zeros(9)}, path), lambda path: path.write_bytes(b"a")]
)
def test_what_a_process_writes_is_not_taken_for_remains(write, tmp_path):
    path = tmp_path / "a"

    def disturbed(temporary: Path) -> None:
        write(temporary)
        io.remove_temporaries(tmp_path)  # as another process does; locks of one process exclude each other too
        io.write_bytes(path, b"another")

    io.write_atomically(path, disturbed)
    whole = path.read_bytes()
    write(path)
    assert whole == path.read_bytes()
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_taken_for_remains_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    mkdir, taken = Path.mkdir, []

    def removed_at_once(directory: Path) -> None:
        mkdir(directory)
        if not taken:
            taken.append(directory)
            io.remove_temporaries(tmp_path)

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    io.write_bytes(tmp_path / "a.json", b"{}")
    assert taken
    assert os.listdir(tmp_path) == ["a.json"]


WRITER = """
import sys
from pathlib import Path
from hf_prune._core import io

for _ in range(200):
    io.write_bytes(Path(sys.argv[1]) / "a.json", b"{}")
    io.remove_temporaries(Path(sys.argv[1]))
"""


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0)] * 2
    assert os.listdir(tmp_path) == ["a.json"]


WINDOWS = """
import os, shutil, sys
from pathlib import Path
import datasets, filelock, torch, transformers

sys.modules["fcntl"] = None  # it cannot be imported
opened = os.open

def refusing(path, *args, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *args, **options)

os.open = refusing
shutil._use_fd_functions = False

from hf_prune import prune
from hf_prune._core import io
from hf_prune.selection import Selection
from tests.publish.samples import scored

here = Path(sys.argv[1])
for keep in (0.5, 0.25):
    pruned = prune(scored(), keep=keep)
    pruned.selection.save(here / "selection")
    pruned.save_to_disk(here / "rows")
    assert Selection.load(here / "selection") == pruned.selection
    assert len(datasets.load_from_disk(str(here / "rows"))) == len(pruned)
assert io.fcntl is None
"""


def test_without_locks_and_handles_of_directories_as_on_windows_files_are_written_too(tmp_path):
    done = subprocess.run([sys.executable, "-c", WINDOWS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["rows", "selection"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]

"""Intermediate results of scoring: shared by the processes of a launch, found again after a kill, removed when old."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets.fingerprint import Hasher
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_prune._core.io import write_atomically, write_bytes, writing
from hf_prune._core.processes import Processes
from hf_prune._core.reading import Reader
from hf_prune.errors import TrajectoryError
from hf_prune.influence.cache_eviction import SHARES, in_use, remove_superseded, remove_unused
from hf_prune.trajectory.tensor_files import read_tensors

CACHE = Reader(TrajectoryError, "delete it and score again, which computes it again")
"""Reads intermediate results."""
FORMAT = 2
"""Files in another form must not be taken for these."""
_DIGEST = "xxh64"


def write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file that notes its content and its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_DIGEST: _digest(file, tensors)}
    # What was left by killed processes goes when the directory's use begins.
    write_atomically(file, lambda temporary: _save(tensors, temporary, metadata), one_of_many=True)


def read(file: Path) -> dict[str, torch.Tensor]:
    """
    Reads what [`write`] wrote.

    Raises:
        `TrajectoryError`: for a file that cannot be read, or is another one.
    """
    try:
        tensors, metadata = read_tensors(CACHE, file)
    except FileNotFoundError as error:
        raise TrajectoryError(f"The intermediate result {file} was deleted meanwhile: score again.") from error
    if metadata.get(_DIGEST) != _digest(file, tensors):
        raise TrajectoryError(f"The intermediate result {file} is damaged (its digest differs): {CACHE.mend}.")
    return tensors


def _digest(file: Path, tensors: dict[str, torch.Tensor]) -> str:
    parts: list[Any] = [file.name.encode()]
    for name in sorted(tensors):
        tensor = tensors[name]
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), content]
    return Hasher.hash_bytes(parts)


class SharedCache:
    """
    A directory of files, each of which is there whole or not at all.

    Args:
        directory (`Path`): named after all that the files depend on, next to those of other scorings of the run.
        processes (`Processes`): those that share the work.
    """

    def __init__(self, directory: Path, processes: Processes):
        self.directory, self.processes = directory, processes

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """
        No process removes what is in the directory while the block runs.

        Raises:
            `OSError`: if the directory may not be written to.
        """
        with ExitStack() as stack:
            with writing("Scores, which are kept with the record,", self.directory):
                stack.enter_context(in_use(self.directory))
            yield

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Other launches wait where they ask for the same name, until the block ends; it ends with the process."""
        with ExitStack() as stack:
            with self.processes.main_first():
                if self.processes.rank == 0:
                    self.directory.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(self.directory / f"{name}.lock"))
            yield

    def value(self, name: str, make: Callable[[], Any], kind: Any, *, fresh: bool = False) -> Any:
        """
        What the JSON file `name` holds, a value of a type; where it is missing, or is to be made again (`fresh`), the
        main process makes it first.
        """
        file = self.directory / name
        with self.processes.main_first(), writing("Scores", self.directory):
            if not file.exists() or (fresh and self.processes.rank == 0):
                content = json.dumps(make(), allow_nan=False).encode()
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, content)
            return CACHE.typed(CACHE.value(CACHE.content(file) or b"", file), kind, file)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the files that are still to be made."""
        return [name for name in names if not (self.directory / name).exists()]

    def own_share(self, names: Iterable[str]) -> list[str]:
        """Those of the missing files that fall to this process; each makes its own, then waits for the others."""
        return self.missing(list(names)[self.processes.rank :: self.processes.world])

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """
        Writes a safetensors file.

        Raises:
            `OSError`: where there is no room for it; what was written before is found again.
        """
        with writing("Intermediate results of scoring", self.directory):
            write(self.directory / name, tensors)

    def exchange(self, name: str, tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """
        The tensors of all processes in their order, in all of them; each calls this with its own.

        Raises:
            `OSError`: where there is no room for them.
        """
        processes = self.processes
        if processes.world == 1:
            return [tensors]
        names = [f"{SHARES}{name}-{rank:05d}.safetensors" for rank in range(processes.world)]
        with processes.together():
            self.write(names[processes.rank], tensors)
        with processes.together():
            found = [self.read(one) for one in names]
        (self.directory / names[processes.rank]).unlink(missing_ok=True)
        return found

    def read(self, name: str) -> dict[str, torch.Tensor]:
        """
        Raises:
            `TrajectoryError`: for a file that cannot be read.
        """
        return read(self.directory / name)

    def remove(self, pattern: str) -> None:
        """Removes the files that match, unless another process uses the directory."""
        remove_unused(self.directory, pattern)

    def remove_superseded(self) -> None:
        """Removes directories of other rows, models or states of the run, unless a process uses them."""
        remove_superseded(self.directory)


def _save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))  # all that is left of the error of the operating system
        raise OSError(int(code[1]) if code else None, str(error)) from error

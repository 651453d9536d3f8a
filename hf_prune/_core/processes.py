"""The processes that work together, started by torchrun or `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from accelerate import PartialState

from hf_prune._core import compat
from hf_prune._core.io import TEMPORARY

Value = TypeVar("Value")

_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """
    They wait for each other over connections of their own, on which a process that works is waited for, for a day,
    whatever the timeout of the launch's process group, and a process that ends is noticed at once.

    Attributes:
        rank (`int`): This process.
        world (`int`): Their number.
        group (`ProcessGroup`, *optional*): The connections, where there are several processes.
    """

    rank: int
    world: int
    group: Any = None

    @classmethod
    def current(cls) -> Processes:
        """This process among those of its launch, all of which have to call this; alone where there was none."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not compat.processes_are_set_up():
            return cls(0, 1)
        state = PartialState()
        if state.num_processes == 1:
            return cls(0, 1)
        with _together():
            return cls(state.process_index, state.num_processes, _patient(dist.group.WORLD))

    def barrier(self) -> None:
        """
        Waits until all processes have come here.

        Raises:
            `RuntimeError`: if one of them ended before.
        """
        if self.world > 1:
            with _together():
                dist.barrier(group=self.group)

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """
        One process's value, in all of them.

        Args:
            value (`Any`): This process's.
            source (`int`, *optional*, defaults to 0): The process.

        Raises:
            `RuntimeError`: if one of them ended before.
        """
        if self.world == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values, src=source, group=self.group)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """
        The values of all processes in their order, in all of them.

        Raises:
            `RuntimeError`: if one of them ended before.
        """
        values = [value] * self.world
        if self.world > 1:
            with _together():
                dist.all_gather_object(values, value, group=self.group)
        return values

    def give(self, chunks: Iterable[bytes]) -> None:
        """Sends bytes to the main process, which has to `take` them, as many at a time as `chunks` has."""
        last = -1
        try:
            for chunk in filter(None, chunks):
                self._send(torch.tensor(len(chunk)))
                self._send(torch.frombuffer(bytearray(chunk), dtype=torch.uint8))
            last = 0
        finally:
            self._send(torch.tensor(last))

    def take(self, source: int) -> Iterator[bytes]:
        """
        What another process gives to this one, the main one, which has to go through all of it.

        Raises:
            `OSError`: if the other one failed to read it.
        """
        while (size := int(self._receive(torch.tensor(0), source))) > 0:
            yield self._receive(torch.empty(size, dtype=torch.uint8), source).numpy().tobytes()
        if size < 0:
            raise OSError(f"process {source} could not read what it had to send")

    def _send(self, tensor: torch.Tensor) -> None:
        with _together():
            dist.send(tensor, dst=0, group=self.group)

    def _receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        with _together():
            dist.recv(tensor, src=source, group=self.group)
        return tensor

    def first_that_sees(self, directory: Path) -> int:
        """
        The lowest of the processes that see the same directory under this name, where each may be on a machine and a
        disk of its own: each leaves a file there for a moment and looks for those of the others. Where no process may
        write, all are taken to see the same.

        Args:
            directory (`Path`): This process's.
        """
        if self.world == 1:
            return 0
        name = self.broadcast(uuid4().hex)
        files = [directory / f".seen-{rank}.{name}{TEMPORARY}" for rank in range(self.world)]
        with suppress(OSError):
            files[self.rank].touch()
        self.barrier()
        first = next(
            (rank for rank, file in enumerate(files) if file.exists()), 0 if directory.is_dir() else self.rank
        )
        self.barrier()
        with suppress(OSError):
            files[self.rank].unlink()
        return first

    def first_failure(self, own: str | None) -> str | None:
        """
        What failed in the first of the processes in which something did; `None` if nothing did.

        Args:
            own (`str`, *optional*): What failed in this one.

        Raises:
            `RuntimeError`: if one of them ended before.
        """
        if self.world == 1:
            return own
        first = torch.tensor(self.world if own is None else self.rank)
        with _together():
            dist.all_reduce(first, op=dist.ReduceOp.MIN, group=self.group)
        return None if first == self.world else self.broadcast(own, int(first))

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        Runs the block in all processes; where it fails in one, it fails in all.

        Raises:
            `RuntimeError`: in the others, if one failed or ended.
        """
        try:
            yield
        except Exception as error:
            with suppress(RuntimeError):
                self.first_failure(f"{type(error).__name__}: {error}")
            raise
        if failure := self.first_failure(None):
            raise RuntimeError(f"Another process failed, and this one ends with it. {failure}")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """
        Runs the block in the first process, then in the others, which find what it wrote.

        Raises:
            `RuntimeError`: in the others, if the first one failed or ended.
        """
        if self.rank == 0:
            try:
                yield
            except Exception as error:
                with suppress(RuntimeError):
                    self.broadcast(f"{type(error).__name__}: {error}")
                raise
            self.broadcast("")
            return
        if failure := self.broadcast(""):
            raise RuntimeError(f"The main process failed, and the others end with it. {failure}")
        yield


@lru_cache(maxsize=1)
def _patient(launch: Any) -> Any:
    """A group of all processes of the `launch` with a timeout of its own."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "Another process of this launch ended while this one waited for it: see that one's error, and start all "
            "of them again, which finds what is finished."
        ) from error

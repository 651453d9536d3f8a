"""The processes that work together, started by torchrun or `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState

from hf_prune._core import compat

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

    def broadcast(self, value: Value) -> Value:
        """
        The first process's value, in all of them.

        Raises:
            `RuntimeError`: if one of them ended before.
        """
        if self.world == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

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

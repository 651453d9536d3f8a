"""The processes that work together, started by torchrun or `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_prune._core import compat


@dataclass(frozen=True)
class Processes:
    """
    Attributes:
        rank (`int`): This process.
        world (`int`): Their number.
    """

    rank: int
    world: int

    @classmethod
    def current(cls) -> Processes:
        """This process among those of its launch; alone where there was none."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not compat.processes_are_set_up():
            return cls(0, 1)
        state = PartialState()
        return cls(state.process_index, state.num_processes)

    def barrier(self) -> None:
        """Waits until all processes have come here."""
        if self.world > 1:
            PartialState().wait_for_everyone()

    def broadcast(self, value: int) -> int:
        """The first process's value, in all of them."""
        return value if self.world == 1 else broadcast_object_list([value])[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block in the first process, then in the others, which find what it wrote."""
        if self.world == 1:
            yield
            return
        with PartialState().main_process_first():
            yield

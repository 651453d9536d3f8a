"""Which rows a micro-batch holds, told by the batch sampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from hf_prune._core import compat
from hf_prune.errors import RecordingError


class RecordingBatchSampler:
    """
    A transparent stand-in for the training dataloader's batch sampler that notes each batch which it yields.

    The Trainer draws an epoch's first batches after `on_epoch_begin` and before its first step, so the iteration that
    was begun last between those two is the Trainer's. Others (a callback that looks through the training data) pass
    unrecorded.

    Args:
        inner (`Any`): The batch sampler.
        queue (`SamplerQueue`): Where batches go.
    """

    def __init__(self, inner: Any, queue: SamplerQueue):
        self.__dict__.update(_inner=inner, _queue=queue)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_inner"], name, value)

    def __len__(self) -> int:
        return len(self.__dict__["_inner"])

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.__dict__["_queue"].begin_iteration()
        for batch in self.__dict__["_inner"]:
            batches.append([int(i) for i in batch])
            yield batch


class SamplerQueue:
    """Batches that the sampler has yielded and the Trainer has not processed yet, in this process."""

    def __init__(self) -> None:
        self._batches: deque[list[int]] = deque()
        self._open = False
        self._skip = 0

    def attach(self, dataloader: Any) -> Callable[[], None]:
        """Puts the proxy into a prepared dataloader and returns what undoes it."""
        return compat.replace_batch_sampler(dataloader, lambda inner: RecordingBatchSampler(inner, self))

    def begin_epoch(self, skip: int = 0) -> None:
        """An epoch begins; a resumed one first draws `skip` batches again that were already trained on."""
        self._batches, self._open, self._skip = deque(), True, skip

    def begin_step(self) -> None:
        """A step begins: from here on, new iterations over the dataloader are not the Trainer's."""
        self._open = False

    def begin_iteration(self) -> deque[list[int]]:
        batches: deque[list[int]] = deque()
        if self._open:
            self._batches = batches
        else:
            batches = deque(maxlen=0)
        return batches

    def pop(self) -> list[int]:
        """Ids of the micro-batch that the Trainer has just processed."""
        while self._skip:
            self._skip -= 1
            self._pop()
        return self._pop()

    def _pop(self) -> list[int]:
        if not self._batches:
            raise RecordingError(
                "The Trainer processed a batch that its batch sampler never yielded, so its rows are unknown: number "
                "the rows with hf_prune.record.with_example_ids(dataset) and pass remove_unused_columns=False."
            )
        return self._batches.popleft()

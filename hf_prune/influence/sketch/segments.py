"""Back over the window segment by segment: what is sketched and removed on the way, and found again after a kill."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from datasets.utils import tqdm

from hf_prune.errors import TrajectoryError
from hf_prune.influence.cache import CACHE, SharedCache
from hf_prune.influence.checks import warn_of_growth
from hf_prune.influence.sketch.scales import ScaledSketches
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.influence.sketch.sweep import SketchedSegment, SketchedStep, SketchSweep, SweepState
from hf_prune.influence.sketch.window_pass import WindowPass
from hf_prune.model.replay import Replay

logger = logging.getLogger(__name__)

# The whole window's sketches are kept where they take no more than this share of the free disk.
KEPT_SHARE = 0.5


@dataclass
class Swept:
    """
    What a sweep knows between two segments.

    Attributes:
        state (`SweepState`): the cotangents there.
        total (`np.ndarray`, `(n, k)`): the answers so far.
        left (`int`): segments that are still to be swept, the first ones.
        late (`int`): segments, likewise, some of whose visits are still to be answered.
        segments (`list[SketchedSegment]`): the summed cotangents of those that were swept, where they are asked for.
        file (`str`): where this is kept while segments are removed, if at all.
    """

    state: SweepState
    total: np.ndarray
    left: int
    late: int
    segments: list[SketchedSegment]
    file: str

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, on the CPU."""
        state = self.state
        found = {
            "A": state.A,
            "M": state.M,
            "log_scales": state.log_scales.clone(),  # a segment may share it
            "lengths": torch.tensor([state.length, state.largest], dtype=torch.float64),
            "places": torch.tensor([self.left, self.late]),
            "total": torch.from_numpy(self.total),
        }
        for place, segment in enumerate(self.segments):
            found |= {f"{place}.{name}": getattr(segment, name) for name in _OF_SEGMENT}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def found(self, tensors: dict[str, torch.Tensor]) -> Swept:
        """
        This sweep, which has just begun, as far as another came that told its [`Swept.tensors`].

        Raises:
            `KeyError`, `ValueError`: if it was another sweep.
        """
        # Sums depend on where in memory their terms begin, so that the copies begin where others do.
        tensors = {name: value.clone() for name, value in tensors.items()}
        for name, own in self.tensors().items():
            if tensors[name].shape != own.shape or tensors[name].dtype != own.dtype:
                raise ValueError(f"{name} has another form")
        left, late = tensors["places"].tolist()
        if not (0 <= left < self.left and 0 <= late <= self.late):
            raise ValueError("there are fewer segments")
        device, segments = self.state.A.device, []
        for place in range(self.left - left if "0.cotangents" in tensors else 0):
            segments.append(SketchedSegment(*(tensors[f"{place}.{name}"].to(device) for name in _OF_SEGMENT)))
            if segments[-1].cotangents.shape != self.state.A.shape:
                raise ValueError("cotangents have another form")
        length, largest = tensors["lengths"].tolist()
        A, M = tensors["A"].to(device), tensors["M"].to(device)
        state = SweepState(A, M, tensors["log_scales"], length, largest)
        return Swept(state, tensors["total"].numpy(), left, late, segments, self.file)

    def answers(self) -> dict[str, torch.Tensor]:
        """What other queries' answers are to be joined with, on the CPU."""
        norms = torch.tensor([self.state.length, *self.state.lengths], dtype=torch.float64)
        return {name: value for name, value in self.tensors().items() if name not in ("A", "M")} | {"norms": norms}

    def joined(self, parts: list[dict[str, torch.Tensor]]) -> Swept:
        """
        This sweep of some of the queries, which has come to the window's beginning, with what other processes found
        for the others; only the cotangents there are still its own.

        Args:
            parts (`list[dict[str, torch.Tensor]]`): what each told as `answers`, in their order.
        """
        length, *later = torch.stack([part["norms"] for part in parts]).square().sum(0).sqrt().tolist()
        state, device = replace(self.state, length=length, largest=max(later, default=0.0)), self.state.A.device
        segments = []
        for place, own in enumerate(self.segments):
            whole = {
                name: torch.cat([part[f"{place}.{name}"] for part in parts]).to(device)
                for name in ("cotangents", "clip_term")
            }
            segments.append(replace(own, **whole))
        total = np.concatenate([part["total"].numpy() for part in parts], axis=1)
        return replace(self, state=state, total=total, segments=segments)


_OF_SEGMENT = [field.name for field in fields(SketchedSegment)]


class SegmentedSweep:
    """
    Goes back over the window, one segment after the other, a segment being the steps between two snapshots.

    The sketches of the whole window are kept, and serve later queries, where they take no more than half of the free
    disk. Elsewhere a segment is sketched when the sweep comes to it, and its sketches are removed once its visits are
    answered; a killed sweep goes on where it stopped.

    Where they are kept processes share the sweep, each for some of the queries, and the visits that answer them. Else
    each of them does all of it, but for the sketching.

    Args:
        replay (`Replay`): the recorded run.
        window (`WindowPass`): what sketches it.
        sweep (`SketchSweep`): what goes back over sketched steps.
        cache (`SharedCache`): where sketches are kept, for the processes that share the work.
        key (`str`): a digest of all that the scores depend on.
    """

    def __init__(self, replay: Replay, window: WindowPass, sweep: SketchSweep, cache: SharedCache, key: str):
        self.replay, self.window, self.sweep, self.cache = replay, window, sweep, cache
        self.keeps, self.name = True, f"effects-{key}-"
        self.store = self._store("", self._rows_of, curved=sweep.curvature == "gauss-newton")
        self.count = len(self.store.segments)

    def _store(self, prefix: str, rows_of: Callable[[int], np.ndarray], *, curved: bool) -> Store:
        marks = self.replay.trajectory.snapshot_steps
        return Store(self.cache, marks, self.window.sketch, rows_of, curved=curved, prefix=prefix)

    def _rows_of(self, t: int) -> np.ndarray:
        step = self.replay.trajectory.step(t)
        return self.replay.row_of(() if step.skipped else step.ids)

    def prepare(self) -> None:
        """Sketches the whole window, in one pass that processes share, where its sketches are to be kept."""
        processes = self.cache.processes
        with processes.main_first():
            if processes.rank == 0:
                self.keeps = self._has_room()
        self.keeps = processes.broadcast(self.keeps)
        if self.keeps:
            self.window.run(self.store)
        else:
            self.store = self._store(self.name, self._rows_of, curved=self.sweep.curvature == "gauss-newton")

    def _has_room(self) -> bool:
        if any(self.cache.directory.glob(f"{self.name}*.safetensors")):
            return False  # a killed sweep goes on as it began
        missing, free = self.window.missing_bytes(self.store), shutil.disk_usage(self.cache.directory).free
        if sum(missing) <= KEPT_SHARE * free:
            return True
        logger.warning(
            f"Sketches of the whole window take about {sum(missing) / 1e9:.3g} GB of disk space, and "
            f"{free / 1e9:.3g} GB are free: only those between two snapshots are kept at a time, at most "
            f"{max(missing) / 1e9:.3g} GB, and each call sketches the window again."
        )
        return False

    def alone(self) -> AbstractContextManager[None]:
        """No other launch that asks the same uses what is removed on the way."""
        return nullcontext() if self.keeps else self.cache.alone(f"{self.name}sweep")

    def begin(self, queries: ScaledSketches, kept_as: str) -> Swept:
        """
        A sweep at the window's end, or where a killed one stopped.

        Args:
            kept_as (`str`): a name for what is summed up on the way; nothing is kept of it where it is empty.

        Raises:
            `OSError`: if the disk has no room for the sketches of one segment.
        """
        if self._is_shared(kept_as):
            queries = replace(queries, values=queries.values[self.own(len(queries.values))])
        state, total = self.sweep.start(queries), np.zeros((len(self.replay.rows), len(queries.values)))
        file = f"{self.name}{kept_as}.safetensors" if kept_as and not self.keeps else ""
        swept = Swept(state, total, self.count, self.count, [], file)
        if self.keeps:
            return swept
        with self.cache.processes.main_first():
            if file and not self.cache.missing([file]):
                swept = self._found(swept)
            if self.cache.processes.rank == 0:
                for place in range(swept.left, self.count):
                    self.store.segment(place).remove()
                self._check_room(swept)
        return swept

    def _is_shared(self, kept_as: str) -> bool:
        return self.keeps and bool(kept_as) and self.cache.processes.world > 1

    def own(self, count: int) -> slice:
        """This process's part of so many."""
        rank, world = self.cache.processes.rank, self.cache.processes.world
        return slice(rank * count // world, (rank + 1) * count // world)

    def summed(self, name: str, values: np.ndarray) -> np.ndarray:
        """The sum of what all processes found, each of some rows or visits."""
        found = self.cache.exchange(f"{self.name}{name}", {"values": torch.from_numpy(values)})
        return np.sum([part["values"].numpy() for part in found], axis=0)

    def end(self, swept: Swept, kept_as: str) -> Swept:
        """The sweep of all queries, when this process has done its own; it was begun to be `kept_as`."""
        if self._is_shared(kept_as):
            swept = swept.joined(self.cache.exchange(f"{self.name}{kept_as}", swept.answers()))
        warn_of_growth(self.replay.trajectory, swept.state.largest / swept.state.length)
        return swept

    def _found(self, swept: Swept) -> Swept:
        try:
            return swept.found(self.cache.read(swept.file))
        except (KeyError, ValueError) as error:
            file = self.cache.directory / swept.file
            raise TrajectoryError(f"{file} is not of this scoring ({error}): {CACHE.mend}.") from error

    def _check_room(self, swept: Swept) -> None:
        missing = self.window.missing_bytes(self.store)[: swept.left]
        state = 2 * sum(value.nbytes for value in swept.tensors().values()) if swept.file else 0
        needed, free = max(missing, default=0) + state, shutil.disk_usage(self.cache.directory).free
        if needed > free:
            raise OSError(
                f"Sketching the steps between two snapshots takes about {needed / 1e9:.3g} GB ({needed:,} bytes) of "
                f"disk space in {self.cache.directory}, and {free / 1e9:.3g} GB are free: free some, or record more "
                "snapshots_per_epoch or fewer parameters."
            )

    def over(self, swept: Swept) -> Iterator[tuple[Store, range, Iterator[SketchedStep]]]:
        """
        Each segment from the last to the first: its sketches, the segments that they can be answered for before they
        are removed, and the steps of the sweep, all of which have to be taken.
        """
        total = sum(len(shard) for own in self.store.segments[: swept.left] for shard in own)
        with tqdm(total=total, desc="Sweeping", unit="step") as bar:
            for place in reversed(range(swept.left)):
                part = self.store.segment(place)
                if not self.keeps:
                    self.window.run(part)
                places = range(place, place if self.keeps else self.count)
                yield part, places, self.sweep.steps(swept.state, _counted(part, swept.state.A.device, bar))
                swept.left = place
                self._end(swept, part)

    def late(
        self, swept: Swept, rows_of: Callable[[int], np.ndarray], *, shared: bool
    ) -> Iterator[tuple[Store, range]]:
        """
        After the sweep, each segment with those that it was not answered for: all of them where sketches are kept.

        Args:
            rows_of (`Callable[[int], np.ndarray]`): the rows of a step whose visits serve an earlier segment.
            shared (`bool`): whether each process answers for some visits, where sketches are kept.
        """
        if self.keeps:
            store, first = self.store, 0
            own = set(store.shards[self.own(len(store.shards))] if shared else store.shards)
        else:
            store, first = self._store(f"{self.name}late-", rows_of, curved=False), 1
        for place in reversed(range(first, swept.late)):
            part = store.segment(place)
            if self.keeps:
                part.shards = [shard for shard in part.shards if shard in own]
            if part.shards:
                if not self.keeps:
                    self.window.run(part)
                yield part, range(self.count if self.keeps else place)
            swept.late = place
            self._end(swept, part)

    def _end(self, swept: Swept, part: Store) -> None:
        """What is known goes to the disk, and the sketches that it was made of from there."""
        if self.keeps:
            return
        if swept.file and self.cache.processes.rank == 0:
            self.cache.write(swept.file, swept.tensors())
        self.cache.processes.barrier()  # all have read them
        if self.cache.processes.rank == 0:
            part.remove()


def _counted(part: Store, device: torch.device, bar: tqdm) -> Iterator[tuple[int, StepSketch]]:
    for t, sketch in part.backwards(device):
        yield t, sketch
        bar.update()

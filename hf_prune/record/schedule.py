"""When snapshots are due, and which of them stay: where a run ends is known only when it has ended."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field

from hf_prune.trajectory.window import in_window

# Snapshots before the planned window, at least: a run that ends early begins its window at one of them.
BEFORE = 3


def planned_steps(total_steps: int, steps_per_epoch: int, window: float, snapshots_per_epoch: float) -> list[int]:
    """
    The steps whose snapshots a run leaves that ends as planned: from the start of the window, evenly, and at the end.

    Args:
        total_steps (`int`): Optimizer steps of the run.
        steps_per_epoch (`int`): Optimizer steps of an epoch.
        window (`float`): The share of the run, counted from its end, that is covered.
        snapshots_per_epoch (`float`): How many snapshots an epoch gets.

    Returns:
        `list[int]`: steps in order; a snapshot at step s is taken after s optimizer steps.
    """
    first = int((1.0 - window) * total_steps)
    return sorted({*range(first, total_steps, _stride(steps_per_epoch, snapshots_per_epoch)), total_steps})


def due_steps(total_steps: int, steps_per_epoch: int, window: float, snapshots_per_epoch: float) -> list[int]:
    """
    The steps at which snapshots are taken: the planned ones, and before them, from step 0 on, what a run that ends
    early needs, at the same distance and at least 3. Those that have left the window are removed again.
    """
    planned = planned_steps(total_steps, steps_per_epoch, window, snapshots_per_epoch)
    distance = min(_stride(steps_per_epoch, snapshots_per_epoch), max(1, math.ceil(planned[0] / BEFORE)))
    return sorted({*range(0, planned[0], distance), *planned})


def _stride(steps_per_epoch: int, snapshots_per_epoch: float) -> int:
    return max(1, round(steps_per_epoch / snapshots_per_epoch))


@dataclass
class Snapshots:
    """
    The snapshots of a run on disk.

    Args:
        share (`float`): The window's share of the steps made.
        due (`set[int]`): Steps at which snapshots are due.
        steps (`list[int]`): Those that there are, in order.
        best (`int`, *optional*): The step of the best checkpoint so far; the window that ends there is kept too.
    """

    share: float
    due: set[int]
    steps: list[int] = field(default_factory=list)
    best: int | None = None

    def add(self, step: int) -> list[int]:
        """
        Adds the snapshot of the present step.

        Returns:
            `list[int]`: steps whose snapshots no window needs any more, wherever the run ends.
        """
        insort(self.steps, step)
        lasting = [s for s in self.steps if s in self.due or s in (step, self.best)]
        needed = set(in_window(lasting, self.share))
        if self.best is not None:
            needed.update(in_window([s for s in lasting if s <= self.best], self.share))
        removed = [s for s in self.steps if s not in needed]
        self.steps = sorted(needed)
        return removed


def most_at_once(due: list[int], window: float, best: bool) -> int:
    """
    The number of snapshots that are on disk at the same time, at most.

    Args:
        due (`list[int]`): What `due_steps` returned.
        window (`float`): The share that the window covers.
        best (`bool`): Whether the window that ends with the best checkpoint is kept too.
    """
    alive = max(len(in_window(due[: number + 1], window)) for number in range(len(due)))
    # The newest need not be due, and is written before older ones are removed.
    return 2 * alive + 3 if best else alive + 2

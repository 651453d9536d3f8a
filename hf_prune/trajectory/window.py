"""Which snapshots make up a window: the share of a run is that of the steps made, however many were planned."""

from __future__ import annotations

from collections.abc import Sequence


def in_window(steps: Sequence[int], share: float) -> list[int]:
    """
    The snapshots of the window that ends with the last of them.

    Args:
        steps (`Sequence[int]`): Steps at which there are snapshots, in order.
        share (`float`): The share of the steps made, counted from the end, that the window covers.

    Returns:
        `list[int]`: from the snapshot nearest to where that share begins to the last.
    """
    if len(steps) < 2:
        return list(steps)
    begin = int((1.0 - share) * steps[-1])
    first = min(steps[:-1], key=lambda step: abs(step - begin))
    return [step for step in steps if step >= first]

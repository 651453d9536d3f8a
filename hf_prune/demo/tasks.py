"""The demo's tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from hf_prune.demo.digits import digits
from hf_prune.demo.task import Sizes, Task
from hf_prune.demo.text import text

TASKS: dict[str, Callable[[Sizes | None], Task]] = {"digits": digits, "text": text}


def make_task(name: str, sizes: Sizes | None = None) -> Task:
    """
    Makes a demo task.

    Args:
        name (`str`): `"digits"`: small images through a ViT that is trained from scratch; `"text"`: film reviews
            through a pretrained MiniLM.
        sizes (`Sizes`, *optional*): Other sizes than the task's own.

    Raises:
        `ValueError`: If there is no such task.
        `ImportError`: If a package of the extra `demo` is missing.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}: pass one of {', '.join(TASKS)}.")
    return TASKS[name](sizes)

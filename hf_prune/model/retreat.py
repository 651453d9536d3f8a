"""Fewer rows at once where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def with_retreat(work: Callable[Concatenate[int, P], T], rows: int, *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(rows, ...)`, again with half as many rows at once as long as these do not fit into memory."""
    while True:
        try:
            return work(rows, *args, **kwargs)
        except RuntimeError as error:
            if rows == 1 or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        rows //= 2
        logger.warning(f"Memory ran out: the pass is made with {rows} rows at once.")

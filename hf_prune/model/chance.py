"""What rows draw when they are fetched: random crops, masks, noise."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


class Chance:
    """
    Shared by rows that are collated alike.

    Attributes:
        number (`int`, *optional*):
            With a number, a batch that is fetched again draws the same again, whoever fetches it and when, and another
            number gives other draws; what random generators of its own hold is out of reach. Without one, rows draw
            as they come.
        turn (`int`): Tells apart the uses of one batch that are to draw anew.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.turn = 0

    @contextmanager
    def drawn(self, indices: Sequence[int]) -> Iterator[None]:
        """Seeds the generators of Python, NumPy and torch for a batch, and afterwards lets them go on as before."""
        if self.number is None:
            yield
            return
        seed = zlib.crc32(repr((self.number, self.turn, [int(i) for i in indices])).encode())
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])

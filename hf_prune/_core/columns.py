"""Names of the columns that scoring adds to a dataset: known here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

INFLUENCE = "influence"
"""Name of the influence column where the user names none."""
ID_COLUMN = "hf_prune_id"
"""What `with_example_ids` adds: which row this is, whatever becomes of the dataset's order."""
PACKED = "seq_lengths"
"""What trl's packing adds: the lengths of the pieces that a row was packed of."""
LAST_LAYER_INFLUENCE = "last_layer_influence"
"""What `add_scores(..., last_layer=True)` adds and `method="iclr2023"` reads."""
LESS, RDS = "less", "rds"
"""What `add_scores(..., eval_dataset=rows of a target task)` adds, and the methods of these names read."""


@dataclass(frozen=True)
class InfluenceColumns:
    """
    The columns that `add_influence(..., column=vector)` writes.

    Args:
        vector (`str`, *optional*, defaults to `"influence"`): The influence vectors; the other names follow from it.
    """

    vector: str = INFLUENCE

    @property
    def norm(self) -> str:
        """Length of the vector."""
        return f"{self.vector}_norm"

    @property
    def eval_loss(self) -> str:
        """Predicted change of the mean held-out loss if the row is removed; there only with held-out rows."""
        return f"{self.vector}_eval_loss"

    @property
    def features(self) -> str:
        """What the trained model makes of the row: the inputs of its last linear layer, where it has one."""
        return f"{self.vector}_features"

    @property
    def check(self) -> str:
        """Check sum of the row: whether scores and contents are still those of the scoring."""
        return f"{self.vector}_check"

    def __iter__(self) -> Iterator[str]:
        return iter((self.vector, self.norm, self.eval_loss, self.features, self.check))

    def among(self, names: Iterable[str]) -> list[str]:
        """Those of the columns that are among `names`."""
        there = set(names)
        return [name for name in self if name in there]

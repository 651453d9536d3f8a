"""Which rows to prefer: what `difficulty` asks for, from how hard each row is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.rounding import rank_within


@dataclass(frozen=True)
class Preference:
    """
    Which rows to keep.

    Args:
        kind (`str`):
            `"represent"` keeps the hardest ones up to a share `hard` of what is kept, leaves the hardest share `cut`
            out, and represents the rest; `"band"` keeps, of the balanced subsets, the one near `quantile`; `"none"`
            any; `"column"` that of the largest values in a column.
        reason (`str`): Why, in words.
        quantile (`float`, *optional*): Centre of the band, a quantile of `influence_norm`.
        hard (`float`, *optional*, defaults to 0.0): Share of the kept rows.
        cut (`float`, *optional*, defaults to 0.0): Share of all rows.
    """

    kind: str
    reason: str
    quantile: float | None = None
    hard: float = 0.0
    cut: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(config: SelectionConfig) -> Preference:
    """The preference that the options stand for: `difficulty`, `hard`, `cut` and `cost`."""
    if config.cost is not None:
        return Preference("column", f"rows of large {config.cost!r} are kept, as asked for")
    if config.difficulty == "auto" and config.epsilon is not None:
        return Preference("none", "no preference, for the shift is bounded and any preference adds to it")
    if config.difficulty is None:
        return Preference("none", "no preference: any rows whose removal cancels out")
    if config.difficulty != "auto":
        quantile = float(config.difficulty)
        return Preference("band", f"rows near quantile {quantile:.2f} of influence_norm, as asked for", quantile)
    parts = [f"the hardest {config.hard:.0%} of the kept rows"] if config.hard else []
    parts += [f"no row of the hardest {config.cut:.0%}"] if config.cut else []
    if not parts:
        return Preference("represent", "no preference: the kept rows represent all")
    return Preference(
        "represent", f"{' and '.join(parts)}, and rows that represent the others", None, config.hard, config.cut
    )


def cost(preference: Preference, norm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Cost of dropping each row, float64 of shape `(n,)`; the linear program minimises its sum over the dropped rows.

    Keeping rows near quantile q means dropping those far from it: the cost is `-|rank - q|`, with ranks of `norm` in
    [0, 1]. Ties are broken by the seed: by less than half a rank, so that no order of unequal rows is turned.
    """
    noise = rng.random(len(norm))
    if preference.quantile is None:
        return noise
    return -np.abs(_ranks(norm) - preference.quantile) + 0.5 * noise / len(norm)


def represent_cost(preference: Preference, norm: np.ndarray, codes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """
    What representation keeps in any case (inf), leaves out (-inf), and chooses among (0), float64 of shape `(n,)`.

    Args:
        preference (`Preference`): Of the kind `"represent"`.
        norm (`np.ndarray`): `influence_norm`, `(n,)`.
        codes (`np.ndarray`): Class of each row, `(n,)`.
        kept (`np.ndarray`): Rows to keep of each class, `(classes,)`.
    """
    found = np.where(_ranks(norm) > 1 - preference.cut, -np.inf, 0.0)
    found[rank_within(codes, -norm) < np.floor(preference.hard * kept)[codes]] = np.inf
    return found


def _ranks(norm: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1]; equal values share theirs."""
    return (rankdata(norm) - 1) / max(len(norm) - 1, 1)


def cost_of(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Cost of dropping each row from a column of the user's, float64 of shape `(n,)`.

    Values are mapped linearly to [0, 1], the range that the program's price of imbalance is made for; a millionth of
    it breaks ties.
    """
    values = values.astype(np.float64)
    span = values.max() - values.min()
    return (values - values.min()) / (span if span > 0 else 1.0) + 1e-6 * rng.random(len(values))

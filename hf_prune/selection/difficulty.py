"""Which rows to prefer: what `difficulty` asks for, from how hard each row is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_prune.selection.rounding import rank_within

SATURATED_SHARE = 0.4
"""Share of influential rows below which the model counts as saturated."""
HARD_FROM, HARD_SLOPE, HARD_MOST = 0.6, 0.35, 0.6
"""
Share of the kept rows that goes to the hardest ones of a saturated model: the slope times what rows are kept for each
influential row beyond the start, up to the most.
"""
CUT, CUT_OF_REMOVED = 0.2, 0.5
"""Hardest share that is left out far from saturation, and the part of the removed share that it may be at most."""
HARDEST = 0.1
"""Share of the rows that is asked whether hard rows help."""


@dataclass(frozen=True)
class Preference:
    """
    Which rows to keep.

    Args:
        kind (`str`):
            `"cover"` keeps the hardest ones up to a share `hard` of what is kept, leaves the hardest share `cut` out,
            and represents the rest; `"band"` keeps, of the balanced subsets, the one near `quantile`; `"none"` any;
            `"column"` that of the largest values in a column.
        reason (`str`): Why, in words.
        quantile (`float`, *optional*): Centre of the band, a quantile of `influence_norm`.
        hard (`float`, *optional*): Share of the kept rows.
        cut (`float`, *optional*): Share of all rows.
    """

    kind: str
    reason: str
    quantile: float | None = None
    hard: float | None = None
    cut: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def influential_share(norm: np.ndarray) -> float:
    """
    Effective share of the rows that carry the influence, `(sum norm)^2 / (n sum norm^2)`.

    1 where all rows matter alike, 1/n where one row carries all. It falls as a model saturates: rows that are fitted
    have next to no gradient, and few hard rows are left to move the result.
    """
    norm = norm.astype(np.float64)
    squares = float((norm**2).sum())
    return float(norm.sum() ** 2 / (len(norm) * squares)) if squares > 0 else 1.0


def hard_rows_help(norm: np.ndarray, eval_loss: np.ndarray | None) -> bool:
    """
    Whether the hardest tenth of the rows is not clearly predicted to raise the held-out loss, as far as is known.

    Row by row that prediction is rough; summed over the hardest tenth it tells hard rows from wrong labels. Clearly:
    by more than the sum's standard error.

    Args:
        norm (`np.ndarray`): `influence_norm`, `(n,)`.
        eval_loss (`np.ndarray`, *optional*): Change of the held-out loss when a row is removed, `(n,)`.
    """
    if eval_loss is None:
        return True
    hardest = np.argsort(-norm, kind="stable")[: max(1, round(HARDEST * len(norm)))]
    effects = eval_loss[hardest].astype(np.float64)
    return bool(effects.sum() >= -effects.std() * len(effects) ** 0.5)


def automatic(share: float, rate: float, hard_help: bool = True) -> Preference:
    """
    The rule behind `difficulty="auto"`.

    A saturated model needs its hard rows: the more room there is for the influential ones, the larger a part of what
    is kept goes to the hardest, and the rest represents the others. Far from saturation, or where hard rows are
    predicted to harm, the hardest go instead. Chosen on dev rows of `benchmarks/study_tasks.py`: digits and MNIST
    (saturated), reviews and CIFAR-10 (not), digits with wrong labels.

    Args:
        share (`float`): [`influential_share`] of the dataset, in (0, 1].
        rate (`float`): Share of the rows that is removed, in [0, 1).
        hard_help (`bool`, *optional*, defaults to `True`): [`hard_rows_help`].
    """
    seen = f"the influence is carried by an effective {share:.0%} of the rows"
    if share < SATURATED_SHARE and hard_help:
        hard = min(HARD_MOST, max(0.0, HARD_SLOPE * ((1 - rate) / share - HARD_FROM)))
        why = f"{seen}: {hard:.0%} of the kept rows are the hardest, the others represent the rest"
        return Preference("cover", why, hard=hard, cut=0.0)
    if hard_help:
        why = f"{seen}, which looks far from saturated"
    else:
        why = f"{seen}, but the hardest {HARDEST:.0%} are predicted to harm the held-out loss (are labels wrong?)"
    cut = min(CUT, CUT_OF_REMOVED * rate)
    return Preference("cover", f"{why}: all but the hardest {cut:.0%} are represented", hard=0.0, cut=cut)


def choose(
    difficulty: str | float | None, norm: np.ndarray, eval_loss: np.ndarray | None, rate: float, within: bool = False
) -> Preference:
    """
    The preference that the argument `difficulty` stands for.

    Args:
        difficulty (`str`, `float` or None): See [`prune`].
        norm (`np.ndarray`): `influence_norm`, `(n,)`.
        eval_loss (`np.ndarray`, *optional*): `influence_eval_loss`, `(n,)`.
        rate (`float`): Removed share.
        within (`bool`, *optional*, defaults to `False`): Whether the shift is to stay within a bound.
    """
    if difficulty == "auto" and within:
        return Preference("none", "the shift is bounded, and any preference adds to it")
    if difficulty == "auto":
        return automatic(influential_share(norm), rate, hard_rows_help(norm, eval_loss))
    if difficulty is None:
        return Preference("none", "no preference was asked for")
    quantile = float(difficulty)
    why = f"rows near quantile {quantile:.2f} of influence_norm were asked for"
    return Preference("band", why, quantile=quantile)


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


def cover_cost(preference: Preference, norm: np.ndarray, codes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """
    What a cover keeps in any case (inf), leaves out (-inf), and chooses among (0), float64 of shape `(n,)`.

    Args:
        preference (`Preference`): A cover.
        norm (`np.ndarray`): `influence_norm`, `(n,)`.
        codes (`np.ndarray`): Class of each row, `(n,)`.
        kept (`np.ndarray`): Rows to keep of each class, `(classes,)`.
    """
    hard, cut = float(preference.hard or 0.0), float(preference.cut or 0.0)
    found = np.where(_ranks(norm) > 1 - cut, -np.inf, 0.0)
    found[rank_within(codes, -norm) < np.floor(hard * kept)[codes]] = np.inf
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

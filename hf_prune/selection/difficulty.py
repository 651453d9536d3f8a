"""Which of the many balanced subsets to take: the cost of the linear program, from how hard each row is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

SATURATED_SHARE = 0.4
"""Share of influential rows below which the model counts as saturated."""
PLENTY = 1.0
"""Rows kept for each influential row from which on a saturated model is best served by a band."""
BAND_START, BAND_SLOPE, BAND_END = 0.55, 0.25, 0.95
"""The band's quantile: its start where rows are just plenty, plus the slope for each further row, up to the end."""
CUT, CUT_FAR, CUT_OF_REMOVED = 0.1, 0.2, 0.5
"""Hardest share that a cover leaves out, the same far from saturation, and how much of the removed share it may be."""
HARDEST = 0.1
"""Share of the rows that is asked whether hard rows help."""


@dataclass(frozen=True)
class Preference:
    """
    Which rows to keep where the balance leaves a choice.

    Args:
        kind (`str`):
            `"band"` keeps the rows near `quantile`, `"cover"` leaves the hardest share `cut` out and represents the
            rest, `"none"` has no preference.
        quantile (`float`, *optional*): Centre of the band, a quantile of `influence_norm`.
        cut (`float`, *optional*): Share of all rows that is left out.
        reason (`str`): Why, in words.
        free_mean (`bool`): Whether the balance leaves the mean influence free, see [`Problem.with_free_mean`].
    """

    kind: str
    quantile: float | None
    cut: float | None
    reason: str
    free_mean: bool = False

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
    Whether the hardest tenth of the rows is predicted to lower the held-out loss, as far as is known.

    Row by row that prediction is rough; summed over the hardest tenth it tells hard rows from wrong labels.

    Args:
        norm (`np.ndarray`): `influence_norm`, `(n,)`.
        eval_loss (`np.ndarray`, *optional*): Change of the held-out loss when a row is removed, `(n,)`.
    """
    if eval_loss is None:
        return True
    hardest = np.argsort(-norm, kind="stable")[: max(1, round(HARDEST * len(norm)))]
    return float(eval_loss[hardest].astype(np.float64).sum()) >= 0


def automatic(share: float, rate: float, help: bool = True) -> Preference:
    """
    The rule behind `difficulty="auto"`.

    A saturated model needs its influential rows: while there is room for most of them, a band around a high quantile
    of the influence norm keeps the accuracy best, the higher the more room there is. Where there is not, or the model
    is far from saturated, or hard rows are predicted to harm, the hardest few go and the rest is represented. Chosen
    on dev rows of `benchmarks/study_tasks.py`: digits and MNIST (saturated), reviews and CIFAR-10 (not).

    Args:
        share (`float`): [`influential_share`] of the dataset, in (0, 1].
        rate (`float`): Share of the rows that is removed, in [0, 1).
        help (`bool`, *optional*, defaults to `True`): [`hard_rows_help`].
    """
    seen = f"the influence is carried by an effective {share:.0%} of the rows"
    room = (1 - rate) / share
    if share < SATURATED_SHARE and room >= PLENTY and help:
        quantile = min(BAND_END, BAND_START + BAND_SLOPE * (room - PLENTY))
        why = f"{seen}, for which there is room: rows near quantile {quantile:.2f} of influence_norm are kept"
        return Preference("band", quantile, None, why, free_mean=True)
    cut = CUT if share < SATURATED_SHARE else CUT_FAR
    if not help:
        why = f"{seen}, but the hardest {HARDEST:.0%} are predicted to harm the held-out loss (are labels wrong?)"
    elif share < SATURATED_SHARE:
        why = f"{seen}, more than there is room for"
    else:
        why = f"{seen}, which looks far from saturated"
    cut = min(cut, CUT_OF_REMOVED * rate)
    return Preference("cover", None, cut, f"{why}: all but the hardest {cut:.0%} are represented")


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
        return Preference("none", None, None, "the shift is bounded, and any preference adds to it")
    if difficulty == "auto":
        return automatic(influential_share(norm), rate, hard_rows_help(norm, eval_loss))
    if difficulty is None:
        return Preference("none", None, None, "no preference was asked for")
    quantile = float(difficulty)
    return Preference("band", quantile, None, f"rows near quantile {quantile:.2f} of influence_norm were asked for")


def cost(preference: Preference, norm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Cost of dropping each row, float64 of shape `(n,)`; the linear program minimises its sum over the dropped rows.

    Keeping rows near quantile q means dropping those far from it: the cost is `-|rank - q|`, with ranks of `norm` in
    [0, 1]. Ties are broken by the seed: by less than half a rank, so that no order of unequal rows is turned. A cover
    costs nothing, but -inf for the rows that it leaves out.
    """
    n = len(norm)
    ranks = (rankdata(norm) - 1) / max(n - 1, 1)
    noise = rng.random(n)
    if preference.kind == "band":
        return -np.abs(ranks - preference.quantile) + 0.5 * noise / n
    if preference.kind == "cover":
        return np.where(ranks > 1 - float(preference.cut or 0.0), -np.inf, 0.0)
    return noise


def cost_of(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Cost of dropping each row from a column of the user's, float64 of shape `(n,)`.

    Values are mapped linearly to [0, 1], the range that the program's price of imbalance is made for; a millionth of
    it breaks ties.
    """
    values = values.astype(np.float64)
    span = values.max() - values.min()
    return (values - values.min()) / (span if span > 0 else 1.0) + 1e-6 * rng.random(len(values))

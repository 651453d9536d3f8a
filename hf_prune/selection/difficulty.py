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
BAND_START, BAND_SLOPE, BAND_END = 0.5, 0.2, 0.85
"""The band's quantile: start plus slope times rows kept for each influential row, up to the end."""
SCARCE_CUT = 0.1
"""Hardest share that is cut first where a saturated model gets fewer rows than that."""
CUT_SLOPE = 0.5
"""Hardest share that is cut first far from saturation, as a part of the removed share."""
CUT_REWARD = 2.0
"""Cost that a row of the cut saves by going; more than the whole range of the other rows' costs, which is 1."""


@dataclass(frozen=True)
class Preference:
    """
    Which rows to keep where the balance leaves a choice.

    Args:
        kind (`str`):
            `"band"` keeps the rows near `quantile`, `"cut"` drops the hardest share `cut` first and then covers the
            rest evenly, `"cover"` has no preference.
        quantile (`float`, *optional*): Centre of the band, a quantile of `influence_norm`.
        cut (`float`, *optional*): Share of all rows that is cut.
        reason (`str`): Why, in words.
        by (`str`): What tells how hard a row is: `"influence_norm"`, or `"aum"`, the area under the margin.
    """

    kind: str
    quantile: float | None
    cut: float | None
    reason: str
    by: str = "influence_norm"

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


def automatic(share: float, rate: float, margins: bool = False) -> Preference:
    """
    The rule behind `difficulty="auto"`.

    It rests on two ratios: the effective share of influential rows, which falls as a model saturates, and the rows
    kept for each of them. A saturated model needs its influential rows: while there is room for most of them a
    band around a high quantile of the influence norm keeps the accuracy best, the higher the more room there is; where
    there is not, the few hardest go and the rest is covered evenly. Far from saturation the hardest rows go in any
    case, in proportion to the removed share: by the area under the margin, where the dataset has that column, which
    tells rows that are never learned better than the norm does. Calibrated on MNIST with a multilayer perceptron,
    rates .3 to .95, the band's end on held-out digits with a small ViT, the cut on CIFAR-10 with a small CNN.

    Args:
        share (`float`): [`influential_share`] of the dataset, in (0, 1].
        rate (`float`): Share of the rows that is removed, in [0, 1).
        margins (`bool`, *optional*, defaults to `False`): Whether there is a column `aum`.
    """
    seen = f"the influence is carried by an effective {share:.0%} of the rows"
    if share >= SATURATED_SHARE:
        cut = CUT_SLOPE * rate
        by = "aum" if margins else "influence_norm"
        why = (
            f"{seen}, which looks far from saturated: the hardest {cut:.1%} by {by} are cut first, then the rest is "
            "covered"
        )
        return Preference("cut", None, cut, why, by)
    room = (1 - rate) / share
    if room < PLENTY:
        why = f"{seen}, more than there is room for: the hardest {SCARCE_CUT:.0%} are cut, then the rest is covered"
        return Preference("cut", None, SCARCE_CUT, why)
    quantile = min(BAND_END, BAND_START + BAND_SLOPE * room)
    why = f"{seen}, for which there is room: rows near quantile {quantile:.2f} of influence_norm are kept"
    return Preference("band", quantile, None, why)


def choose(difficulty: str | float | None, norm: np.ndarray, rate: float, margins: bool = False) -> Preference:
    """The preference that the argument `difficulty` stands for, on `norm` `(n,)` at removed share `rate`."""
    if difficulty == "auto":
        return automatic(influential_share(norm), rate, margins)
    if difficulty is None:
        return Preference("cover", None, None, "no preference was asked for")
    quantile = float(difficulty)
    return Preference("band", quantile, None, f"rows near quantile {quantile:.2f} of influence_norm were asked for")


def cost(preference: Preference, hardness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Cost of dropping each row, float64 of shape `(n,)`; the linear program minimises its sum over the dropped rows.

    Keeping rows near quantile q means dropping those far from it: the cost is `-|rank - q|`, with ranks of `hardness`
    in [0, 1]. Ties are broken by the seed: by less than half a rank, so that no order of unequal rows is turned.
    """
    n = len(hardness)
    noise = rng.random(n)
    ranks = (rankdata(hardness) - 1) / max(n - 1, 1)
    if preference.kind == "band":
        return -np.abs(ranks - preference.quantile) + 0.5 * noise / n
    if preference.kind == "cut":
        return noise - CUT_REWARD * (ranks > 1 - float(preference.cut or 0.0))
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

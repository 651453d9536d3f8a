"""What is predicted of a selection, next to what random subsets of the same size would get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from hf_prune._core.config import UNITS
from hf_prune._core.notebook import certificate_html
from hf_prune._core.reading import Count, Positive, one_line, typed
from hf_prune._core.records import ScoringRecord
from hf_prune.selection.beside_random import beside_random
from hf_prune.selection.evidence import Evidence
from hf_prune.selection.harm import Harm
from hf_prune.selection.problem import Problem

DRAWS = 32
"""Random subsets that a selection is compared with."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over random subsets."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        return cls(float(values.mean()), float(values.std(ddof=1)))

    def __str__(self) -> str:
        return f"{self.mean:.4g} (sd {self.sd:.2g})"


@dataclass(frozen=True)
class Certificate:
    """
    First-order predictions for a subset, each next to the same figure of 32 random subsets of its size.

    Dropping the rows P and retraining on the others, which gives each of them n/(n-m) times its weight, shifts the
    result by `n/(n-m) * sum over P of (S_i - mean S)`. Residuals are the lengths of this shift on some of the
    directions, scaled up to all of them, so that the three figures of a random subset agree.

    Args:
        method (`str`): How the rows were chosen.
        n (`int`): Rows before.
        kept (`int`): Rows after.
        k (`int`): Directions of the influence column.
        audit (`int`): Directions among them that the solver did not see.
        units (`str`): What the shift and the residuals measure.
        predicted_shift (`float`): Length of the shift over all k directions.
        solver_residual (`float`): The shift estimated from the directions that the solver balanced: biased to 0.
        audit_residual (`float`, *optional*): The shift estimated from the audit directions: unbiased. None if k < 4.
        random_shift (`Spread`): `predicted_shift` of random subsets.
        random_solver_residual (`Spread`): `solver_residual` of random subsets.
        random_audit_residual (`Spread`, *optional*): `audit_residual` of random subsets.
        audit_ratio (`float`, *optional*): `audit_residual` over the mean of random subsets.
        predicted_eval_loss_change (`float`, *optional*):
            Predicted change of the mean held-out loss when trained again for as many steps; + is worse.
        random_eval_loss_change (`Spread`, *optional*): The same of random subsets.
        class_column (`str`, *optional*): Column of the classes.
        classes_before (`dict[str, int]`, *optional*): Rows of each class before.
        classes_after (`dict[str, int]`, *optional*): Rows of each class after.
        notes (`tuple[str, ...]`): What to know before trusting the figures.
        harm (`Harm`, *optional*): Which rows were dropped first as harmful; None if `harmful="keep"`.
        evidence (`Evidence`, *optional*): What a probe measured before the choice; None without one.
    """

    method: str
    n: Positive
    kept: Count
    k: Positive
    audit: Count
    units: str
    predicted_shift: float
    solver_residual: float
    audit_residual: float | None
    random_shift: Spread
    random_solver_residual: Spread
    random_audit_residual: Spread | None
    audit_ratio: float | None
    predicted_eval_loss_change: float | None
    random_eval_loss_change: Spread | None
    class_column: str | None
    classes_before: dict[str, Count] | None
    classes_after: dict[str, Count] | None
    notes: tuple[str, ...]
    harm: Harm | None = None
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        if self.kept > self.n or self.audit > self.k:
            raise ValueError(
                "The certificate keeps more rows than there are, or audits more directions: select again."
            )
        if (self.classes_before or {}).keys() != (self.classes_after or {}).keys():
            raise ValueError("The certificate has other classes after than before: select again.")
        harmful = () if self.harm is None else self.harm.dropped
        if len(set(harmful)) < len(harmful) or any(row >= self.n for row in harmful):
            raise ValueError("The certificate names harmful rows that are not among the rows: select again.")

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON-able values; `harm` and `evidence` are left out where there are none."""
        values = asdict(self) | {"notes": list(self.notes)}
        harm, _ = values.pop("harm"), values.pop("evidence")
        if harm is not None:
            values["harm"] = harm | {"dropped": list(harm["dropped"])}
        return values if self.evidence is None else values | {"evidence": self.evidence.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """
        Reads what `to_dict` wrote.

        Raises:
            `ValueError`: If a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)} - {"harm", "evidence"}
        differing = (set(values) - {"harm", "evidence"}) ^ names
        if differing:
            raise ValueError(
                f"The certificate's fields differ from this version's ({one_line(sorted(differing))}): write it again "
                "with this version."
            )
        return typed(values, cls)

    def _repr_html_(self) -> str:
        return certificate_html(self)

    @property
    def verdict(self) -> str:
        """Whether the rows are better than as many random ones, and by what evidence, in one sentence."""
        return beside_random(self)

    def explain(self) -> str:
        """The certificate in a few plain lines; the first is its verdict."""
        lines = [
            self.verdict,
            f"Kept {self.kept:,} of {self.n:,} rows ({self.kept / self.n:.1%}), method {self.method}.",
            "No probe was made, so nothing shows that other rows would be better."
            if self.evidence is None
            else self.evidence.explain(),
            f"Predicted shift {self.predicted_shift:.4g}; random subsets of this size {self.random_shift}. "
            f"Unit: {self.units}.",
        ]
        if self.audit_residual is not None:
            ratio = "" if self.audit_ratio is None else f", {self.audit_ratio:.2f} times random's"
            lines.append(
                f"On the {self.audit} of {self.k} directions the solver never saw: {self.audit_residual:.4g}{ratio} "
                f"{self.random_audit_residual}."
            )
        if self.predicted_eval_loss_change is not None:
            lines.append(
                f"Predicted change of the held-out loss {self.predicted_eval_loss_change:+.4g}; random subsets "
                f"{self.random_eval_loss_change}."
            )
        if self.classes_before is not None and self.classes_after is not None:
            lines.append(_class_line(self.class_column or "", self.classes_before, self.classes_after))
        if self.harm is not None:
            lines.append(self.harm.explain())
        return "\n".join(lines + [f"- {note}" for note in self.notes])


def _class_line(column: str, before: dict[str, int], after: dict[str, int]) -> str:
    shown = [f"{name} {before[name]:,} -> {after[name]:,}" for name in list(before)[:10]]
    rest = f", and {len(before) - 10} more" if len(before) > 10 else ""
    return f"Classes ({column}): {', '.join(shown)}{rest}."


def certify(
    problem: Problem,
    dropped: np.ndarray,
    *,
    method: str,
    seed: int,
    epsilon: float | None = None,
    scoring: ScoringRecord | None = None,
    notes: tuple[str, ...] = (),
    harm: Harm | None = None,
) -> Certificate:
    """
    Certifies a selection.

    Args:
        problem (`Problem`): The influence columns.
        dropped (`np.ndarray`): Mask of the dropped rows, bool of shape `(n,)`.
        method (`str`): How they were chosen.
        seed (`int`): Draws the random subsets.
        epsilon (`float`, *optional*): The bound that was asked for, if one was.
        scoring (`ScoringRecord`, *optional*): What is known of the influence columns.
        notes (`tuple[str, ...]`): Notes of the method.
        harm (`Harm`, *optional*): The rows among the dropped ones that went first as harmful.
    """
    m = int(dropped.sum())
    masks = np.concatenate([dropped[None], _random_masks(problem.n, m, seed)])
    factor = problem.reweight(m)
    shifts = factor * problem.centred_sums(masks)
    totals = np.linalg.norm(shifts, axis=1)
    solver = _estimates(shifts[:, : problem.solver], problem.k)
    audit = _estimates(shifts[:, problem.solver :], problem.k) if problem.audit else None
    random_audit = None if audit is None else Spread.of(audit[1:])
    losses = None
    if problem.eval_loss is not None:
        # re-weighted, the mean's own term vanishes: what the dropped rows lose in weight, the kept ones gain
        mean = problem.eval_loss.mean(dtype=np.float64) if problem.centred else 0.0
        losses = factor * np.array([(problem.eval_loss[mask] - mean).sum() for mask in masks])
        losses = _of_the_whole_run(losses, audit, scoring)
    before, after = _class_counts(problem, ~dropped)
    return Certificate(
        method=method,
        n=problem.n,
        kept=problem.n - m,
        k=problem.k,
        audit=problem.audit,
        units=UNITS["outputs"] if scoring is None else scoring.config.units,
        predicted_shift=float(totals[0]),
        solver_residual=float(solver[0]),
        audit_residual=None if audit is None else float(audit[0]),
        random_shift=Spread.of(totals[1:]),
        random_solver_residual=Spread.of(solver[1:]),
        random_audit_residual=random_audit,
        audit_ratio=float(audit[0]) / random_audit.mean
        if audit is not None and random_audit and random_audit.mean
        else None,
        predicted_eval_loss_change=None if losses is None else float(losses[0]),
        random_eval_loss_change=None if losses is None else Spread.of(losses[1:]),
        class_column=problem.classes.column if problem.classes else None,
        classes_before=before,
        classes_after=after,
        notes=notes + _honest_notes(problem, m, solver[0], audit, epsilon),
        harm=harm,
    )


def _of_the_whole_run(losses: np.ndarray, shifts: np.ndarray | None, scoring: ScoringRecord | None) -> np.ndarray:
    """
    First-order changes of the held-out loss `(sets,)` in the window to what training again without the rows changes.

    `c / w + h/2 (r / w)^2`: r is the shift of the logits that the audit directions tell, h the loss's mean curvature
    in them, and w the share of the steps that were recorded; those before are taken to count as much.
    """
    if scoring is None or shifts is None or scoring.config.space != "outputs":
        return losses
    share, curvature = scoring.recorded_share, scoring.held_out_curvature
    if not share or curvature is None:
        return losses
    return losses / share + 0.5 * curvature * (shifts / share) ** 2


def _random_masks(n: int, m: int, seed: int) -> np.ndarray:
    """`DRAWS` random sets of m rows, bool of shape `(DRAWS, n)`."""
    # a stream of its own: the draws must not repeat the subset of method="random"
    rng = np.random.default_rng([seed, DRAWS])
    masks = np.zeros((DRAWS, n), dtype=bool)
    for mask in masks:
        mask[rng.permutation(n)[:m]] = True
    return masks


def _estimates(shifts: np.ndarray, k: int) -> np.ndarray:
    """Length of the whole shift, estimated from some of its k exchangeable directions: `(sets, d)` -> `(sets,)`."""
    return np.linalg.norm(shifts, axis=1) * np.sqrt(k / shifts.shape[1])


def _class_counts(problem: Problem, kept: np.ndarray) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    if problem.classes is None:
        return None, None
    names = problem.classes.names
    before, after = problem.classes.counts().tolist(), problem.classes.counts(kept).tolist()
    return dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True))


def _honest_notes(
    problem: Problem,
    m: int,
    solver: float,
    audits: np.ndarray | None,
    epsilon: float | None,
) -> tuple[str, ...]:
    notes = []
    audit = None if audits is None else float(audits[0])
    if m:
        notes.append(
            f"The error of the prediction grows with the removed share ({m / problem.n:.0%} here), and is larger for "
            "chosen subsets than for random ones; `verify` measures the gap by retraining."
        )
        notes.append(
            "Another batch order alone moves the trained model too; `diagnose` tells how far, beside leaving rows out."
        )
    if not problem.centred:
        notes.append(
            "Shifts are plain sums over the dropped rows (centred=False): what retraining does to the weight of the "
            "others is left out."
        )
    if audit is None:
        notes.append("Fewer than 4 directions: none is left for an audit, so the predicted shift is biased to 0.")
    elif solver < 0.5 * audit:
        notes.append("The solver fits its own directions: read the audit residual, not the predicted shift.")
    if audits is not None and audits[0] > audits[1:].max():
        # a preference's own shift grows with the rows, chance's with their root
        notes.append(
            f"The audit residual is above that of all {DRAWS} random subsets: these rows differ from the others in "
            "ways that the solver's directions do not show. Where that matters more than which rows are hard, pass "
            "difficulty=None, or score with more directions."
        )
    if epsilon is not None and audit is not None and audit > epsilon:
        notes.append(f"The audit directions put the shift at {audit:.4g}, above epsilon={epsilon:g}.")
    return tuple(notes)

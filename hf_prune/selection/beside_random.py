"""Whether a choice is better than as many random rows, and by what evidence: one sentence."""

from __future__ import annotations

from typing import Any

from hf_prune._core.doubts import DOUBTED

CLEARLY = 2.0
"""Standard deviations of random subsets from which on a prediction is told apart from them."""
DRAWN = ("random", "stratified")
"""Methods that draw rows instead of choosing them."""
_UNTESTED = "`verify` tests that by retraining"


def beside_random(certificate: Any) -> str:
    """
    Says whether the rows are better than random ones: as a probe's retrainings showed, else as predicted.

    Args:
        certificate (`Certificate`): What is known of the choice.
    """
    if certificate.evidence is not None:
        return _tested(certificate.evidence)
    if certificate.kept == certificate.n:
        return "All rows were kept, so there is nothing to compare with random rows."
    if certificate.method in DRAWN:
        return "These are random rows: nothing says that they are better than others."
    doubted = any(note.startswith(DOUBTED) for note in certificate.notes)
    return f"{'By scores that may not hold (see the notes): ' if doubted else ''}{_predicted(certificate)}"


def _predicted(certificate: Any) -> str:
    if certificate.method in ("target", "less", "rds", "length"):
        return _predicted_loss(certificate)
    return _predicted_shift(certificate)


def _tested(evidence: Any) -> str:
    """A probe retrained what was taken beside random rows."""
    taken = next(candidate for candidate in evidence.candidates if candidate.name == evidence.chosen)
    figures = (
        f"{taken.gain:+.3g} {evidence.metric} (standard error {taken.error:.2g}) over {taken.seeds} "
        f"{'seeds' if taken.seeds > 1 else 'seed'} on {evidence.eval_rows:,} held-out rows"
    )
    # the first candidate was judged by `beats_random`, which counts its seeds
    beats = evidence.beats_random if taken is evidence.candidates[0] else taken.gain > CLEARLY * taken.error
    if beats:
        return f"Better than as many random rows, tested by a probe's retraining: {figures}."
    if taken.gain < -CLEARLY * taken.error:
        return f"Worse than as many random rows, tested by a probe's retraining: {figures}."
    return f"Not told apart from as many random rows by a probe's retraining: {figures}."


def _predicted_shift(certificate: Any) -> str:
    random = certificate.random_audit_residual
    if certificate.audit_residual is None or random is None or certificate.audit_ratio is None:
        return f"Whether these rows are better than random ones is neither predicted nor tested; {_UNTESTED}."
    far = (
        f"without the others the model moves {certificate.audit_ratio:.2f} times as far as without as many random rows"
    )
    if certificate.audit_residual < random.mean - CLEARLY * random.sd:
        return f"Predicted to be better than random rows, not tested: {far}; {_UNTESTED}."
    if certificate.audit_residual > random.mean + CLEARLY * random.sd:
        return f"Predicted to represent all rows less well than random rows do, not tested: {far}; {_UNTESTED}."
    return f"Not predicted to be better than random rows, and not tested: {far}; {_UNTESTED}."


def _predicted_loss(certificate: Any) -> str:
    change, random = certificate.predicted_eval_loss_change, certificate.random_eval_loss_change
    if change is None or random is None:
        return (
            f"Whether these rows serve the task better than random ones is neither predicted nor tested; {_UNTESTED}."
        )
    figures = f"the task's loss changes by {change:+.3g}, with random rows by {random}"
    if change < random.mean - CLEARLY * random.sd:
        return f"Predicted to serve the task better than random rows, not tested: {figures}; {_UNTESTED}."
    return f"Not predicted to serve the task better than random rows, and not tested: {figures}; {_UNTESTED}."

"""A certificate in plain words, for readers who do not know the method."""

from __future__ import annotations

from hf_prune._core.words import plain
from hf_prune.selection import Certificate


def plain_words(certificate: Certificate) -> list[str]:
    """
    Says what a certificate means.

    Args:
        certificate (`Certificate`): The certificate of a selection.

    Returns:
        `list[str]`: Sentences: its verdict, what was removed, and how much the model is predicted to change.
    """
    verdict = plain(certificate.verdict)
    return [verdict, _what(certificate), *_shift(certificate), *_loss(certificate), *_classes(certificate)]


def _what(certificate: Certificate) -> str:
    gone = certificate.n - certificate.kept
    share = gone / certificate.n
    return (
        f"{gone:,} of {certificate.n:,} rows ({share:.0%}) were left out and {certificate.kept:,} kept; they were "
        f"chosen by the method “{certificate.method}”."
    )


def _shift(certificate: Certificate) -> list[str]:
    if certificate.audit_ratio is None:
        return ["How far the model moves could not be checked: too few directions were scored to hold some out."]
    ratio = certificate.audit_ratio
    return [
        f"Retrained without them, the model is predicted to move {ratio:.2f} times as far as when as many random rows "
        f"are left out; lower is better. This was measured on {certificate.audit} directions that the method which "
        "chose the rows never saw."
    ]


def _loss(certificate: Certificate) -> list[str]:
    change, random = certificate.predicted_eval_loss_change, certificate.random_eval_loss_change
    if change is None:
        return []
    direction = "rise" if change > 0 else "fall"
    text = f"Retrained for as many steps, its held-out loss is predicted to {direction} by {abs(change):.3g}"
    if random is not None:
        text += f"; without as many random rows it is predicted to change by {random.mean:+.3g} (± {random.sd:.2g})"
    return [text + "."]


def _classes(certificate: Certificate) -> list[str]:
    before, after = certificate.classes_before, certificate.classes_after
    if not before or not after:
        return []
    total, left = sum(before.values()), max(1, sum(after.values()))
    moved = {name: after[name] / left - before[name] / total for name in before}
    worst = max(moved, key=lambda name: abs(moved[name]))
    if abs(moved[worst]) < 0.01:
        return [f"The {len(before)} classes keep their shares, to within one percent of the rows."]
    return [
        f"Shares of classes change: most for “{worst}”, from {before[worst] / total:.1%} to {after[worst] / left:.1%}."
    ]

"""What a report shows. Every part may be missing: the page then does not speak of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_prune.selection.evidence import Evidence
from hf_prune.verification import MeanInterval, Verification


@dataclass(frozen=True)
class Curve:
    """
    A metric against the share of rows that was pruned.

    Args:
        metric (`str`): Its name.
        full (`MeanInterval`): On all rows.
        pruned (`dict[float, MeanInterval]`): By rate.
        random (`dict[float, MeanInterval]`): By rate; random rows of the same number.
    """

    metric: str
    full: MeanInterval
    pruned: Mapping[float, MeanInterval]
    random: Mapping[float, MeanInterval] = field(default_factory=dict)

    @classmethod
    def of(cls, verifications: Mapping[float, Verification]) -> Curve:
        """From one verification for each rate, all with the same full arm."""
        first = next(iter(verifications.values()))
        return cls(
            metric=first.metric,
            full=first.full.metric,
            pruned={rate: result.pruned.metric for rate, result in verifications.items()},
            random={rate: result.random.metric for rate, result in verifications.items() if result.random},
        )


@dataclass(frozen=True)
class Gap:
    """
    Predicted and observed change of the held-out loss of one subset.

    Args:
        rate (`float`): Share of rows that was pruned.
        predicted (`float`): From the subset's certificate.
        observed (`MeanInterval`): From retraining.
        budget (`str`, *optional*, defaults to `"steps"`): What the retrainings had the same number of.
    """

    rate: float
    predicted: float
    observed: MeanInterval
    budget: str = "steps"

    @classmethod
    def of(cls, rate: float, predicted: float | None, verification: Verification) -> list[Gap]:
        """The gap of a pruned subset; none if its change of the held-out loss was not predicted or not observed."""
        observed = verification.loss_change
        # random subsets have no gap: the retrained ones are others than those of the certificate
        return [] if predicted is None or observed is None else [cls(rate, predicted, observed, verification.budget)]


@dataclass(frozen=True)
class Example:
    """
    One row, shown as what it is.

    Args:
        row (`int`): Its position in the source dataset.
        label (`str`, *optional*): Its class.
        norm (`float`): Its influence norm.
        eval_loss (`float`, *optional*): Predicted change of the held-out loss if it is removed.
        kept (`bool`): Whether it was kept.
        text (`str`, *optional*): The row's text.
        image (`bytes`, *optional*): The row's image, as PNG.
        audio (`bytes`, *optional*): The row's sound, as WAV, FLAC, Ogg or MP3.
        remark (`str`, *optional*): Why something of the row is not shown.
        reason (`str`, *optional*): Why it was dropped.
    """

    row: int
    label: str | None
    norm: float
    eval_loss: float | None
    kept: bool
    text: str | None = None
    image: bytes | None = None
    audio: bytes | None = None
    remark: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """
    A dropped row beside the kept row that stands for it.

    Args:
        dropped (`Example`): The row that went.
        kept (`Example`): The row that stayed.
        reason (`str`): What the two have in common.
    """

    dropped: Example
    kept: Example
    reason: str


@dataclass(frozen=True)
class ListedRow:
    """
    One row of the list of all rows.

    Args:
        row (`int`): Its position in the source dataset.
        label (`str`, *optional*): Its class.
        kept (`bool`): Whether it was kept.
        norm (`float`): Its influence norm.
        reason (`str`): Why it was dropped; empty of kept rows.
        text (`str`): Its text, or the beginning of it.
    """

    row: int
    label: str | None
    kept: bool
    norm: float
    reason: str
    text: str


@dataclass(frozen=True)
class InfluentialRow:
    """
    A training row with its influence on a query.

    Args:
        row (`int`): Its position in the dataset.
        influence (`float`): Predicted change of the query's loss if it is removed.
        text (`str`, *optional*): Its text.
        label (`str`, *optional*): Its class.
        tokens (`Sequence[tuple[str, bool]]`): Its labelled tokens, and whether to mark them.
    """

    row: int
    influence: float
    text: str | None
    label: str | None
    tokens: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True)
class AttributedQuery:
    """
    What the model said, and the rows behind it.

    Args:
        prompt (`str`, *optional*): What it was given.
        completion (`str`): What it said.
        loss (`float`): Of the completion.
        top (`Sequence[InfluentialRow]`): Rows that helped.
        bottom (`Sequence[InfluentialRow]`): Rows that spoke against it.
    """

    prompt: str | None
    completion: str
    loss: float
    top: Sequence[InfluentialRow]
    bottom: Sequence[InfluentialRow]


@dataclass(frozen=True)
class ReportData:
    """
    All that a report shows.

    Args:
        title (`str`): Heading of the page.
        lead (`str`, *optional*): One or two sentences below it.
        highlights (`Sequence[tuple[str, str, str]]`): Figures for the top: value, what it is, a remark.
        verified (`Mapping[float, Verification]`): What retraining showed, by the share of rows that was pruned.
        observed (`str`, *optional*): What retraining showed, where no more of it is at hand than a sentence.
        gaps (`Sequence[Gap]`): Predicted and observed.
        rate (`float`, *optional*): The rate that norms, classes, certificate and examples are about.
        kept_norms (`np.ndarray`, *optional*): Influence norms of the kept rows.
        dropped_norms (`np.ndarray`, *optional*): Influence norms of the dropped rows.
        class_column (`str`, *optional*): Column of the classes.
        classes (`dict[str, tuple[int, int]]`): Rows before and after, by class.
        words (`Sequence[str]`): What the certificate means, in plain words.
        evidence (`Evidence`, *optional*): What a probe measured before the choice.
        certificate (`str`, *optional*): The certificate's figures; lines that begin with "- " are notes.
        pairs (`Sequence[Pair]`): Dropped rows beside the kept ones that stand for them.
        listed (`Sequence[ListedRow]`): Rows to search.
        n_rows (`int`): Rows that there are, of which so many are listed.
        address (`str`, *optional*): Where the page will be on the web: a picture for previews is then written beside.
        examples (`Sequence[tuple[str, str, Sequence[Example]]]`): Title, explanation and rows.
        attributed (`Sequence[AttributedQuery]`): What the model said, and the rows behind it.
        made (`Sequence[tuple[str, str]]`): How it was made: what, and its value.
        notes (`Sequence[str]`): What to know before trusting the page.
    """

    title: str
    lead: str | None = None
    highlights: Sequence[tuple[str, str, str]] = ()
    verified: Mapping[float, Verification] = field(default_factory=dict)
    observed: str | None = None
    gaps: Sequence[Gap] = ()
    rate: float | None = None
    kept_norms: np.ndarray | None = None
    dropped_norms: np.ndarray | None = None
    class_column: str | None = None
    classes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    words: Sequence[str] = ()
    evidence: Evidence | None = None
    certificate: str | None = None
    examples: Sequence[tuple[str, str, Sequence[Example]]] = ()
    pairs: Sequence[Pair] = ()
    listed: Sequence[ListedRow] = ()
    n_rows: int = 0
    address: str | None = None
    attributed: Sequence[AttributedQuery] = ()
    made: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

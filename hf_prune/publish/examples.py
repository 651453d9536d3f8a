"""The filled examples in `model_cards/`: what the cards and provenance.json of a real run look like."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_prune.publish import card, provenance

DATASET_ID, MODEL_ID = "your-name/dataset-half", "your-name/model-on-half"
PROVENANCE, DATASET_CARD, MODEL_CARD = (
    "provenance.example.json",
    "pruned_dataset.example.md",
    "pruned_model.example.md",
)


def render(document: Mapping[str, Any], *, task: str = "text-classification") -> dict[str, str]:
    """Returns the text of the example files, by name, from the provenance of a run that was verified.

    Args:
        document (`Mapping[str, Any]`): what [`~hf_prune.publish.provenance.build`] returned, with `observed`.
        task (`str`, *optional*, defaults to `"text-classification"`): the Hub's name of the task.
    """
    return {
        PROVENANCE: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        DATASET_CARD: card.render(document, repo_id=DATASET_ID),
        MODEL_CARD: card.render_model(document, model_id=MODEL_ID, dataset_id=DATASET_ID, task=task),
    }


def write(pruned: Any, directory: str | os.PathLike[str], *, observed: Mapping[str, Any], **known: Any) -> None:
    """Writes the example files of a pruned dataset into a directory, `model_cards/` as a rule.

    Args:
        pruned (`PrunedDataset`): what [`~hf_prune.prune`] returned.
        directory (`str` or `os.PathLike`): where to.
        observed (`Mapping[str, Any]`): what `verify` measured.
        **known: what [`~hf_prune.publish.provenance.build`] takes: `source_id`, `license`.
    """
    for name, text in render(provenance.build(pruned, observed=observed, **known)).items():
        Path(directory, name).write_text(text, encoding="utf-8")

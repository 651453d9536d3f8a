"""
The filled examples in `model_cards/`: what the cards and provenance.json of a real run look like.

They are made by `hf-prune demo --out DEMO` and
`python -m hf_prune.publish.examples DEMO/pruned-0.5 model_cards bsd-3-clause`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_prune.publish import card
from hf_prune.publish.record import Record

DATASET_ID, MODEL_ID = "your-name/dataset-half", "your-name/model-on-half"
PROVENANCE, DATASET_CARD, MODEL_CARD = (
    "provenance.example.json",
    "pruned_dataset.example.md",
    "pruned_model.example.md",
)


def render(document: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text of the example files, by name, from the provenance of a run that was verified.

    Args:
        document (`Mapping[str, Any]`): what [`~hf_prune.publish.provenance.build`] returned, with `observed`.
    """
    return {
        PROVENANCE: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        DATASET_CARD: card.render(document, repo_id=DATASET_ID),
        MODEL_CARD: card.render_model(document, model_id=MODEL_ID, dataset_id=DATASET_ID),
    }


def write(pruned: str | os.PathLike[str], directory: str | os.PathLike[str], license: str | None = None) -> None:
    """Writes the example files of a pruned dataset that was verified.

    Args:
        pruned (`str` or `os.PathLike`): what `PrunedDataset.save_to_disk` wrote, with a measured gap.
        directory (`str` or `os.PathLike`): where to, `model_cards/` as a rule.
        license (`str`, *optional*): the licence of the source, which the rows on disk do not tell.
    """
    document = Record.open(os.fspath(pruned)).provenance
    if license is not None:
        document["source"]["license"] = {"license": license}
    for name, text in render(document).items():
        Path(directory, name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(*sys.argv[1:])

"""What each page with code promises, looked for when its lines have run in the directory where we are."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk

Found = Mapping[str, Any]


def saved(directory: str, rows: int, columns: list[str]) -> None:
    loaded = load_from_disk(directory)
    assert (len(loaded), loaded.column_names) == (rows, columns)


def quickstart(found: Found) -> None:
    saved("reviews-half", 60, ["text", "label"])
    assert set(found["kept"]["text"]) == set(found["pruned"]["text"])
    assert not set(found["dev"]["text"]) & set(found["test"]["text"])


def raw_rows(found: Found) -> None:
    assert found["kept"]["text"][:] == [t for t in found["by_class"]["text"] if t in set(found["pruned"]["text"])]
    assert len(found["again"]) == 50
    assert found["again"].column_names == ["text", "label"]


def early_stopping(found: Found) -> None:
    best, last = found["trainer"].state.best_global_step, found["trainer"].state.global_step
    assert best < last < 20 * 9, "it stopped early"
    assert found["last"] == last
    assert found["scored"]["influence"][:] != found["of_the_last"]["influence"][:]
    assert len(found["pruned"]) == 70


def clusters(found: Found) -> None:
    assert len(found["pruned"]) == len(found["scored"]) // 2


def rates(found: Found) -> None:
    assert [len(rows) for rows in found["path"].values()] == [84, 60, 36]
    smaller, larger = (set(found["nested"][rate]["text"]) for rate in (0.5, 0.3))
    assert smaller < larger
    certificate = found["bounded"].selection.certificate
    assert certificate.predicted_shift <= 0.05
    assert len(found["bounded"]) < 120


def wrong_labels(found: Found) -> None:
    assert max(found["suspects"]["aum"]) <= min(sorted(found["scored"]["aum"])[10:])
    assert len(found["cleaned"]) == 126
    assert found["cleaned"].selection.certificate.harm is not None


def pool(found: Found) -> None:
    assert len(found["chosen"]) == 20
    assert len(found["best"]) == 10
    assert set(found["best"].column_names) == {"messages", "kind"}


def attribution(found: Found) -> None:
    top = found["found"].top(0)
    assert [row.influence for row in top] == sorted(found["found"].influence[0], reverse=True)[:3]
    with Path("run/why.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def publish(found: Found) -> None:
    pushed = load_dataset("alice/reviews-half", split="train")
    assert pushed.column_names == ["text", "label"]
    assert pushed[:] == found["again"][:] == found["kept"][:]
    assert "hf_prune/provenance.json" in found["plan"].files


def verified(found: Found) -> None:
    assert found["result"].pruned.rows == found["result"].random.rows == 60
    assert len(found["result"].full.runs) == 2
    assert found["probed"].selection.certificate.evidence is not None
    assert "accuracy" in found["plan"].card


def text(found: Found) -> None:
    saved("run/pruned", 112, ["label", "input_ids", "attention_mask"])


def images(found: Found) -> None:
    saved("pictures-half", 36, ["image", "label"])


def language_models(found: Found) -> None:
    saved("chats-half", 24, ["messages", "kind"])


def qlora(found: Found) -> None:
    assert found["quantized"].is_quantized
    assert len(found["scored"]) == 48


def cost(found: Found) -> None:
    assert found["cost"].total_steps == 4689


def several_gpus(found: Found) -> None:
    saved("reviews-half", 70, ["text", "label"])
    assert len(list(Path("run/trajectory/ledger").glob("rank-*.jsonl"))) == 2


PROMISES: dict[str, Callable[[Found], None]] = {
    "quickstart.md": quickstart,
    "how-to/attribution.md": attribution,
    "how-to/cost.md": cost,
    "how-to/early-stopping.md": early_stopping,
    "how-to/images.md": images,
    "how-to/language-models.md": language_models,
    "how-to/pool.md": pool,
    "how-to/publish.md": publish,
    "how-to/clusters.md": clusters,
    "how-to/qlora.md": qlora,
    "how-to/rates.md": rates,
    "how-to/raw-rows.md": raw_rows,
    "how-to/several-gpus.md": several_gpus,
    "how-to/text.md": text,
    "how-to/verify.md": verified,
    "how-to/wrong-labels.md": wrong_labels,
}

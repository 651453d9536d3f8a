"""How rows were scored survives the Hub, whoever pushes them."""

from __future__ import annotations

from tests.hub_server import Hub
from tests.publish.told import told_by


def test_a_scored_dataset_knows_its_scoring_after_the_hub(tmp_path):
    with Hub() as hub:
        told = told_by("tests.publish.clients.scored", hub, tmp_path)
    assert told == {"train": True, "train[:50%]": True, "selection": True}

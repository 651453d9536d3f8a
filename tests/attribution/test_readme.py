"""What the README shows of an attribution."""

from __future__ import annotations

from tests.attribution.facts import Taught, facts
from tests.docs.figures import blocks, same_output


def test_the_readmes_attribution_prints_what_stands_below_it(taught: Taught, capsys):
    asking = next(block for block in blocks("README.md", "python") if "attribute(" in block)
    exec(asking.replace('"run/trajectory"', "record"), {"record": taught.path, "trainer": taught.trainer})
    assert same_output(next(block for block in blocks("README.md", "") if "place0" in block), capsys.readouterr().out)


def test_the_readme_names_the_rows_that_taught_the_fact(taught: Taught):
    rows, planted = facts()
    assert (len(rows), planted) == (len(taught.trainer.train_dataset), taught.planted)

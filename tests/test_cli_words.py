"""What the library says, in the words of the command line."""

from __future__ import annotations

import pytest

from hf_prune.cli.words import in_options

NAMES = ("keep", "epsilon", "method", "eval_dataset", "directions", "last_layer", "mode", "balance", "seed", "json")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("keep=0.5 is not allowed: pass keep=1.", "--keep 0.5 is not allowed: pass --keep 1."),
        ("pass method='random', or balance=False.", "pass --method random, or --balance none."),
        ("Got neither keep= nor epsilon=: pass one.", "Got neither --keep nor --epsilon: pass one."),
        ("keep is a share: keep it small, whatever the mode.", "--keep is a share: keep it small, whatever the mode."),
        ("eval_dataset has no rows.", "--eval-dataset has no rows."),
        ("make it with `add_scores(dataset, trajectory, model=model, last_layer=True)`.", None),
        ("score with `add_influence(..., eval_dataset=rows of the task)`.", None),
        ("score it with `add_influence`.", "score it with `hf-prune score`."),
        ("for others call add_influence in Python.", "for others call add_influence in Python."),
        ("pass trainer=x, a.keep=2 and keeper=3.", "pass trainer=x, a.keep=2 and keeper=3."),
        ("There is no directory my_eval_dataset/x.", "There is no directory my_eval_dataset/x."),
    ],
)
def test_arguments_are_named_as_options_and_nothing_else_is(said: str, shown: str | None):
    calls = {
        "make": "make it with `hf-prune score --scores --last-layer`.",
        "score": "score with `hf-prune score --eval-dataset <rows of the task>`.",
    }
    assert in_options(said, NAMES, NAMES) == (shown or calls[said.split()[0]])

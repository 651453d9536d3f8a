"""What tests of influence share."""

from __future__ import annotations

import pytest

from hf_prune.optimizers.adam import Adam


@pytest.fixture
def second_moment_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Adam's second moment as a sketch holds it, for comparisons of the engines: that the dense one follows it is checked
    against central differences and against real runs.
    """
    monkeypatch.setattr(Adam, "follows_second_moment", False)

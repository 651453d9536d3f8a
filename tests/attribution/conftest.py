"""The run that tests of attribution share."""

from __future__ import annotations

import pytest

from tests.attribution.facts import Taught, teach
from tests.influence.conftest import second_moment_is_held

__all__ = ["second_moment_is_held"]


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    pytest.importorskip("trl", reason="trl is an optional integration")
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def briefly(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """The same in fewer steps, for what does not depend on how well it was taught."""
    pytest.importorskip("trl", reason="trl is an optional integration")
    return teach(tmp_path_factory.mktemp("briefly"), num_train_epochs=2)

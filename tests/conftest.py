"""Settings of all tests; made before torch and the Hugging Face libraries are imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import logging
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

# The same examples in every run: a failure is one that everybody sees.
settings.register_profile("same", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("same")
# For mutation runs, which ask only whether a test fails.
settings.register_profile("first failure", settings.get_profile("same"), phases=[Phase.explicit, Phase.generate])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks come first: each takes long, and at the end one process would wait for the other's."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Every test hears what the library and transformers say, and leaves their loggers as they were."""
    loggers = [logging.getLogger(name) for name in ("hf_prune", "transformers")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate = True
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers

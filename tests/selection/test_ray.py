"""Buckets on a Ray cluster: the same rows as without one."""

from __future__ import annotations

from collections.abc import Iterator

import joblib
import pytest
import ray
from ray.util.joblib import register_ray

from hf_prune.selection import select
from tests.selection.scored import scored


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=80_000_000)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_ray_cluster_selects_the_same_rows() -> None:
    dataset = scored(600)
    alone = select(dataset, 0.5, buckets=4)
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=-1):
        assert select(dataset, 0.5, buckets=4) == alone
    assert any("run_batch" in event["name"] for event in ray.timeline()), "no bucket ran on a worker"

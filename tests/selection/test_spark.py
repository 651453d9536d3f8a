"""Buckets on a Spark cluster: the same rows as without one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import joblib
import pytest

from hf_prune.selection import select
from tests.selection.scored import scored

needed = "needs Java and `pip install pyspark joblibspark`, 0.5 GB, which the test extra leaves out"
pyspark = pytest.importorskip("pyspark.sql", reason=needed)
joblibspark = pytest.importorskip("joblibspark", reason=needed)
pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason=needed)


@pytest.fixture(params=["local[2]", "local-cluster[2,1,512]"])
def spark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Any]:
    """A session with two workers: in one virtual machine, or executors of their own under a master."""
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    builder = pyspark.SparkSession.builder.master(request.param).config("spark.local.dir", str(tmp_path))
    session = (
        builder.config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.executor.memory", "512m")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.filterwarnings("ignore:.apply_async. is deprecated:DeprecationWarning")  # what joblibspark still has
def test_a_spark_cluster_selects_the_same_rows(spark: Any) -> None:
    dataset = scored(600)
    alone = select(dataset, 0.5, buckets=4)
    joblibspark.register_spark()
    with joblib.parallel_config(backend="spark", n_jobs=2) as config:
        assert select(dataset, 0.5, buckets=4) == alone
        tracker = spark.sparkContext.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(config["backend"]._job_group)]
        assert {job.status for job in jobs} == {"SUCCEEDED"}, "no bucket ran on a worker"
        assert os.getpid() not in joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4))

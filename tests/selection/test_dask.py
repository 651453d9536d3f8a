"""Buckets on a Dask cluster of worker processes: the same rows as without one."""

from __future__ import annotations

import os

import joblib
from distributed import Client, LocalCluster, get_task_stream

from hf_prune.selection import select
from tests.selection.scored import scored


def test_a_dask_cluster_of_processes_selects_the_same_rows(tmp_path):
    dataset = scored(600)
    alone = select(dataset, 0.5, buckets=4)
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    )
    with cluster, Client(cluster) as client:
        assert len(set(client.run(os.getpid).values()) - {os.getpid()}) == 2
        with get_task_stream(client) as stream, joblib.parallel_config(backend="dask", wait_for_workers_timeout=60):
            assert select(dataset, 0.5, buckets=4) == alone
        assert {task["status"] for task in stream.data} == {"OK"}, "no bucket ran on a worker"

"""
The selection in buckets: one linear program each, and their rounding residuals carried from bucket to bucket; or
herding in each, where the kept rows are to represent all.

Every bucket's program aims at the bucket's own share of the sum of all centred vectors, which is zero: so the
fractional solutions balance exactly, and only the rounding is left over. That residual is then taken through the
buckets in turn, each swapping rows so as to cancel what the others leave (block-coordinate passes). Herding leaves a
residual too, alike in all buckets, which would add up: it is taken away likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass

import numpy as np
from datasets.utils import tqdm
from joblib import Parallel, delayed

from hf_prune.selection.classes import largest_remainder
from hf_prune.selection.distances import herd
from hf_prune.selection.linear import solve
from hf_prune.selection.problem import Problem
from hf_prune.selection.representation import Representation
from hf_prune.selection.rounding import refine, round_to_counts, swap_pool

AUTO_ABOVE = 20_000
"""Rows above which `buckets="auto"` makes more than one bucket."""
AUTO_ROWS = 10_000
"""Rows of a bucket that is made by `buckets="auto"`; its program takes about a second at 64 directions."""
ROWS_PER_CONSTRAINT = 4
"""Rows that each constraint of a bucket needs: with fewer, most weights stay fractional and rounding decides."""
PASSES = 4
"""Passes over the buckets that carry the residual, at most; they stop when one gains less than a hundredth."""
ROUNDS = 12
"""Passes over the buckets that settle what herding leaves, at most; they stop when one gains less than a hundredth."""
LOOKED_AT = 1_000
"""Rows of a bucket that each of these passes draws, to swap those that lie farthest along the residual."""
SLOW = 4_000
"""Rows above which a program may exceed two seconds, so that a progress bar is shown."""


@dataclass(frozen=True)
class Part:
    """
    What the first pass leaves of one bucket.

    Args:
        dropped (`np.ndarray`): Its dropped rows, ids.
        pool (`np.ndarray`): The rows that may still be swapped, ids.
        exact (`bool`): Whether its balance could be met.
        residual (`np.ndarray`, *optional*):
            Where the kept rows are to represent all, the sum of those dropped of each class, less its mean, `(C, d)`.
    """

    dropped: np.ndarray
    pool: np.ndarray
    exact: bool
    residual: np.ndarray | None = None


def count(buckets: int | str, problem: Problem) -> int:
    """
    Number of buckets that the argument `buckets` stands for.

    Raises:
        `ValueError`: If a bucket would have too few rows for its constraints.
    """
    if buckets == "auto":
        return 1 if problem.n <= AUTO_ABOVE else -(-problem.n // AUTO_ROWS)
    number = int(buckets)
    constraints = problem.solver + (len(problem.classes.names) if problem.classes else 1)
    most = max(1, problem.n // (ROWS_PER_CONSTRAINT * constraints))
    if number > most:
        raise ValueError(
            f"buckets={number} leaves {problem.n // number} rows a bucket, too few for {constraints} constraints: "
            f"pass at most {most}, or 'auto'."
        )
    return number


def partition(codes: np.ndarray, buckets: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Splits the rows into buckets of even class shares: shuffled, then dealt out class by class. Sorted ids each."""
    shuffled = rng.permutation(len(codes))
    dealt = shuffled[np.argsort(codes[shuffled], kind="stable")]
    return [np.sort(dealt[start::buckets]) for start in range(buckets)]


def drop_rows(
    problem: Problem,
    cost: np.ndarray,
    counts: np.ndarray,
    buckets: int,
    rng: np.random.Generator,
    *,
    represent: Representation | None = None,
) -> tuple[np.ndarray, int]:
    """
    Chooses the rows to drop.

    Args:
        problem (`Problem`): The influence columns.
        cost (`np.ndarray`): Cost of dropping each row, `(n,)`.
        counts (`np.ndarray`): Rows to drop of each class, `(classes,)`; of shape `(1,)` where nothing is balanced.
        buckets (`int`): Number of buckets.
        rng (`np.random.Generator`): Draws the buckets.
        represent (`Representation`, *optional*):
            The space in which the kept rows of each class are chosen to have the class's mean, by [`represented`];
            without it the dropped rows are chosen to have no influence, by the linear program.

    Returns:
        `tuple[np.ndarray, int]`: Mask of the dropped rows, bool of shape `(n,)`, and the number of buckets whose
        balance could not be met exactly.

    Raises:
        `RuntimeError`: If a worker process was killed.
    """
    codes = problem.classes.codes if len(counts) > 1 and problem.classes else np.zeros(problem.n, dtype=np.int64)
    rows = partition(codes, buckets, rng)
    shares = _bucket_counts([np.bincount(codes[ids], minlength=len(counts)) for ids in rows], counts)
    rate = float(counts.sum()) / problem.n

    def tasks() -> Iterator[object]:  # one bucket's vectors at a time, made when a worker asks, in single precision
        for ids, share in zip(rows, shares, strict=True):
            if represent is not None:
                vectors = represent.take(ids).astype(np.float32)
                yield delayed(represented)(ids, vectors, cost[ids], codes[ids], share)
                continue
            vectors = problem.solver_vectors(ids)
            # the centred sums of all buckets add up to zero; of plain sums each has to be zero by itself
            target = rate * vectors.sum(axis=0) if problem.centred else np.zeros(problem.solver)
            yield delayed(_first_pass)(ids, vectors.astype(np.float32), cost[ids], codes[ids], share, rate, target)

    bar = tqdm(tasks(), total=buckets, desc="Selecting", unit="bucket", disable=problem.n < SLOW or None)
    # no backend and no n_jobs: the user's `joblib.parallel_config` decides where the buckets run; and no generator of
    # results, which Ray and Spark cannot return: results are only row ids, it is the tasks that are large
    try:
        parts = Parallel()(bar)
    except BrokenExecutor as error:
        raise RuntimeError(
            "A worker process was killed while rows were selected, for lack of memory perhaps: select again, with "
            "more buckets or fewer workers (joblib.parallel_config(n_jobs=...))."
        ) from error
    dropped = np.zeros(problem.n, dtype=bool)
    for part in parts:
        dropped[part.dropped] = True
    if represent is None:
        _carry(problem, dropped, codes, [part.pool for part in parts])
    elif buckets > 1:
        residual = np.sum([part.residual for part in parts], axis=0)
        _settle(represent, residual, dropped, codes, [part.pool for part in parts if len(part.pool)], rng)
    return dropped, sum(not part.exact for part in parts)


def _bucket_counts(sizes: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Rows to drop of each class in each bucket, `(buckets, classes)`, summing to `counts` over the buckets."""
    table = np.stack(sizes)
    result = np.empty_like(table)
    for code, (column, total) in enumerate(zip(table.T, counts, strict=True)):
        result[:, code] = largest_remainder(column * (total / max(column.sum(), 1)), int(total))
    return result


def _first_pass(
    ids: np.ndarray,
    vectors: np.ndarray,
    cost: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
    rate: float,
    target: np.ndarray,
) -> Part:
    """One bucket's linear program and its rounding. `rate` is the removed share of the whole dataset."""
    # the same weight for every row meets these totals and a centred target, so that program always has a solution
    totals = rate * np.bincount(codes, minlength=len(counts))
    solution = solve(vectors.astype(np.float64), cost, codes, totals, target)
    dropped = round_to_counts(solution.weights, solution.reduced_cost, codes, counts)
    return Part(ids[dropped], ids[swap_pool(solution.reduced_cost, dropped, codes)], solution.exact)


def represented(ids: np.ndarray, vectors: np.ndarray, cost: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> Part:
    """
    One bucket by herding, class by class: each kept row brings the kept rows' mean nearest to that of the class.

    Rows of cost inf are kept and rows of cost -inf are left out, as far as counts allow; the mean is that of the
    others. Herding: Welling, ICML 2009.
    """
    kept, vectors = np.zeros(len(ids), dtype=bool), vectors.astype(np.float64)
    residual = np.zeros((len(counts), vectors.shape[1]))
    for code, dropped in enumerate(counts):
        rows = np.flatnonzero(codes == code)
        wanted = len(rows) - int(dropped)
        sure = rows[cost[rows] == np.inf][:wanted]
        others = rows[cost[rows] == 0]
        if len(sure) + len(others) < wanted:
            others = np.setdiff1d(rows, sure)
        kept[sure] = True
        kept[others[list(herd(vectors[others], wanted - len(sure)))]] = True
        gone = others[~kept[others]]
        residual[code] = vectors[gone].sum(axis=0) - len(gone) * vectors[others].sum(axis=0) / max(len(others), 1)
    return Part(ids[~kept], ids[cost == 0], True, residual)


def _carry(problem: Problem, dropped: np.ndarray, codes: np.ndarray, pools: list[np.ndarray]) -> None:
    """Block-coordinate passes: each bucket in turn cancels the residual that it is handed. Changes `dropped`."""
    residual = problem.centred_sums(dropped[None])[0, : problem.solver]
    for _ in range(PASSES):
        before = float(np.linalg.norm(residual))
        for pool in pools:
            dropped[pool], residual = refine(problem.solver_vectors(pool), dropped[pool], codes[pool], residual)
        if np.linalg.norm(residual) >= 0.99 * before:
            break


def _settle(
    represent: Representation,
    residual: np.ndarray,
    dropped: np.ndarray,
    codes: np.ndarray,
    pools: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """
    Passes over the buckets: some rows of each are swapped while that shortens their class's `residual (C, d)`. Changes
    both `dropped` and the residual.
    """
    for _ in range(ROUNDS):
        before = float(np.linalg.norm(residual))
        for pool in pools:
            rows = rng.choice(pool, min(len(pool), LOOKED_AT), replace=False)
            vectors = represent.take(rows).astype(np.float64)
            gain = np.where(dropped[rows], 1.0, -1.0) * (vectors * residual[codes[rows]]).sum(axis=1)
            best = swap_pool(gain.max() - gain, dropped[rows], codes[rows])
            for code in np.unique(codes[rows[best]]):
                own = best[codes[rows[best]] == code]
                ids, alike = rows[own], np.zeros(len(own), dtype=np.int64)
                if dropped[ids].all() or not dropped[ids].any():
                    continue  # nothing to swap
                dropped[ids], residual[code] = refine(vectors[own], dropped[ids], alike, residual[code])
        if np.linalg.norm(residual) >= 0.99 * before:
            break

"""The rows as Parquet files in the storage of a repository; a later commit makes them part of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, config
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, HfApi

from hf_prune.publish import media

_EMBED_ROWS = 100


@dataclass(frozen=True)
class Split:
    """A split of the rows that are published."""

    rows: int
    bytes: int
    """In memory."""


@dataclass(frozen=True)
class Shards:
    """Parquet files that are in the storage of the Hub, and in no commit yet."""

    additions: list[CommitOperationAdd]
    splits: dict[str, Split]

    @property
    def bytes(self) -> int:
        return sum(addition.upload_info.size for addition in self.additions)


def count(rows: Mapping[str, Dataset]) -> Shards:
    """Returns what is known of the rows before a file is made."""
    return Shards([], {name: Split(len(part), 0) for name, part in rows.items()})


def upload(
    api: HfApi,
    repo_id: str,
    rows: Mapping[str, Dataset],
    *,
    data_dir: str,
    revision: str | None,
    create_pr: bool,
    max_shard_size: int | str | None,
    num_shards: Any,
    embed_external_files: bool,
    num_proc: int | None,
) -> Shards:
    """Writes the rows of each split to Parquet files and uploads them, without a commit.

    Args:
        api (`HfApi`): the client.
        repo_id (`str`): `"org/name"`.
        rows (`Mapping[str, Dataset]`): the rows by split.
        data_dir (`str`): the folder in the repository.
        revision (`str`, *optional*): the branch.
        create_pr (`bool`): whether the commit will open a pull request.
        max_shard_size (`int` or `str`, *optional*): largest size of a file.
        num_shards (`int` or `dict`, *optional*): number of files, of each split.
        embed_external_files (`bool`): whether the content of files that rows name goes into them.
        num_proc (`int`, *optional*): how many files are made and uploaded at once.

    Returns:
        `Shards`: what a commit adds.
    """
    additions: list[CommitOperationAdd] = []
    splits = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_proc or 1) as pool:
        for name, part in rows.items():
            wanted = num_shards.get(name) if isinstance(num_shards, Mapping) else num_shards
            number = wanted or _number(part, max_shard_size, embed_external_files)

            def put(index: int, name: str = name, part: Dataset = part, number: int = number) -> tuple[Any, int]:
                shard = part.shard(num_shards=number, index=index, contiguous=True)
                file = f"{name}-{index:05d}-of-{number:05d}.parquet"
                size = _write(shard, Path(folder, file), embed_external_files)
                addition = CommitOperationAdd(f"{data_dir}/{file}", Path(folder, file))
                # the client tries again by itself, because uploading twice changes nothing
                api.preupload_lfs_files(
                    repo_id, [addition], repo_type="dataset", revision=revision, create_pr=create_pr
                )
                Path(folder, file).unlink()
                return addition, size

            made = list(pool.map(put, range(number)))
            additions += [addition for addition, _ in made]
            splits[name] = Split(len(part), sum(size for _, size in made))
    return Shards(additions, splits)


def _number(part: Dataset, max_shard_size: int | str | None, embed: bool) -> int:
    """Number of files, from the size of the first rows."""
    some = _table(part.select(range(min(len(part), 10 * _EMBED_ROWS))), embed)
    estimate = some.data.nbytes * len(part) // max(1, len(some))
    return int(estimate // convert_file_size_to_int(max_shard_size or config.MAX_SHARD_SIZE)) + 1


def _write(shard: Dataset, path: Path, embed: bool) -> int:
    """Returns the bytes of the rows in memory."""
    table = _table(shard, embed)
    table.to_parquet(path)
    return int(table.data.nbytes)


def _table(shard: Dataset, embed: bool) -> Dataset:
    """The rows with nothing around them: no indices, no format, and the content of the files that they name."""
    plain = shard.with_format("arrow")
    if embed and media.columns(shard):
        plain = plain.map(media.embed, batched=True, batch_size=_EMBED_ROWS, keep_in_memory=True)
    return plain.flatten_indices(keep_in_memory=True).with_format(None)

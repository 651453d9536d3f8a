"""The rows of a dataset that somebody else published: data files in plain formats, and nothing of this machine.

`load_dataset` takes the name of a packaged builder or of a directory here before it looks on the Hub, and a card may
name data files anywhere. So the address is one that can only be on the Hub, the card is read before `datasets` reads
it, and what `datasets` resolved is compared with the repository before one data file is opened.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetBuilder, concatenate_datasets, config, load_dataset_builder
from huggingface_hub import HfFileSystem

from hf_prune._core.reading import one_line
from hf_prune.publish import limits, media, scrub
from hf_prune.publish.limits import ReplayError

STATE = "state.json"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CONFIG = re.compile(r"[\w+ -][\w.+ -]{0,127}")
_SPLIT = re.compile(r"(\w+(?:[.-]\w+)*)(\[[0-9%:-]{0,40}\])?")
_ARROW = re.compile(r"[\w-][\w.-]*\.arrow")
_BUILDERS = ("parquet", "arrow", "csv", "json", "text", "imagefolder", "audiofolder")
_FORMATS = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_SAYS_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What `datasets` reads before it knows the data files of a repository."""


def of_hub(
    repo_id: str, commit: str, config_name: str | None, split: str, *, rows: int, token: str | None = None
) -> Dataset:
    """Loads a split of a dataset repository at a commit, from the Hub alone.

    Args:
        repo_id (`str`): `"owner/name"`.
        commit (`str`): 40 hexadecimal digits.
        config_name (`str`, *optional*): the config.
        split (`str`): a split, or a slice of one such as `"train[:50%]"`.
        rows (`int`): how many rows the split is said to have; checked before the rows of Parquet files are read.
        token (`str`, *optional*): defaults to the one that is logged in.

    Returns:
        `datasets.Dataset`: the rows.

    Raises:
        [`ReplayError`]: if a name cannot be one on the Hub, or the repository is not plain data that can be loaded.
    """
    _check_names(repo_id, commit, config_name, split)
    where = f"{repo_id} at commit {commit[:7]}"
    try:
        _check_card(repo_id, commit, token)
        builder = load_dataset_builder(f"hf://datasets/{repo_id}", config_name, revision=commit, token=token)
        _check_files(builder, f"hf://datasets/{repo_id}@{commit}/", where)
        if not Path(builder.cache_dir).is_dir():
            _check_footers(builder.config.data_files, split, rows, where, token)
        builder.download_and_prepare()
        loaded = builder.as_dataset(split=split)
        _validate(loaded)
        media.check(loaded)
        return loaded
    except ReplayError:
        raise
    except Exception as error:  # what untrusted files raise inside the parsers is open-ended
        raise ReplayError(f"{where} cannot be loaded ({_told(error)}).") from error


def of_directory(directory: Path, config_name: str, split: str, *, rows: int) -> Dataset:
    """Loads the rows of a directory that `save_to_disk` wrote, or of a copy of a repository.

    Args:
        directory (`Path`): the directory.
        config_name (`str`): the config, for a copy of a repository.
        split (`str`): the split, for a copy of a repository.
        rows (`int`): how many rows there should be.

    Returns:
        `datasets.Dataset`: the rows.

    Raises:
        [`ReplayError`]: if they are not there or cannot be read.
    """
    _check_names("a/b", "0" * 40, config_name, split)
    state = limits.READER.content(directory / STATE)
    try:
        if state is not None:
            found = _saved(directory, limits.READER.mapping(state, f"{directory}/{STATE}"))
        else:
            folder = directory / ("data" if config_name == "default" else config_name)
            found = _shards(folder, split, rows)
        media.check(found)  # a row may name any file, which would be read
        return found
    except ReplayError:
        raise
    except Exception as error:  # what untrusted files raise inside the parsers is open-ended
        raise ReplayError(f"The rows in {directory} cannot be read ({_told(error)}).") from error


def _told(error: Exception) -> str:
    """`datasets` says what happened in the cause of its own errors."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {one_line(cause)}"


def _shards(folder: Path, split: str, rows: int) -> Dataset:
    """The rows of a copy of a repository."""
    shards = sorted(folder.glob(f"{escape(split)}-*.parquet"))
    if not shards:
        raise ReplayError(
            f"{folder.parent} holds no rows to compare with: it is neither what save_to_disk wrote nor a copy of a "
            f"repository with {folder.name}/{split}-*.parquet."
        )
    found = sum(pq.read_metadata(shard).num_rows for shard in shards)
    if found != rows:
        raise ReplayError(f"The Parquet files in {folder} have {found:,} rows, not {rows:,}.")
    return Dataset.from_parquet([escape(str(shard)) for shard in shards])


def _saved(directory: Path, state: Mapping[str, Any]) -> Dataset:
    """Each file is opened under its own name: a path in the list could lead out of the directory."""
    listed = state.get("_data_files")
    named = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    names = [name for name in named if isinstance(name, str) and _ARROW.fullmatch(name)]
    if not names or len(names) != len(listed or []):
        raise ReplayError(f"{directory}/{STATE} does not list Arrow files of this directory.")
    rows = concatenate_datasets([Dataset.from_file(str(directory / name)) for name in names])
    _validate(rows)
    return rows


def _validate(rows: Dataset) -> None:
    """Arrow files are mapped into memory as they are: an offset that points out of its buffer would read beyond it."""
    rows.data.validate(full=True)


def _check_names(repo_id: str, commit: str, config_name: str | None, split: str) -> None:
    if not _REPO.fullmatch(repo_id) or repo_id.startswith("buckets/") or ".." in repo_id:
        raise ReplayError(f"{one_line(repo_id)!r} is not the 'owner/name' of a dataset on the Hub.")
    if scrub.commit(commit) is None:
        raise ReplayError(f"{one_line(commit)!r} is not a commit of 40 hexadecimal digits.")
    if config_name is not None and not _CONFIG.fullmatch(config_name):
        raise ReplayError(f"{one_line(config_name)!r} cannot be the name of a config.")
    if not _SPLIT.fullmatch(split):
        raise ReplayError(f"{one_line(split)!r} cannot be the name of a split.")


def _check_card(repo_id: str, commit: str, token: str | None) -> None:
    """The card names the data files; an absolute path or a URL among them would be read from there."""
    for name in _SAYS_FILES:
        where = f"{repo_id}/{name}"
        content = limits.from_hub(repo_id, name, commit, token, limits.CARD_BYTES)
        if content is None:
            continue
        if name.endswith(".json"):
            limits.READER.mapping(content, where)
            continue
        text = limits.utf8(content, where)
        read = limits.card_metadata if name.endswith(".md") else limits.yaml_mapping
        for pattern in _patterns(read(text, where).get("configs")):
            if not _inside(pattern):
                raise ReplayError(f"{where} names data files outside the repository: {one_line(pattern)!r}.")


def _patterns(configs: Any) -> Iterator[str]:
    """Every text under `data_files` and `data_dir` of the configs, however they are written."""
    for one in configs if isinstance(configs, list) else []:
        if isinstance(one, dict):
            yield from _texts([one.get("data_files"), one.get("data_dir")])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _inside(pattern: str) -> bool:
    return not (pattern.startswith(("/", "~")) or ":" in pattern or "\\" in pattern or ".." in pattern.split("/"))


def _check_files(builder: DatasetBuilder, prefix: str, where: str) -> None:
    """What `datasets` resolved: a builder that only parses, and files of this repository at this commit."""
    modules = {kind.__module__ for kind in type(builder).__mro__}
    if not modules & {f"datasets.packaged_modules.{name}.{name}" for name in _BUILDERS}:
        raise ReplayError(
            f"{where} holds data in a format that is not loaded from untrusted sources; supported are: "
            f"{', '.join(_BUILDERS)}."
        )
    for files in (builder.config.data_files or {}).values():
        for url in files:
            if not url.startswith(prefix) or "::" in url:
                raise ReplayError(f"{where} names a data file that is not its own: {one_line(url)!r}.")
            if not _plain(url):
                name = one_line(url.removeprefix(prefix))
                raise ReplayError(f"{where} holds {name!r}, a format that is not loaded from untrusted sources.")


def _plain(url: str) -> bool:
    name = url.rpartition("/")[2].lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.endswith(_FORMATS + media.PICTURES_AND_SOUND)


def _check_footers(files: Mapping[str, list[str]], split: str, rows: int, where: str, token: str | None) -> None:
    """Parquet says in its footer what it unpacks to."""
    fs, unpacked = HfFileSystem(token=token), 0
    for name, urls in files.items():
        footers = [_footer(fs, url) for url in urls if url.endswith(".parquet")]
        unpacked += sum(
            footer.row_group(i).total_byte_size for footer in footers for i in range(footer.num_row_groups)
        )
        found = sum(footer.num_rows for footer in footers)
        if name == split and len(footers) == len(urls) and found != rows:
            raise ReplayError(f"{where} has {found:,} rows in split {split!r}, not {rows:,}.")
    place = Path(config.HF_DATASETS_CACHE).absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if unpacked > free:
        raise ReplayError(f"{where} unpacks to {unpacked:,} bytes, and {place} has {free:,} free.")


def _footer(fs: HfFileSystem, url: str) -> pq.FileMetaData:
    with fs.open(url, "rb") as stream:
        return pq.read_metadata(stream)

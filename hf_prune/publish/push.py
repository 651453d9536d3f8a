"""Pushing a pruned dataset: the rows first, by `datasets` itself, and then card and files in one commit."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hf_prune._core.columns import InfluenceColumns
from hf_prune.publish import card, files, provenance
from hf_prune.selection.pruned import PrunedDataset

logger = logging.getLogger(__name__)

_MOVED = (409, 412)  # another commit is under way; the parent is no longer the head of the branch
_ATTEMPTS = 6


@dataclass(frozen=True)
class Plan:
    """What a push would do: returned by `push_to_hub(..., dry_run=True)`."""

    repo_id: str
    card: str
    """README.md as it would be in a repository that has none yet; the push merges it into the one that is there."""
    files: dict[str, int]
    """Bytes of each file of `hf_prune/`, and rows of each split of the data, by path."""
    provenance: dict[str, Any]


def push_to_hub(
    pruned: Any,
    repo_id: str,
    config_name: str = "default",
    set_default: bool | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool | None = False,
    max_shard_size: int | str | None = None,
    num_shards: Any = None,
    embed_external_files: bool = True,
    num_proc: int | None = None,
    *,
    include_scores: bool = False,
    include_dropped: bool = False,
    observed: Mapping[str, Any] | None = None,
    source_id: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> CommitInfo | Plan:
    """Pushes a pruned dataset with its card and provenance.

    The rows are pushed by `datasets`; then one commit adds `hf_prune/` and merges the card into the one that is there,
    losing nothing of it. Pushing again changes nothing more, and finishes a push that was interrupted. With a
    `config_name` such as `"keep-50"` the files go to `hf_prune/keep-50/`, so that several rates live side by side;
    they can also be branches (`revision`).

    Args:
        pruned (`PrunedDataset` or `DatasetDict`): what [`~hf_prune.prune`] returned, or a `DatasetDict` of which one
            split is that. The rows are pushed as they are, score columns included; in a `DatasetDict` whose other
            splits have none, without them.
        repo_id (`str`): `"org/name"`.
        config_name (`str`, *optional*, defaults to `"default"`): the config (subset).
        set_default (`bool`, *optional*): make it the default config.
        split (`str`, *optional*): defaults to the dataset's own split, or `"train"`.
        data_dir (`str`, *optional*): defaults to the config's name, or `"data"`.
        commit_message (`str`, *optional*): of both commits; defaults to what `datasets` writes, and "Add provenance".
        commit_description (`str`, *optional*): of both commits.
        private (`bool`, *optional*): for a repository that is made now.
        token (`str`, *optional*): defaults to the one that is logged in.
        revision (`str`, *optional*): the branch, made if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request with all of it.
        max_shard_size (`int` or `str`, *optional*): see `Dataset.push_to_hub`.
        num_shards (`int` or `dict`, *optional*): see `Dataset.push_to_hub`.
        embed_external_files (`bool`, *optional*, defaults to `True`): see `Dataset.push_to_hub`.
        num_proc (`int`, *optional*): see `Dataset.push_to_hub`.
        include_scores (`bool`, *optional*, defaults to `False`): put the influence columns into kept_ids.parquet.
        include_dropped (`bool`, *optional*, defaults to `False`): list the dropped ids in it too.
        observed (`Mapping[str, Any]`, *optional*): what `verify` measured, see
            [`~hf_prune.publish.provenance.build`].
        source_id (`str`, *optional*): the Hub id of the source, where `datasets` no longer knows it.
        license (`str`, *optional*): the licence of the source, where its card is not at hand.
        dry_run (`bool`, *optional*, defaults to `False`): push nothing and ask nothing of the network.

    Returns:
        `CommitInfo`: of the last commit, with `pr_url` and `pr_revision` for a pull request. With `dry_run`, a
        [`Plan`]: card and list of files.

    Raises:
        `ValueError`: for what cannot be published (a path or a secret in a field), before anything is pushed.
    """
    if repo_id.startswith("buckets/"):
        raise ValueError("A bucket has no card: push to a dataset repository, or save_to_disk and copy the files.")
    part, rows, split = _parts(pruned, split)
    known: dict[str, Any] = {"config_name": config_name, "split": split, "source_id": source_id, "license": license}
    document = provenance.build(part, **known, observed=observed)
    data_dir = data_dir or ("data" if config_name == "default" else config_name)
    included: dict[str, Any] = {
        "include_scores": include_scores,
        "include_dropped": include_dropped,
        "data_dir": data_dir,
    }
    made = files.make(part, document, repo_id=repo_id, **included)
    if dry_run:
        return _plan(repo_id, rows, split, data_dir, document, made)
    api = HfApi(token=token, library_name="hf_prune")
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    _refuse_other_split(repo_id, revision, document, token)
    info = _push_rows(
        rows,
        repo_id,
        split=split,
        config_name=config_name,
        set_default=set_default,
        data_dir=data_dir,
        commit_message=commit_message,
        commit_description=commit_description,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        max_shard_size=max_shard_size,
        num_shards=num_shards,
        embed_external_files=embed_external_files,
        num_proc=num_proc,
    )
    repo_id = info.repo_url.repo_id
    message = commit_message or f"Add provenance of {'the pruned rows' if config_name == 'default' else config_name}"

    def operations(head: str) -> list[CommitOperationAdd]:
        return _operations(repo_id, head, part, document, included, token)

    # rows that are there already open no pull request; card and files then open their own
    open_pr = bool(create_pr) and info.pr_revision is None
    last = _commit(api, repo_id, info.pr_revision or revision, message, commit_description, open_pr, operations)
    return last if info.pr_url is None else _of_pull_request(last, info)


def _parts(pruned: Any, split: str | None) -> tuple[Any, Dataset | DatasetDict, str]:
    """The pruned dataset, what is to be pushed as plain datasets, and the split that is described."""
    if isinstance(pruned, PrunedDataset):
        return pruned, _plain(pruned), split or (str(pruned.split) if pruned.split is not None else "train")
    if not isinstance(pruned, DatasetDict):
        raise TypeError(f"push_to_hub takes what prune returned, not a {type(pruned).__name__}.")
    if split is not None:
        raise ValueError("A DatasetDict names its splits itself: leave split out.")
    found = [name for name, rows in pruned.items() if isinstance(rows, PrunedDataset)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} splits of this DatasetDict are pruned, and a config describes one: push the others as "
            "plain splits or under another config_name."
        )
    part = pruned[found[0]]
    scores = InfluenceColumns(part.selection.config.column).among(part.column_names)
    if any(set(scores) - set(rows.column_names) for rows in pruned.values()):
        part = part.remove_columns(scores)  # the splits of a config have the same columns
    plain = {name: _plain(part if name == found[0] else rows) for name, rows in pruned.items()}
    return part, DatasetDict(plain), str(found[0])


def _plain(dataset: Dataset) -> Dataset:
    return Dataset(
        dataset.data,
        info=dataset.info,
        split=dataset.split,
        indices_table=dataset._indices,
        fingerprint=dataset._fingerprint,
    )


def _plan(
    repo_id: str,
    rows: Dataset | DatasetDict,
    split: str,
    data_dir: str,
    document: dict[str, Any],
    made: Mapping[str, bytes],
) -> Plan:
    splits = rows if isinstance(rows, DatasetDict) else {split: rows}
    listed = {path: len(content) for path, content in made.items()}
    listed |= {f"{data_dir}/{name}-*.parquet ({len(part)} rows)": part.num_rows for name, part in splits.items()}
    return Plan(repo_id, card.render(document, repo_id=repo_id), listed, document)


def _push_rows(rows: Dataset | DatasetDict, repo_id: str, *, split: str, **arguments: Any) -> CommitInfo:
    if isinstance(rows, Dataset):
        arguments["split"] = split
    accepted = inspect.signature(rows.push_to_hub).parameters
    unknown = {name for name, value in arguments.items() if name not in accepted and value is not None}
    if unknown:
        raise ValueError(f"The installed datasets cannot push with {', '.join(sorted(unknown))}: upgrade datasets.")
    return rows.push_to_hub(repo_id, **{name: value for name, value in arguments.items() if name in accepted})


def _refuse_other_split(repo_id: str, revision: str | None, document: dict[str, Any], token: str | None) -> None:
    """A config describes one split: the provenance of another one must not be replaced unasked."""
    path = f"{card.folder(document['config_name'])}/{files.PROVENANCE}"
    try:
        previous = _download(repo_id, path, revision or "main", token)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return
    other = files.split_of(previous)
    if other is not None and other != document["split"]:
        raise ValueError(
            f"{repo_id} describes the pruned split {other!r} in {path}: push {document['split']!r} under another "
            "config_name."
        )


def _operations(
    repo_id: str, head: str, pruned: Any, document: dict[str, Any], included: Mapping[str, Any], token: str | None
) -> list[CommitOperationAdd]:
    """What the commit on top of `head` adds: made from the card and the provenance that are there."""
    folder = card.folder(document["config_name"])
    previous = _download(repo_id, f"{folder}/{files.PROVENANCE}", head, token)
    document = files.settle(document, previous)
    existing = _download(repo_id, files.CARD, head, token)
    contents = files.make(pruned, document, repo_id=repo_id, **included)
    contents[files.CARD] = card.render(
        document, repo_id=repo_id, existing=None if existing is None else existing.decode("utf-8")
    ).encode()
    return [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in contents.items()]


def _download(repo_id: str, path: str, revision: str, token: str | None) -> bytes | None:
    try:
        return Path(hf_hub_download(repo_id, path, repo_type="dataset", revision=revision, token=token)).read_bytes()
    except EntryNotFoundError:
        return None


def _commit(
    api: HfApi,
    repo_id: str,
    revision: str | None,
    message: str,
    description: str | None,
    create_pr: bool,
    operations: Callable[[str], list[CommitOperationAdd]],
) -> CommitInfo:
    """Commits on the head that the operations were made for; if the branch moved meanwhile, makes them again."""
    for attempt in range(_ATTEMPTS):
        head = str(api.repo_info(repo_id, repo_type="dataset", revision=revision).sha)
        try:
            return api.create_commit(
                repo_id,
                operations(head),
                commit_message=message,
                commit_description=description,
                repo_type="dataset",
                revision=revision,
                parent_commit=head,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            if error.response.status_code not in _MOVED or attempt == _ATTEMPTS - 1:
                raise
            logger.info("%s moved while its card was merged; merging again.", repo_id)
            time.sleep(0.5 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _of_pull_request(last: CommitInfo, first: CommitInfo) -> CommitInfo:
    return CommitInfo(
        last.commit_url, last.commit_message, last.commit_description, last.oid, last._endpoint, first.pr_url
    )

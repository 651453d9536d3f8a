"""Pushing a pruned dataset: rows, card and provenance in one commit, so that all of it is there or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.reading import JSON_BYTES
from hf_prune.publish import card, columns, commit, files, infos, limits, merge, provenance, shards
from hf_prune.selection.pruned import PrunedDataset

_SPLIT = re.compile(r"\w+(\.\w+)*")
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\S*\.parquet")


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
    include_tokens: bool = False,
    include_dropped: bool = False,
    observed: Mapping[str, Any] | None = None,
    source_id: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> CommitInfo | Plan:
    """Pushes a pruned dataset with its card and provenance.

    One commit replaces the rows, adds `hf_prune/` and merges the card into the one that is there, losing nothing of
    it. What the Hub cannot answer for a moment is asked again. Pushing again changes nothing more. With a
    `config_name` such as `"keep-50"` the files go to `hf_prune/keep-50/`, so that several rates live side by side;
    they can also be branches (`revision`).

    Args:
        pruned (`PrunedDataset` or `DatasetDict`): what [`~hf_prune.prune`] returned, or a `DatasetDict` of which one
            split is that. Influence columns, and tokens of a text that the rows hold, are pushed where that is asked
            for.
        repo_id (`str`): `"org/name"`.
        config_name (`str`, *optional*, defaults to `"default"`): the config (subset).
        set_default (`bool`, *optional*): make it the default config.
        split (`str`, *optional*): defaults to the dataset's own split, or `"train"`.
        data_dir (`str`, *optional*): defaults to the config's name, or `"data"`.
        commit_message (`str`, *optional*): defaults to `"Upload pruned rows"`.
        commit_description (`str`, *optional*): of the commit.
        private (`bool`, *optional*): for a repository that is made now.
        token (`str`, *optional*): defaults to the one that is logged in.
        revision (`str`, *optional*): the branch, made if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request with all of it.
        max_shard_size (`int` or `str`, *optional*): see `Dataset.push_to_hub`.
        num_shards (`int` or `dict`, *optional*): see `Dataset.push_to_hub`.
        embed_external_files (`bool`, *optional*, defaults to `True`): see `Dataset.push_to_hub`.
        num_proc (`int`, *optional*): how many files are made and uploaded at once.
        include_scores (`bool`, *optional*, defaults to `False`): push the influence columns too, and put them into
            kept_ids.parquet.
        include_tokens (`bool`, *optional*, defaults to `False`): push tokens too where the rows hold their text.
        include_dropped (`bool`, *optional*, defaults to `False`): list the dropped ids in it too.
        observed (`Mapping[str, Any]`, *optional*): what `verify` measured, see
            [`~hf_prune.publish.provenance.build`].
        source_id (`str`, *optional*): the Hub id of the source, where `datasets` no longer knows it.
        license (`str`, *optional*): the licence of the source, where its card is not at hand.
        dry_run (`bool`, *optional*, defaults to `False`): push nothing and use no network.

    Returns:
        `CommitInfo`: of the commit, with `pr_url` and `pr_revision` for a pull request. With `dry_run`, a
        [`Plan`]: card and list of files.

    Raises:
        `ValueError`: for what cannot be published (a path or a secret in a field) or merged (a card that is not YAML
            or UTF-8), before anything is uploaded.
        [`~hf_prune.publish.commit.PushError`]: if the Hub refuses the commit or does not answer; says what is there.
    """
    if repo_id.startswith("buckets/"):
        raise ValueError("A bucket has no card: push to a dataset repository, or save_to_disk and copy the files.")
    part, rows, split = _parts(pruned, split, include_scores=include_scores, include_tokens=include_tokens)
    data_dir = data_dir or ("data" if config_name == "default" else config_name)
    _check_arguments(config_name, list(rows), max_shard_size, num_shards)
    known: dict[str, Any] = {"config_name": config_name, "split": split, "source_id": source_id, "license": license}
    document = provenance.build(part, **known, observed=observed)
    included: dict[str, Any] = {
        "include_scores": include_scores,
        "include_dropped": include_dropped,
        "data_dir": data_dir,
    }
    if dry_run:
        made = files.make(part, document, repo_id=repo_id, **included)
        return _plan(repo_id, rows, data_dir, document, made)
    api = HfApi(token=token, library_name="hf_prune")
    repo_id = _repository(api, repo_id, private, revision)
    push = _Push(
        api,
        repo_id,
        part,
        document,
        included,
        config_name,
        data_dir,
        set_default,
        isinstance(pruned, DatasetDict),
        token,
    )
    head = commit.head(api, repo_id, revision)
    _refuse_other_split(repo_id, head, document, token)
    push.operations(head, shards.count(rows))  # what cannot be merged is met before anything is uploaded
    return commit.make(
        api,
        repo_id,
        lambda: shards.upload(
            api,
            repo_id,
            rows,
            data_dir=data_dir,
            revision=revision,
            create_pr=bool(create_pr),
            max_shard_size=max_shard_size,
            num_shards=num_shards,
            embed_external_files=embed_external_files,
            num_proc=num_proc,
        ),
        push.operations,
        revision=revision,
        message=commit_message or "Upload pruned rows",
        description=commit_description,
        create_pr=bool(create_pr),
    )


@dataclass(frozen=True)
class _Push:
    """What one commit holds, rebuilt for each head of the branch."""

    api: HfApi
    repo_id: str
    pruned: PrunedDataset
    document: dict[str, Any]
    included: dict[str, Any]
    config_name: str
    data_dir: str
    set_default: bool | None
    whole_config: bool
    """Whether the splits that are pushed are all that the config has."""
    token: str | None
    first_seen: dict[str, str] = field(default_factory=dict)
    """Digests of the files of rows when the push began."""

    def operations(self, head: str, uploaded: shards.Shards) -> list[CommitOperationAdd | CommitOperationDelete]:
        """What the commit on top of `head` does: made from the card, the provenance and the rows that are there."""
        folder = card.folder(self.config_name)
        previous = limits.from_hub(self.repo_id, f"{folder}/{files.PROVENANCE}", head, self.token, JSON_BYTES)
        document = files.settle(self.document, previous)
        contents = files.make(self.pruned, document, repo_id=self.repo_id, **self.included)
        existing = files.text_of_card(limits.from_hub(self.repo_id, files.CARD, head, self.token, limits.CARD_BYTES))
        present = commit.listing(self.api, self.repo_id, head, self.data_dir)
        old = {path: size for path, (_, size) in present.items() if self._replaced(path, uploaded)}
        metadata = infos.update(
            merge.metadata(existing),
            uploaded,
            config_name=self.config_name,
            data_dir=self.data_dir,
            features=self.pruned.features,
            replaced=sum(old.values()),
            set_default=self.set_default,
            whole_config=self.whole_config,
            unlisted=sorted({found[1] for path in present if (found := _SHARD.fullmatch(path.rpartition("/")[2]))}),
        )
        merged = card.render(document, repo_id=self.repo_id, existing=merge.with_metadata(existing, metadata))
        contents[files.CARD] = merged.encode()
        return [
            *self._changed(uploaded, {path: digest for path, (digest, _) in present.items()}),
            *[CommitOperationDelete(path) for path in old.keys() - {one.path_in_repo for one in uploaded.additions}],
            *[CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in contents.items()],
        ]

    def _changed(self, uploaded: shards.Shards, present: dict[str, str]) -> list[CommitOperationAdd]:
        """The files that are not there already; the client leaves out what was there when it was uploaded."""
        if not self.first_seen:
            self.first_seen.update(present)
        changed = []
        for one in uploaded.additions:
            path, digest = one.path_in_repo, one.upload_info.sha256.hex()
            if present.get(path) == digest:
                continue
            if self.first_seen.get(path) == digest:
                raise ValueError(f"Somebody else replaced {path} in {self.repo_id} during the push: push again.")
            changed.append(one)
        return changed

    def _replaced(self, path: str, uploaded: shards.Shards) -> bool:
        name = path.rpartition("/")[2]
        return self.whole_config or any(name.startswith(f"{split}-") for split in uploaded.splits)


def _parts(pruned: Any, split: str | None, **included: bool) -> tuple[PrunedDataset, dict[str, Dataset], str]:
    """The pruned dataset, the rows of each split as plain datasets, and the split that is described."""
    if isinstance(pruned, PrunedDataset):
        split = split or (str(pruned.split) if pruned.split is not None else "train")
        part = columns.published(pruned, **included)
        return part, {split: compat.as_class(part, Dataset)}, split
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
    whole = pruned[found[0]]
    part = columns.published(whole, **included)
    scores = InfluenceColumns(part.selection.config.column).among(part.column_names)
    if any(set(scores) - set(rows.column_names) for rows in pruned.values()):
        part = part.remove_columns(scores)  # the splits of a config have the same columns
    gone = set(whole.column_names) - set(part.column_names)
    others = {str(name): rows for name, rows in pruned.items() if name != found[0]}
    plain = {
        name: compat.as_class(rows.remove_columns([c for c in rows.column_names if c in gone]), Dataset)
        for name, rows in ({str(found[0]): part} | others).items()
    }
    return part, {str(name): plain[str(name)] for name in pruned}, str(found[0])


def _check_arguments(config_name: str, splits: list[str], max_shard_size: Any, num_shards: Any) -> None:
    """What `Dataset.push_to_hub` refuses too."""
    merge.markers(config_name)
    if config_name == "data":
        raise ValueError("config_name='data' is the folder of the default config: choose another name.")
    for split in splits:
        if not _SPLIT.fullmatch(split):
            raise ValueError(f"{split!r} cannot be the name of a split: use letters, digits, '_' and '.'.")
    if max_shard_size is not None and num_shards is not None:
        raise ValueError("max_shard_size and num_shards both say how many files there are: pass one of them.")


def _plan(
    repo_id: str, rows: Mapping[str, Dataset], data_dir: str, document: dict[str, Any], made: Mapping[str, bytes]
) -> Plan:
    listed = {path: len(content) for path, content in made.items()}
    listed |= {f"{data_dir}/{name}-*.parquet ({len(part)} rows)": part.num_rows for name, part in rows.items()}
    return Plan(repo_id, card.render(document, repo_id=repo_id), listed, document)


def _repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """The full id of the repository, which is made if it is not there, as is the branch."""
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    try:
        full = str(api.repo_info(repo_id, repo_type="dataset").id)
    except RepositoryNotFoundError:
        full = str(api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(full, branch=revision, repo_type="dataset", exist_ok=True)
    return full


def _refuse_other_split(repo_id: str, head: str, document: dict[str, Any], token: str | None) -> None:
    """A config describes one split: the provenance of another one must not be replaced unasked."""
    path = f"{card.folder(document['config_name'])}/{files.PROVENANCE}"
    other = files.split_of(limits.from_hub(repo_id, path, head, token, JSON_BYTES))
    if other is not None and other != document["split"]:
        raise ValueError(
            f"{repo_id} describes the pruned split {other!r} in {path}: push {document['split']!r} under another "
            "config_name."
        )

"""One commit with all that is published, repeated while the branch moves or the Hub does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_prune._core.reading import one_line
from hf_prune.publish import patience
from hf_prune.publish.shards import Shards

logger = logging.getLogger(__name__)

_MOVED = (409, 412)  # another commit is under way; the parent is no longer the head of the branch

Operations = list[CommitOperationAdd | CommitOperationDelete]


class PushError(RuntimeError):
    """The Hub refused a commit or did not answer; the message says what is there, and what completes it."""


def head(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Returns the commit that a branch is at."""
    return str(api.repo_info(repo_id, repo_type="dataset", revision=revision).sha)


def listing(api: HfApi, repo_id: str, commit: str, folder: str) -> dict[str, tuple[str, int]]:
    """Returns the files of a folder: path to digest (SHA-256 for what lies in the storage) and bytes."""
    try:
        entries = list(api.list_repo_tree(repo_id, folder, revision=commit, repo_type="dataset"))
    except EntryNotFoundError:
        return {}
    found = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size) for entry in found}


def make(
    api: HfApi,
    repo_id: str,
    upload: Callable[[], Shards],
    operations: Callable[[str, Shards], Operations],
    *,
    revision: str | None,
    message: str,
    description: str | None,
    create_pr: bool,
) -> CommitInfo:
    """Uploads the rows, and makes the one commit that holds them and all that is said of them.

    A branch that moved, and a Hub that does not answer for a moment, are met by trying again on the new head: the
    operations are made for that head, so a commit that arrived although its answer did not is not made twice.

    Args:
        api (`HfApi`): the client.
        repo_id (`str`): `"org/name"`.
        upload (`Callable[[], Shards]`): puts the rows into the storage of the Hub.
        operations (`Callable[[str, Shards], list]`): what the commit does on top of a head.
        revision (`str`, *optional*): the branch.
        message (`str`): of the commit.
        description (`str`, *optional*): of the commit.
        create_pr (`bool`): open a pull request.

    Raises:
        [`PushError`]: says what is there and what is not.
    """
    try:
        uploaded = upload()
    except Exception as error:
        if patience.of_the_hub(error):
            raise PushError(_untouched(repo_id, "the rows could not be uploaded", error)) from error
        raise
    for attempt in range(patience.ATTEMPTS):
        sent = False
        try:
            parent = head(api, repo_id, revision)
            todo = operations(parent, uploaded)
            sent = True
            return api.create_commit(
                repo_id,
                todo,
                commit_message=message,
                commit_description=description,
                repo_type="dataset",
                revision=revision,
                parent_commit=parent,
                create_pr=create_pr,
            )
        except Exception as error:
            if not patience.of_the_hub(error):
                raise
            _give_up(error, repo_id, last=attempt == patience.ATTEMPTS - 1, sent=sent, once=create_pr)
            logger.info("The commit to %s was not made (%s); trying again.", repo_id, one_line(error))
            patience.wait(attempt)
    raise AssertionError("the last attempt returns or raises")


def _give_up(error: Exception, repo_id: str, *, last: bool, sent: bool, once: bool) -> None:
    """Raises where another attempt would not help, or might do what was done already a second time."""
    status = patience.status(error)
    if sent and (status is None or status >= 500) and (last or once):
        raise PushError(_unknown(repo_id, error)) from error
    if last or not (status in _MOVED or patience.passing(error)):
        raise PushError(_untouched(repo_id, "the commit was not made", error)) from error


def _untouched(repo_id: str, what: str, error: Exception) -> str:
    return (
        f"Nothing was published: {what} ({_told(error)}). {repo_id} is as it was, without the new rows, card and "
        "provenance; call push_to_hub again with the same arguments to publish all of it."
    )


def _unknown(repo_id: str, error: Exception) -> str:
    return (
        f"The Hub did not answer the commit to {repo_id} ({_told(error)}): rows, card and provenance are all there "
        "or none of them is. Call push_to_hub again with the same arguments: it publishes them, or changes nothing."
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

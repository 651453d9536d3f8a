"""What the Hub of `tests/hub_server.py` holds: repositories with their commits, in memory, and who may change them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

DATE = "2026-01-01T00:00:00.000Z"
TOKENS = {"hf_aliceAliceAliceAliceAliceAliceAlic": "alice", "hf_bobBobBobBobBobBobBobBobBobBobBobB": "bob"}
ALICE, BOB = TOKENS
ORGANIZATIONS = {"alice": ["me"], "bob": []}


def may(user: str | None, owner: str) -> bool:
    """Whether a user may see an owner's private repositories, and write to them."""
    return user is not None and (owner == user or owner in ORGANIZATIONS[user])


class RefusedError(Exception):
    """An error answer: status, the Hub's error code and a message."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class DroppedError(Exception):
    """The connection is to be cut without an answer."""


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares with its own file, to skip what has not changed."""
        return self.sha256 if self.lfs else self.git


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    kind: str
    id: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: dict[str, Blob]) -> Commit:
        parent = self.refs.get(ref)
        listing = json.dumps([parent, title, sorted((path, blob.git) for path, blob in files.items())])
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), parent, title, dict(files))
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        sha = self.refs.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

"""A Hub on loopback: the HTTP endpoints that `huggingface_hub` and `datasets` speak, over a store like git in memory.

`with Hub() as hub:` serves at `hub.url` until the block ends. Clients are the unmodified libraries, in a subprocess
whose environment is `hub.environment(home)`, because they read their endpoint when they are imported. Faults are
armed with `hub.fault(...)`, or from the client with `POST /_fault`. `POST /_push` stores files as `git push` does,
`POST /_reset` takes commits back, and `GET /_requests` tells what was asked so far.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_store import ALICE, DATE, ORGANIZATIONS, TOKENS, Blob, Commit, DroppedError, RefusedError, Repo, may


class Hub:
    """The server, its store, and the faults that are armed."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.past: dict[str, Commit] = {}
        """Commits of repositories that are gone."""
        self.requests: list[str] = []
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Any, **extra: str) -> dict[str, str]:
        """The environment of a client process; `HF_HUB_OFFLINE` is left out, whatever the tests run under."""
        dropped = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        client = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_TOKEN": ALICE,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return kept | client | extra

    def fault(self, method: str, path: str, action: str, skip: int = 0, times: int = 1) -> None:
        """Arms a fault on the (skip + 1)-th request that matches, and on those after it.

        The actions are `drop` (the line is cut), `late` (the request is carried out and then the line is cut), `move`
        (the branch gets a commit by somebody else), a status such as `500`, and `clear` (no fault any more).
        `kill 123` and `late kill 123` end the process of that number, with signal 9, where the line is cut otherwise.
        An empty method is any.
        """
        self.faults = [one for one in self.faults if (one["method"], one["path"]) != (method, path)]
        if action != "clear":
            self.faults.append({"method": method, "path": path, "action": action, "skip": skip, "times": times})

    def armed(self, method: str, path: str) -> str | None:
        for fault in self.faults:
            if fault["method"] in ("", method) and re.search(fault["path"], path):
                if fault["skip"]:
                    fault["skip"] -= 1
                    return None
                fault["times"] -= 1
                if not fault["times"]:
                    self.faults.remove(fault)
                return str(fault["action"])
        return None

    def repo(self, repo_id: str, kind: str = "datasets") -> Repo:
        return self.repos[kind, repo_id]

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        return self.repo(repo_id).at(revision).files[path].content

    def files(self, repo_id: str, revision: str = "main") -> list[str]:
        return sorted(self.repo(repo_id).at(revision).files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    late = False
    victim: int | None = None
    """The process that ends where the line is cut."""

    def log_message(self, *args: Any) -> None:
        """The tests read `hub.requests` instead."""

    def do_GET(self) -> None:
        self.handle_one()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def handle_one(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(split.query).items()}
        self.hub.requests.append(f"{self.command} {split.path}")
        self.late, self.victim = False, None
        try:
            self.carry_out(split.path)
        except DroppedError:
            if self.victim is not None:
                os.kill(self.victim, signal.SIGKILL)
            # half of the request is read and nothing is answered: what a cut line looks like
            with suppress(ConnectionError):
                self.rfile.read(0 if self.late else int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            self.connection.close()

    def carry_out(self, path: str) -> None:
        try:
            action = self.hub.armed(self.command, path)
            if action and "kill " in action:
                action, _, victim = action.partition("kill ")
                self.victim, action = int(victim), action.strip() or "drop"
            if action == "drop":
                raise DroppedError
            self.body = self.read_body()
            if action and action.isdigit():
                raise RefusedError(int(action), "", "A fault of the test")
            self.late = action == "late"
            with self.hub.lock:
                if action == "move":
                    self.move(path)
                self.route(path)
        except RefusedError as refused:
            head = {"X-Error-Code": refused.code} if refused.code else {}
            if refused.message:
                head["X-Error-Message"] = refused.message
            self.answer({"error": refused.message or refused.code}, refused.status, head)

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.late:
            raise DroppedError
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for key, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- who may do what ---------------------------------------------------------------------------------------------
    def user(self) -> str | None:
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        user = TOKENS.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        return user

    def find(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        user = self.user()
        repo = self.hub.repos.get((kind, repo_id))
        owner = repo_id.split("/")[0]
        if repo is None or (repo.private and not may(user, owner)):
            raise RefusedError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and not may(user, owner):
            raise RefusedError(403, "", "You are not allowed to write to this repository")
        return repo

    def move(self, path: str) -> None:
        """Somebody else commits to the branch between the client's look and its commit."""
        found = re.fullmatch(r"/api/(\w+)/([^/]+/[^/]+)/commit/([^/]+)", path)
        assert found, path
        repo, ref = self.hub.repos[found[1], found[2]], unquote(found[3])
        readme = repo.at(ref).files.get("README.md", Blob(b"", False)).content + b"\nA line by somebody else.\n"
        repo.commit(ref, "Elsewhere", repo.at(ref).files | {"README.md": Blob(readme, False)})

    # -- routes ------------------------------------------------------------------------------------------------------
    def route(self, path: str) -> None:
        for method, pattern, act in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return act(self, *[unquote(part) if part else "" for part in found.groups()])
        raise RefusedError(404, "", f"{self.command} {path} is not spoken here")

    def arm(self) -> None:
        self.hub.fault(**json.loads(self.body))
        self.answer({})

    def told(self) -> None:
        self.answer(self.hub.requests)

    def push(self) -> None:
        """What `git push` does: nobody looks at the content, as the client of the Hub would."""
        asked = json.loads(self.body)
        repo = self.hub.repos.setdefault(("datasets", asked["repo"]), Repo("datasets", asked["repo"], False))
        files = repo.at("main").files if repo.refs else {}
        added = {path: Blob(base64.b64decode(content), False) for path, content in asked["files"].items()}
        self.answer({"sha": repo.commit("main", "Push", files | added).sha})

    def reset(self) -> None:
        """A repository as it was at a commit, or gone; nothing waits in the storage."""
        asked = json.loads(self.body)
        known = "datasets", asked["repo"]
        self.hub.lfs.clear()
        if asked["commit"] is None:
            gone = self.hub.repos.pop(known, None)
            self.hub.past |= {} if gone is None else gone.commits
        else:
            self.hub.repos[known].refs = {"main": asked["commit"]}
        self.answer({})

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise RefusedError(401, "", "Invalid username or password.")
        self.answer(
            {
                "type": "user",
                "name": user,
                "orgs": [{"name": name} for name in ORGANIZATIONS[user]],
                "auth": {"type": "access_token"},
            }
        )

    def create(self) -> None:
        asked, user = json.loads(self.body), self.user()
        owner, kind = asked.get("organization") or user, asked.get("type", "model") + "s"
        repo_id = f"{owner}/{asked['name']}"
        if not may(user, owner):
            raise RefusedError(403 if user else 401, "", "You have no rights in this namespace")
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        repo = Repo(kind, repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", "initial commit", {".gitattributes": Blob(b"*.parquet filter=lfs\n", False)})
        self.hub.repos[kind, repo_id] = repo
        self.answer({"url": url, "name": repo_id})

    def info(self, kind: str, repo_id: str, revision: str = "") -> None:
        repo = self.find(kind, repo_id)
        commit = repo.at(revision or "main")
        siblings = [{"rfilename": path, "size": len(blob.content)} for path, blob in sorted(commit.files.items())]
        self.answer(
            {
                "id": repo_id,
                "sha": commit.sha,
                "private": repo.private,
                "tags": [],
                "siblings": siblings,
                "lastModified": DATE,
                "createdAt": DATE,
                "downloads": 0,
                "likes": 0,
                "disabled": False,
                "gated": False,
            }
        )

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        files = self.find(kind, repo_id, write=True).at(revision).files
        answer = []
        for item in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(item["sample"]) or item["path"].endswith((".parquet", ".safetensors"))
            old = files.get(item["path"])
            answer.append(
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if binary else "regular",
                    "shouldIgnore": False,
                    "oid": old.oid if old else None,
                }
            )
        self.answer({"files": answer})

    def lfs_batch(self, kind: str, repo_id: str) -> None:
        self.find((kind or "models/").rstrip("/"), repo_id, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/_lfs/{item['oid']}"}}
            objects.append(item | ({} if item["oid"] in self.hub.lfs else {"actions": upload}))
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "", "The content has another sha256")
        self.hub.lfs[oid] = self.body
        self.answer({})

    def make_commit(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.find(kind, repo_id, write=True)
        head, *lines = [json.loads(line) for line in self.body.splitlines()]
        parent = head["value"].get("parentCommit")
        if parent and parent != repo.at(revision).sha:
            raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.at(revision).files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise RefusedError(400, "", f"LFS object of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.lfs[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        answer = {}
        if self.query.get("create_pr"):
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            repo.refs[f"refs/pr/{number}"] = repo.at(revision).sha
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{kind}/{repo_id}/discussions/{number}"
        sha = repo.commit(revision, head["value"]["summary"], files).sha
        self.answer(answer | {"commitOid": sha, "commitUrl": f"{self.hub.url}/{kind}/{repo_id}/commit/{sha}"})

    def entry(self, path: str, commit: Commit) -> dict[str, Any] | None:
        last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": DATE}}
        if path in commit.files:
            blob = commit.files[path]
            size = len(blob.content)
            lfs = {"lfs": {"oid": blob.sha256, "size": size, "pointerSize": 134}} if blob.lfs else {}
            return {"type": "file", "path": path, "oid": blob.git, "size": size} | lfs | last
        if any(name.startswith(path + "/") for name in commit.files):
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} | last
        return None

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        commit = self.find(kind, repo_id).at(revision)
        paths = parse_qs(self.body.decode()).get("paths", [])
        self.answer([entry for path in paths if (entry := self.entry(path.strip("/"), commit))])

    def tree(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        commit = self.find(kind, repo_id).at(revision)
        folder = folder.strip("/")
        inside = [name for name in commit.files if not folder or name.startswith(folder + "/")]
        if folder and not inside:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        depth = len(folder.split("/")) if folder else 0
        paths: set[str] = set()
        for name in inside:
            parts = name.split("/")
            deepest = len(parts) if self.query.get("recursive", "").lower() in ("true", "1") else depth + 1
            paths.update("/".join(parts[:n]) for n in range(depth + 1, deepest + 1))
        self.answer([self.entry(path, commit) for path in sorted(paths)])

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        repo = self.find(kind, repo_id, write=True)
        if name in repo.refs:
            raise RefusedError(409, "", "Reference already exists")
        repo.refs[name] = repo.at(json.loads(self.body or b"{}").get("startingPoint", "main")).sha
        self.answer({})

    def references(self, kind: str, repo_id: str) -> None:
        refs = self.find(kind, repo_id).refs
        found = {"branches": [], "pullRequests": [], "tags": [], "converts": []}
        for name, sha in refs.items():
            part, ref = ("pullRequests", name) if name.startswith("refs/pr/") else ("branches", f"refs/heads/{name}")
            found[part].append({"name": name, "ref": ref, "targetCommit": sha})
        self.answer(found)

    def tag(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.find(kind, repo_id, write=True)
        repo.tags[json.loads(self.body)["tag"]] = repo.at(revision).sha
        self.answer({})

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        commit = self.find((kind or "models/").rstrip("/"), repo_id).at(revision)
        head = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            return self.answer({}, 404, head | {"X-Error-Code": "EntryNotFound"})
        blob = commit.files[path]
        head["ETag"] = f'"{blob.oid}"'
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(blob.content, 200, head)
        size = len(blob.content)
        first = int(asked[1]) if asked[1] else size - int(asked[2])
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        self.answer(blob.content[first : last + 1], 206, head | {"Content-Range": f"bytes {first}-{last}/{size}"})


_API = r"/api/(models|datasets)/([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/_fault", Handler.arm),
    ("POST", "/_push", Handler.push),
    ("POST", "/_reset", Handler.reset),
    ("GET", "/_requests", Handler.told),
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", lambda handler: handler.answer({"errors": [], "warnings": []})),
    ("GET", _API, Handler.info),
    ("GET", _API + r"/revision/([^/]+)", Handler.info),
    ("POST", _API + r"/preupload/([^/]+)", Handler.preupload),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(\w+)", Handler.lfs_put),
    ("POST", _API + r"/commit/([^/]+)", Handler.make_commit),
    ("POST", _API + r"/paths-info/([^/]+)", Handler.paths_info),
    ("GET", _API + r"/tree/([^/]+)(/.*)?", Handler.tree),
    ("POST", _API + r"/branch/([^/]+)", Handler.branch),
    ("POST", _API + r"/tag/([^/]+)", Handler.tag),
    ("GET", _API + r"/refs", Handler.references),
    ("GET HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]

"""A client whose Hub misbehaves: a branch that moves, a connection that drops, rights that are missing."""

from collections.abc import Callable
from typing import Any

from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_prune.publish import patience
from hf_prune.publish.commit import PushError
from hf_prune.publish.replay import replay
from hf_prune.selection import prune
from tests.hub_store import BOB
from tests.publish import samples
from tests.publish.clients.wire import fault, push, requests

BAD_CARDS = {
    "list": b"---\n- a\n---\n",
    "tab": b"---\na:\t- b\n\tc\n---\n",
    "anchors": b"---\na: &a\n  b: *a\n---\n",
    "deep": b"---\na: " + b"[" * 100_000 + b"\n---\n",
    "no-utf-8": b"---\nlicense: mit\n---\n# Caf\xe9\n",
    "configs": b"---\nconfigs: 7\n---\n",
    "infos": b"---\ndataset_info: [7]\n---\n",
}


def state(repo_id: str) -> dict[str, Any]:
    """What is on the branch, and how many commits made it."""
    api = HfApi()
    return {
        "head": api.dataset_info(repo_id).sha,
        "files": sorted(api.list_repo_files(repo_id, repo_type="dataset")),
        "uploads": sum(line.startswith("PUT /_lfs") for line in requests()),
    }


def said(act: Callable[[], Any]) -> str:
    try:
        return str(act().oid)
    except (PushError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def suffer() -> dict[str, Any]:
    """Returns what happened."""
    told: dict[str, Any] = {}
    patience.FIRST_WAIT = 0.001
    pruned, other = prune(samples.scored(), keep=0.5), prune(samples.scored(seed=3), keep=0.25)

    # what goes on at the one commit of a push that replaces another one
    told["commit"] = {}
    for name, action, times in (
        ("dropped", "drop", 1),
        ("late", "late", 1),
        ("500", "500", 3),
        ("429", "429", 1),
        ("moved", "move", 2),
        ("403", "403", 1),
        ("500-for-ever", "500", 99),
        ("412-for-ever", "412", 99),
        ("dropped-for-ever", "drop", 99),
        ("late-for-ever", "late", 99),
    ):
        repo_id = f"alice/commit-{name}"
        pruned.push_to_hub(repo_id)
        before = state(repo_id)
        fault("POST", f"/{repo_id}/commit/", action, times=times)
        words = said(lambda repo_id=repo_id: other.push_to_hub(repo_id))
        fault("POST", f"/{repo_id}/commit/", "clear")
        after = state(repo_id)
        rows = len(load_dataset(repo_id, split="train", revision=after["head"]))
        replayed = len(replay(repo_id, source=samples.plain()))
        again = said(lambda repo_id=repo_id: other.push_to_hub(repo_id))
        told["commit"][name] = {
            "words": words,
            "moved": before["head"] != after["head"],
            "rows": [rows, replayed],
            "again_moved": state(repo_id)["head"] != after["head"],
            "again": again,
            "finally": len(replay(repo_id, source=samples.plain())),
        }

    # a new repository holds nothing until it holds all
    fault("POST", "/alice/new/commit/", "403")
    told["new"] = said(lambda: pruned.push_to_hub("alice/new"))
    told["new_files"] = state("alice/new")["files"]

    # a pull request is not opened twice
    pruned.push_to_hub("alice/request")
    fault("POST", "/alice/request/commit/", "late")
    told["request"] = said(lambda: other.push_to_hub("alice/request", create_pr=True))
    told["requests"] = [
        ref.ref
        for ref in HfApi()
        .list_repo_refs("alice/request", repo_type="dataset", include_pull_requests=True)
        .pull_requests
        or []
    ]

    # the line is cut while a shard goes up
    fault("PUT", "/_lfs/", "drop")
    fault("POST", "/alice/shard/preupload/", "500")
    prune(samples.scored(seed=9), keep=0.5).push_to_hub("alice/shard")
    told["shard_rows"] = len(load_dataset("alice/shard", split="train"))
    fault("POST", "/alice/shard/preupload/", "403", times=99)
    told["no_upload"] = said(lambda: other.push_to_hub("alice/shard"))
    fault("POST", "/alice/shard/preupload/", "clear")
    told["shard_rows_after"] = len(replay("alice/shard", source=samples.plain()))

    # somebody else commits between our look at the card and our commit
    pruned.push_to_hub("alice/busy")
    fault("POST", "/alice/busy/commit/", "move")
    other.push_to_hub("alice/busy")
    told["busy_card"] = str(DatasetCard.load("alice/busy"))
    told["busy_rows"] = len(replay("alice/busy", source=samples.plain()))

    # a card that cannot be merged is met before anything goes up
    told["cards"] = {}
    for name, content in BAD_CARDS.items():
        repo_id = f"alice/card-{name}"
        push(repo_id, {"README.md": content})
        before = state(repo_id)
        words = said(lambda repo_id=repo_id: pruned.push_to_hub(repo_id))
        told["cards"][name] = {"words": words, "same": state(repo_id) == before}

    # rights
    try:
        pruned.push_to_hub("alice/busy", token="hf_wrongWrongWrongWrongWrongWrongWro")
    except HfHubHTTPError as error:
        told["wrong_token"] = error.response.status_code
    told["strangers_token"] = said(lambda: pruned.push_to_hub("alice/busy", token=BOB))
    pruned.push_to_hub("alice/hidden", private=True)
    told["own_private"] = len(load_dataset("alice/hidden", split="train"))
    for name, token in (("anonymous", False), ("stranger", BOB)):
        try:
            HfApi(token=token).dataset_info("alice/hidden")
        except RepositoryNotFoundError:
            told[f"{name}_sees_private"] = False
    return told

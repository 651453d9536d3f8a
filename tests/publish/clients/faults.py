"""A client whose Hub misbehaves: a branch that moves, a connection that drops, rights that are missing."""

import json
import os
import urllib.request
from typing import Any

from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_prune.publish.replay import replay
from hf_prune.selection import prune
from tests.hub_server import BOB
from tests.publish import samples


def fault(method: str, path: str, action: str, skip: int = 0) -> None:
    body = json.dumps({"method": method, "path": path, "action": action, "skip": skip}).encode()
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_fault", body, method="POST")).read()


def suffer() -> dict[str, Any]:
    """Returns what happened."""
    told: dict[str, Any] = {}
    pruned = prune(samples.scored(), keep=0.5)

    # the line is cut in the middle of the second commit: rows are there, card and files are not
    fault("POST", "/alice/cut/commit/", "drop", skip=1)
    try:
        pruned.push_to_hub("alice/cut")
    except Exception as error:
        told["cut"] = type(error).__module__
    told["files_after_cut"] = HfApi().list_repo_files("alice/cut", repo_type="dataset")
    pruned.push_to_hub("alice/cut")
    told["files_after_second_push"] = HfApi().list_repo_files("alice/cut", repo_type="dataset")
    told["replayed"] = len(replay("alice/cut", source=samples.plain()))

    # the line is cut while a shard goes up: the client of the Hub tries again by itself
    fault("PUT", "/_lfs/", "drop")
    pruned.push_to_hub("alice/shard")
    told["shard_rows"] = len(load_dataset("alice/shard", split="train"))

    # somebody else commits between our look at the card and our commit
    pruned.push_to_hub("alice/busy")
    fault("POST", "/alice/busy/commit/", "move", skip=1)
    prune(samples.scored(seed=3), keep=0.25).push_to_hub("alice/busy")
    told["busy_card"] = str(DatasetCard.load("alice/busy"))
    told["busy_rows"] = len(replay("alice/busy", source=samples.plain()))

    # rights
    try:
        pruned.push_to_hub("alice/cut", token="hf_wrongWrongWrongWrongWrongWrongWro")
    except HfHubHTTPError as error:
        told["wrong_token"] = error.response.status_code
    try:
        pruned.push_to_hub("alice/cut", token=BOB)
    except HfHubHTTPError as error:
        told["strangers_token"] = error.response.status_code
    pruned.push_to_hub("alice/hidden", private=True)
    told["own_private"] = len(load_dataset("alice/hidden", split="train"))
    for name, token in (("anonymous", False), ("stranger", BOB)):
        try:
            HfApi(token=token).dataset_info("alice/hidden")
        except RepositoryNotFoundError:
            told[f"{name}_sees_private"] = False
    return told

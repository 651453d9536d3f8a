"""A client's life with one Hub: it publishes a source, prunes it, pushes, pushes again, and reads all of it back."""

from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import DatasetCard, HfApi

from hf_prune.publish.push import push_to_hub
from hf_prune.publish.replay import ReplayError, replay
from hf_prune.selection import prune
from tests.publish import samples

api = HfApi()


def upload(repo_id: str, card: str) -> None:
    api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
    api.upload_file(
        path_or_fileobj=card.encode(),
        path_in_repo="README.md",
        repo_id=repo_id,
        repo_type="dataset",
        commit_message="A card",
    )


def head(repo_id: str, revision: str = "main") -> str:
    return str(api.dataset_info(repo_id, revision=revision).sha)


def same(one: Dataset, other: Dataset) -> bool:
    return one.features == other.features and list(one) == list(other)


def live(user_card: str) -> dict[str, Any]:
    """Returns what happened; `user_card` is the card of somebody's own."""
    told: dict[str, Any] = {}

    # a source with a card that names its licence, under a name that the cache of datasets writes in lower case
    upload("alice/My-Reviews", "---\nlicense: cc-by-4.0\n---\n\n# Reviews\n")
    samples.plain().push_to_hub("alice/My-Reviews")
    source = load_dataset("alice/My-Reviews", split="train")
    told["source_revision"] = head("alice/My-Reviews")
    pruned = prune(samples.scored(source), keep=0.5)

    # nothing is asked of the network by a dry run
    plan = push_to_hub(pruned, "alice/reviews-half", dry_run=True)
    told["dry_run"] = {"card": plan.card, "files": list(plan.files)}

    # into a repository whose card somebody wrote
    upload("alice/reviews-half", user_card)
    told["heads"], told["cards"] = [], []
    for _ in range(3):
        told["commit"] = str(pruned.push_to_hub("alice/reviews-half"))
        told["heads"].append(head("alice/reviews-half"))
        told["cards"].append(str(DatasetCard.load("alice/reviews-half")))
    told["metadata"] = DatasetCard.load("alice/reviews-half").data.to_dict()
    loaded = load_dataset("alice/reviews-half", split="train")
    bare = pruned.remove_columns(list(samples.SCORES))
    told["rows_equal"] = same(loaded, bare)
    told["streamed_equal"] = list(load_dataset("alice/reviews-half", split="train", streaming=True)) == list(bare)

    # the words of this push only
    other = prune(samples.scored(source, seed=1), keep=0.5)
    other.push_to_hub("alice/reviews-half", num_shards=2, include_scores=True, include_dropped=True)
    told["after_another_selection"] = str(DatasetCard.load("alice/reviews-half"))
    told["replayed_another"] = same(replay("alice/reviews-half"), source.select(other.selection.keep_indices.tolist()))

    # rates side by side, in a repository of their own; and a branch, a private one, a pull request, a dictionary
    upload("alice/rates", "# My reviews\n\nAt several rates.")
    for percent in (50, 30, 50):
        part = prune(samples.scored(source), keep=percent / 100)
        part.push_to_hub(
            "alice/rates", config_name=f"keep-{percent}", observed=samples.OBSERVED, set_default=percent == 50
        )
    told["rates_card"] = str(DatasetCard.load("alice/rates"))
    told["rates"] = {
        name: [len(load_dataset("alice/rates", name, split="train")), len(replay("alice/rates", config_name=name))]
        for name in ("keep-50", "keep-30")
    }
    try:
        pruned.push_to_hub("alice/rates", revision="half")
    except ValueError as error:
        told["two_defaults"] = str(error)
    pruned.push_to_hub("alice/rates", revision="half", set_default=True)
    told["branch_rows"] = len(load_dataset("alice/rates", split="train", revision="half"))
    told["replayed_branch"] = same(replay("alice/rates", revision="half"), loaded)
    pruned.push_to_hub("alice/secret", private=True)
    told["private"] = bool(api.dataset_info("alice/secret").private)
    before = head("alice/rates")
    opened = push_to_hub(pruned, "alice/rates", "proposal", create_pr=True, commit_message="Propose")
    told["pull_request"] = {
        "url": opened.pr_url,
        "revision": opened.pr_revision,
        "main_moved": head("alice/rates") != before,
    }
    told["pull_request_files"] = api.list_repo_files("alice/rates", repo_type="dataset", revision=opened.pr_revision)
    push_to_hub(DatasetDict({"train": pruned, "test": samples.plain(10, seed=5)}), "splits", license="mit")
    told["splits"] = {name: len(rows) for name, rows in load_dataset("alice/splits").items()}
    try:
        pruned.push_to_hub("alice/splits", split="validation")
    except ValueError as error:
        told["other_split"] = str(error)

    api.create_tag("alice/reviews-half", repo_type="dataset", tag="v1", revision=told["heads"][0])

    # replay: the recorded commit, not what the source has become since
    told["replayed"] = same(replay("alice/reviews-half", revision="v1"), loaded)
    altered = source.map(lambda row, i: {"text": "altered" if i == 7 else row["text"]}, with_indices=True)
    altered.push_to_hub("alice/My-Reviews")
    told["replayed_later"] = same(replay("alice/reviews-half", revision=told["heads"][0]), loaded)
    try:
        replay("alice/reviews-half", revision=told["heads"][0], source=altered)
    except ReplayError as error:
        told["refused"] = error.differences
    return told

"""The cards: of a pruned dataset, and of a model that was trained on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from hf_prune._core.config import ScoringConfig, SelectionConfig
from hf_prune._core.units import Unit
from hf_prune._core.words import plain
from hf_prune.publish import scrub, tasks, templates
from hf_prune.publish.escape import Safe, number, python, text
from hf_prune.publish.merge import markers, merge
from hf_prune.publish.provenance import observe
from hf_prune.selection.certificate import Certificate

TAGS = ["dataset-pruning", "hf-prune"]
_CLASSES = 50
_SHOWN = ("mode", "space", "directions", "seed", "column", "until", "draws")
_UNKNOWN_TRAINING: dict[str, Any] = {
    "trajectory_digest": None,
    "model": {"class": None, "id": None, "revision": None},
    "optimizer": {"name": None},
    "run": {"last_step": None, "total_steps": None},
    "seeds": {"seed": None},
}


def render(provenance: Mapping[str, Any], *, repo_id: str | None = None, existing: str | None = None) -> str:
    """Returns the card of a pruned dataset, merged into the one that is there.

    Args:
        provenance (`Mapping[str, Any]`): what [`~hf_prune.publish.provenance.build`] returned.
        repo_id (`str`, *optional*): where the dataset is published; a directory has none.
        existing (`str`, *optional*): the card that is there. All its text and metadata stay; only the part between
            `<!-- hf_prune:start -->` and `<!-- hf_prune:end -->` is replaced.

    Returns:
        `str`: Markdown with YAML metadata.
    """
    config_name, origin = provenance["config_name"], provenance["source"]
    task = tasks.of_class((provenance["training"] or _UNKNOWN_TRAINING)["model"]["class"])
    metadata = DatasetCardData(
        **origin["license"],
        source_datasets=[origin["id"]] if origin["id"] else None,
        task_categories=[task] if task else None,
        size_categories=size_category(provenance["result"]["rows"]),
        tags=TAGS,
    )
    fresh = templates.template("pruned_dataset.md.j2").render(
        **_common(provenance, config_name),
        metadata=yaml_dump(metadata.to_dict(), sort_keys=False).strip(),
        title=repo_id.split("/")[-1] if repo_id else "Pruned dataset",
        config_name=config_name,
        push_arguments=python(repo_id or "org/name")
        + ("" if config_name == "default" else f", {python(config_name)}"),
        replay_arguments=python(repo_id or "path/of/this/directory")
        + ("" if config_name == "default" else f", config_name={python(config_name)}")
        + ("" if origin["id"] and origin["revision"] else ", source=train"),
        source_link=_link(
            "datasets", origin["id"], origin["revision"], "a dataset that is not known to be on the Hub"
        ),
        license=_license(origin["license"]),
        shown_classes=list((provenance["selection"]["certificate"]["classes_before"] or {}).items())[:_CLASSES],
        influence_arguments=_influence_arguments(provenance["influence"]),
        prune_arguments=_prune_arguments(provenance["selection"]["arguments"]),
        applied=_applied(provenance["selection"].get("applied")),
        verdict=plain(Certificate.from_dict(provenance["selection"]["certificate"]).verdict),
        observed_verdict=observed_verdict(provenance["observed"]),
    )
    return merge(existing, fresh, config_name)


def size_category(rows: int) -> str:
    """How the Hub names the size of a dataset."""
    bounds = [10**power for power in range(3, 13)]
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = sum(rows >= bound for bound in bounds)
    if place == 0:
        return f"n<{names[0]}"
    return f"n>{names[-1]}" if place == len(bounds) else f"{names[place - 1]}<n<{names[place]}"


def render_model(
    provenance: Mapping[str, Any],
    *,
    model_id: str,
    dataset_id: str,
    dataset_revision: str | None = None,
    observed: Mapping[str, Any] | None = None,
    task: str | None = None,
    license: str | None = None,
    eval_dataset_id: str | None = None,
    eval_split: str | None = None,
    existing: str | None = None,
) -> str:
    """Returns the card of a model that was trained on a pruned dataset, merged into the one that is there.

    The metadata has `datasets`, `base_model` and `pipeline_tag` where they are known, and in the Hub's model-index the
    result of this model, where the dataset that it was measured on is named: the Hub shows it as a result there. What
    models trained on all and on random rows reached is in the text alone.

    Args:
        provenance (`Mapping[str, Any]`): of the dataset; its `observed` part or `observed` must be there.
        model_id (`str`): `"org/name"` of the model.
        dataset_id (`str`): `"org/name"` of the pruned dataset.
        dataset_revision (`str`, *optional*): the commit of it that the model was trained on.
        observed (`Mapping[str, Any]`, *optional*): see [`~hf_prune.publish.provenance.build`]; replaces what the
            provenance has.
        task (`str`, *optional*): the Hub's name of the task; by default that of the model's class.
        license (`str`, *optional*): the licence of the model.
        eval_dataset_id (`str`, *optional*): the dataset on the Hub that was measured on.
        eval_split (`str`, *optional*): its split, such as `"test"`.
        existing (`str`, *optional*): the card that is there.

    Raises:
        `ValueError`: if nothing was observed, or a result is to be listed whose task is not known.
    """
    seen = observe(observed) or provenance["observed"]
    if seen is None:
        raise ValueError(
            "A model card needs results: run verify and pass its summary as observed={'metric': ..., ...}."
        )
    scrub.check({"observed": seen, "model_id": model_id, "dataset_id": dataset_id, "eval": eval_dataset_id})
    training = provenance["training"] or _UNKNOWN_TRAINING
    task = task or tasks.of_class(training["model"]["class"])
    metadata = ModelCardData(
        library_name="transformers",
        tags=TAGS,
        datasets=[dataset_id],
        model_name=model_id.split("/")[-1],
        base_model=training["model"]["id"],
        pipeline_tag=task,
        license=license,
        eval_results=None if eval_dataset_id is None else [_result(seen, task, eval_dataset_id, eval_split)],
    )
    full, pruned = seen["seconds_full"], seen["seconds_pruned"]
    fresh = templates.template("pruned_model.md.j2").render(
        **_common(dict(provenance) | {"observed": seen}, "default"),
        metadata=yaml_dump(metadata.to_dict(), sort_keys=False).strip(),
        title=model_id.split("/")[-1],
        o=seen,
        dataset_link=_link("datasets", dataset_id, dataset_revision, ""),
        model_argument=python(model_id),
        task=None if task is None else python(task),
        observed_verdict=observed_verdict(seen),
        seconds=lambda value: "unknown" if value is None else Safe(f"{number(value)} s"),
        saved=100 * (1 - pruned / full) if full and pruned is not None else None,
    )
    return merge(existing, fresh, "default")


def observed_verdict(seen: Mapping[str, Any] | None) -> str | None:
    """What retraining showed beside random rows, with its interval; None where it was not measured."""
    if not seen or seen.get("beside_random") is None or seen["greater_is_better"] is None:
        return None
    unit = Unit(seen["metric"])
    sign, over = (1 if seen["greater_is_better"] else -1), f"over {seen['seeds']} seeds"
    bounds = seen.get("beside_random_interval")
    if bounds is None:
        return "Retrained once on these rows and once on random ones, which shows no difference beyond chance."
    low, high = sorted(sign * bound for bound in bounds)
    word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
    ahead = unit.signed(sign * seen["beside_random"])
    return (
        f"Retrained on these rows, the model was {word} as many random rows: {ahead} of {seen['metric']} "
        f"[{unit.amount(low)}, {unit.amount(high)}] {over}."
    )


def folder(config_name: str) -> str:
    """Returns the folder of a repository that holds the files of a config: several rates live side by side."""
    markers(config_name)  # refuses names that cannot be a folder
    return "hf_prune" if config_name == "default" else f"hf_prune/{config_name}"


def _common(provenance: Mapping[str, Any], config_name: str) -> dict[str, Any]:
    start, end = markers(config_name)
    return {
        "p": provenance,
        "c": provenance["selection"]["certificate"],
        "start": start,
        "end": end,
        "t": provenance["training"] or _UNKNOWN_TRAINING,
        "folder": folder(config_name),
        "spread": _spread,
        "interval": _interval(provenance["observed"], "interval"),
        "loss_interval": _interval(provenance["observed"], "loss_interval"),
    }


def _result(seen: Mapping[str, Any], task: str | None, dataset_id: str, split: str | None) -> EvalResult:
    """What this model reached, and no other."""
    if task is None:
        raise ValueError("The task of the model is not known from its class: pass task=, such as task='fill-mask'.")
    return EvalResult(
        task_type=task,
        dataset_type=dataset_id,
        dataset_name=dataset_id.split("/")[-1],
        dataset_split=split,
        metric_type=seen["metric"],
        metric_name=seen["metric"],
        metric_value=seen["pruned"],
    )


def _link(kind: str, repo: str | None, revision: str | None, otherwise: str) -> Safe:
    if repo is None:
        return text(otherwise)
    at = f"/tree/{quote(revision)}" if revision else ""
    return Safe(f"[{text(repo)}](https://huggingface.co/{kind}/{quote(repo)}{at})")


def _license(license: Mapping[str, Any]) -> str | None:
    """The name that a reader knows: an `other` licence has one of its own."""
    named = license.get("license")
    if isinstance(named, list):
        named = ", ".join(str(item) for item in named)
    return (license.get("license_name") or named) if named == "other" else named


def _spread(value: Mapping[str, float] | None) -> Safe:
    return Safe("unknown") if value is None else Safe(f"{number(value['mean'])} ± {number(value['sd'])}")


def _interval(observed: Mapping[str, Any] | None, name: str) -> Safe:
    bounds = observed.get(name) if observed else None
    return Safe(f" [{number(bounds[0])}, {number(bounds[1])}]") if bounds else Safe("")


def _applied(applied: Mapping[str, Any] | None) -> str:
    """How the kept rows were taken from raw ones, as Python writes it."""
    if applied is None:
        return ""
    unseen = ""
    if applied["unseen"]:
        unseen = f", unseen={python('keep' if applied['unseen_kept'] else 'drop')}"
    return f".selection.apply(raw{unseen})"


def _prune_arguments(arguments: Mapping[str, Any]) -> str:
    """The arguments that differ from the defaults, as Python writes them."""
    return _keywords(SelectionConfig.from_dict(arguments).changed())


def _influence_arguments(influence: Mapping[str, Any] | None) -> str:
    """The same of `add_influence`, after other arguments; what it chooses by itself is left to it."""
    if influence is None:
        return ""
    named = {name: influence[name] for name in _SHOWN if name in influence}
    changed = _keywords(ScoringConfig.from_dict(named).changed())
    return f", {changed}" if changed else ""


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={python(value)}" for name, value in values.items())

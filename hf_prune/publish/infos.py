"""The part of a card's metadata that tells `datasets` where the rows are and what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from datasets import DatasetInfo, Features
from datasets.data_files import sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from hf_prune.publish.shards import Shards

_KEYS = ("dataset_info", "configs")


def update(
    metadata: Mapping[str, Any],
    shards: Shards,
    *,
    config_name: str,
    data_dir: str,
    features: Features,
    replaced: int,
    set_default: bool | None,
    whole_config: bool,
    unlisted: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the metadata of a card that has the rows in it, as `Dataset.push_to_hub` would write it.

    Args:
        metadata (`Mapping[str, Any]`): of the card that is there.
        shards (`Shards`): the rows.
        config_name (`str`): the config that they are.
        data_dir (`str`): the folder that they are in.
        features (`Features`): of the rows.
        replaced (`int`): bytes of the files that they replace.
        set_default (`bool`, *optional*): make the config the default one.
        whole_config (`bool`): whether other splits of the config go.
        unlisted (`Sequence[str]`, *optional*): splits that lie in the folder, for a card that has no `configs` yet.

    Returns:
        `dict[str, Any]`: all keys of `metadata`, in their order, and `dataset_info` and `configs`.

    Raises:
        `ValueError`: if the config has other splits with other features, or there is another default config.
    """
    # a copy, because `datasets` changes the lists and mappings that it is given
    data = DatasetCardData(**{key: deepcopy(metadata[key]) for key in _KEYS if metadata.get(key)})
    try:
        if not isinstance(metadata.get("dataset_info") or {}, dict | list):
            raise TypeError("dataset_info is neither a mapping nor a list")
        configs = MetadataConfigs.from_dataset_card_data(data)
        infos = DatasetInfosDict.from_dataset_card_data(data)
        marked = next((name for name, one in configs.items() if one.get("default") and name != config_name), None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"dataset_info or configs in the card's metadata cannot be read ({error}): fix them, then push again."
        ) from error
    old = None if whole_config else infos.get(config_name)
    info = _info(old, shards, features, replaced)
    DatasetInfosDict({config_name: info}).to_dataset_card_data(data)
    known = None if whole_config else configs.get(config_name)
    changed = {config_name: _config(known, shards, data_dir, [] if whole_config or configs else unlisted)}
    if set_default and config_name != "default" and "default" in configs:
        raise ValueError(f"A config named 'default' is there, so {config_name!r} cannot be it: leave set_default out.")
    if marked is not None and config_name == "default" and not set_default:
        raise ValueError(f"The config {marked!r} is the default one: pass set_default=True or another config_name.")
    if marked is not None and set_default:
        changed[marked] = {key: value for key, value in configs[marked].items() if key != "default"}
    if config_name != "default" and (set_default or configs.get(config_name, {}).get("default")):
        changed[config_name]["default"] = True
    MetadataConfigs(changed).to_dataset_card_data(data)
    written = data.to_dict()
    return dict(metadata) | {key: written[key] for key in _KEYS}


def _info(old: DatasetInfo | None, shards: Shards, features: Features, replaced: int) -> DatasetInfo:
    kept = {name: split for name, split in ((old.splits if old else None) or {}).items() if name not in shards.splits}
    if old is not None and kept and old.features != features:
        raise ValueError(
            f"The config has other splits ({', '.join(kept)}), whose columns or types differ: push under another "
            "config_name."
        )
    splits = SplitDict()
    for split in kept.values():
        splits.add(split)
    for name, part in shards.splits.items():
        splits.add(SplitInfo(name=name, num_bytes=part.bytes, num_examples=part.rows))
    before = (old.download_size or 0) - replaced if old is not None and kept else 0
    return DatasetInfo(
        features=features,
        splits=splits,
        download_size=max(0, before) + shards.bytes,
        dataset_size=sum(split.num_bytes or 0 for split in splits.values()),
    )


def _config(old: Mapping[str, Any] | None, shards: Shards, data_dir: str, unlisted: Sequence[str]) -> dict[str, Any]:
    """The patterns of the data files; those of other splits stay."""
    listed = (old or {}).get("data_files")
    others = sanitize_patterns(listed) if listed else {name: [f"{data_dir}/{name}-*"] for name in unlisted}
    patterns = others | {name: [f"{data_dir}/{name}-*"] for name in shards.splits}
    return {
        "data_files": [
            {"split": name, "path": paths[0] if len(paths) == 1 else paths} for name, paths in patterns.items()
        ]
    }

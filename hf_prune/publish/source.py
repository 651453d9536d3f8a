"""Where a dataset came from, as far as `datasets` still knows: Hub id, commit, config and licence."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import constants, try_to_load_from_cache

from hf_prune.publish import limits, scrub

logger = logging.getLogger(__name__)

_CHECKSUM = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Source:
    """A dataset on the Hub that rows were taken from; `None` stands for what is not known."""

    id: str | None = None
    """`org/name`."""
    revision: str | None = None
    """The commit that was loaded."""
    config_name: str | None = None
    rows: int | None = None
    """Rows of the split that was loaded."""
    license: dict[str, Any] = field(default_factory=dict)
    """The licence keys of a card: `license`, and `license_name` and `license_link` where it is `other`."""


def find(dataset: Dataset, named: str | None = None) -> Source:
    """Returns what is known about the origin of a dataset.

    `load_dataset` leaves id and commit in the paths of its cache files (and, in older versions, in
    `info.download_checksums`); the card that it downloaded has the licence. Nothing is asked over the network.

    Args:
        dataset (`datasets.Dataset`): the dataset, however far it was mapped since.
        named (`str`, *optional*): `"org/name"` or `"org/name@commit"`, where the caller knows better.

    Raises:
        `ValueError`: if `named` is no such id.
    """
    rows = None
    if named is not None:
        repo, _, revision = named.removeprefix("hf://datasets/").partition("@")
        if not scrub.repository(repo) or (revision and not scrub.commit(revision)):
            raise ValueError(f"source={named!r} is not a dataset of the Hub: write 'org/name' or 'org/name@commit'.")
        config_name = dataset.info.config_name
        origin = (repo, revision or None)
    else:
        origins = {origin for origin in _origins(dataset) if origin is not None}
        if len(origins) != 1:
            return Source(license=_license_of_info(dataset))
        origin, config_name = origins.pop(), dataset.info.config_name
        split = (dataset.info.splits or {}).get(str(dataset.split))
        rows = None if split is None else split.num_examples
    license = _license_of_card(*origin) or _license_of_info(dataset)
    return Source(origin[0], origin[1], config_name, rows, license)


def _origins(dataset: Dataset) -> list[tuple[str, str | None] | None]:
    checksums = dataset.info.download_checksums or {}
    found: list[tuple[str, str | None] | None] = []
    for url in checksums:
        match = _CHECKSUM.match(str(url))
        found.append((match[1], match[2]) if match else None)
    return found or [_origin_of_file(Path(file["filename"])) for file in dataset.cache_files]


def _origin_of_file(path: Path) -> tuple[str, str | None] | None:
    """`.../org___name/config/0.0.0/<commit>/file.arrow` is how `load_dataset` files what it took from the Hub."""
    if len(path.parts) < 6:
        return None
    revision, cached = scrub.commit(path.parts[-2]), path.parts[-5]
    if revision is None:
        return None
    owner, separator, name = cached.rpartition("___")
    repo = _spelling(owner, name, revision) or (f"{owner}/{name}" if separator else name)
    return (repo, revision) if scrub.repository(repo) else None


def _spelling(owner: str, name: str, revision: str) -> str | None:
    """The cache of `datasets` lowers the name; the cache of `huggingface_hub` keeps it."""
    for folder in Path(constants.HF_HUB_CACHE).glob(f"datasets--{owner}--*" if owner else "datasets--*"):
        spelled = folder.name.removeprefix(f"datasets--{owner}--" if owner else "datasets--")
        if camelcase_to_snakecase(spelled) == name and (folder / "snapshots" / revision).is_dir():
            return f"{owner}/{spelled}" if owner else spelled
    return None


def _license_of_card(repo: str, revision: str | None) -> dict[str, Any]:
    """The licence in the source's card, if `load_dataset` left the card in the cache."""
    path = try_to_load_from_cache(repo, "README.md", repo_type="dataset", revision=revision)
    if not isinstance(path, str):
        return {}
    content = limits.READER.content(Path(path), limits.CARD_BYTES)
    return {} if content is None else license_of(content.decode(errors="replace"))


def license_of(card: str) -> dict[str, Any]:
    """Returns the licence keys in the metadata of a card, none if its metadata cannot be read."""
    try:
        data = limits.card_metadata(card, "the source's card")
    except limits.ReplayError as error:
        logger.warning("%s So its licence is not known.", error)
        return {}
    return scrub.pick(data, _LICENSE_KEYS) if data.get("license") else {}


def _license_of_info(dataset: Dataset) -> dict[str, Any]:
    """`info.license` is free text, while a card's `license` is one of the Hub's identifiers."""
    named = (dataset.info.license or "").strip()
    if not named:
        return {}
    if _IDENTIFIER.fullmatch(named):
        return {"license": named}
    slug = re.sub(r"[^a-z0-9.]+", "-", named.splitlines()[0].lower()).strip("-")[:80]
    return {"license": "other", "license_name": slug or "other"}

"""What others have published is read within limits: what is too large, deep or false is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml  # type: ignore[import-untyped]
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_prune._core.reading import Reader, one_line

CARD_BYTES = 2 * 2**20
_YAML_NODES = 1_000_000


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    # JSON Schema takes 1e300 for an integer, and Python counts with what is one
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


class ReplayError(ValueError):
    """The rows cannot be rebuilt; `differences` says in words what differs."""

    def __init__(self, what: str, differences: list[str] | None = None):
        super().__init__("\n- ".join([what, *(differences or [])]))
        self.differences = differences or []


READER = Reader(ReplayError, "fetch it again, or ask for it to be published again")


def from_hub(repo_id: str, name: str, commit: str, token: str | bool | None, limit: int) -> bytes | None:
    """Returns the content of a file of a dataset repository, None if it is not there.

    Raises:
        [`ReplayError`]: if it is larger than `limit` bytes; nothing is downloaded then.
    """
    url = hf_hub_url(repo_id, name, repo_type="dataset", revision=commit)
    try:
        found = get_hf_file_metadata(url, token=token)
    except EntryNotFoundError:
        return None
    READER.check_size(f"{repo_id}/{name}", found.size, limit)
    return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=commit, token=token)).read_bytes()


def check_schema(document: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    """Refuses a document that its JSON Schema does not allow, naming the first field in the order of their paths.

    Raises:
        [`ReplayError`]: names the field.
    """
    try:
        errors = sorted(_Validator(schema).iter_errors(document), key=lambda one: one.json_path)
    except RecursionError as error:
        raise ReplayError(f"{where} is nested too deeply to be read.") from error
    if errors:
        field = one_line(errors[0].json_path.removeprefix("$").removeprefix(".") or "the document")
        raise ReplayError(f"{where} does not match its schema: {field}: {one_line(errors[0].message)}.")


def utf8(content: bytes, where: str) -> str:
    """Returns the text of a file.

    Raises:
        [`ReplayError`]: if it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReplayError(f"{where} is not UTF-8.") from error


def card_metadata(card: str, where: str) -> dict[str, Any]:
    """Returns the YAML metadata of a card, an empty mapping if it has none.

    Raises:
        [`ReplayError`]: if it is not a YAML mapping, or unfolds to more than a million values.
    """
    block = REGEX_YAML_BLOCK.search(card)
    return yaml_mapping(block.group(2), where) if block else {}


def yaml_mapping(text: str, where: str) -> dict[str, Any]:
    """Returns the mapping that a YAML document is; a YAML alias may stand for a mapping that is very large.

    Raises:
        [`ReplayError`]: if it is not a YAML mapping, or unfolds to more than a million values.
    """
    READER.check_size(where, len(text.encode()), CARD_BYTES)
    try:
        if _yaml_nodes(yaml.compose(text, Loader=yaml.SafeLoader), {}) > _YAML_NODES:
            raise ReplayError(f"The metadata of {where} refers to itself, or unfolds to too many values.")
        data = yaml.safe_load(text)
    except RecursionError as error:
        raise ReplayError(f"The metadata of {where} is nested too deeply to be read.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ReplayError):
            raise
        raise ReplayError(f"The metadata of {where} is not YAML: {one_line(error)}.") from error
    if data is not None and not isinstance(data, dict):
        raise ReplayError(f"The metadata of {where} is not a YAML mapping.")
    return data or {}


def _yaml_nodes(node: Any, known: dict[int, int]) -> int:
    """Number of values once every alias is replaced by what it stands for; a cycle has too many."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _YAML_NODES + 1  # until it is known: met inside itself, it would never end
    children: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = min(1 + sum(_yaml_nodes(child, known) for child in children), _YAML_NODES + 1)
    return known[id(node)]

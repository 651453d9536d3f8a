"""Where the command line finds things: rows and models in directories or on the Hub, trajectories, functions.

What is plainly not there is refused at once; only then is what is heavy imported.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_prune.errors import TrajectoryError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_prune.selection import PrunedDataset

ROWS = "a directory of save_to_disk, or owner/name@revision:config/split on the Hub"
MODEL = "a directory of save_pretrained, or owner/name@revision on the Hub"
TRAJECTORY = "What TrajectoryCallback recorded."

_REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}"
_ROWS_IN_IT = r"((?P<config>[\w+ -][\w.+ -]*)/)?(?P<split>\w+(\.\w+)*)?"
_HUB = re.compile(rf"(?P<id>({_REPOSITORY}/)?{_REPOSITORY})(@(?P<revision>[\w./-]+))?(:(?!$){_ROWS_IN_IT})?", re.ASCII)


@dataclass(frozen=True)
class OnHub:
    """A repository on the Hub, a revision of it, and a config and a split of its rows."""

    id: str
    revision: str | None
    config: str | None
    split: str | None

    @classmethod
    def named(cls, name: str) -> OnHub | None:
        """`owner/name@revision:config/split`, of which the last three may be left out; None if it cannot be that."""
        match = _HUB.fullmatch(name)
        return None if match is None else cls(match["id"], match["revision"], match["config"], match["split"])

    @classmethod
    def unless_here(cls, name: str) -> OnHub | None:
        """The same; None where there is a directory of that name."""
        return None if Path(name).is_dir() else cls.named(name)


def require_rows(*names: str | None) -> None:
    """
    Refuses what is neither a directory nor can be rows on the Hub.

    Raises:
        `FileNotFoundError`: Which, and what to pass.
    """
    for name in names:
        if name is None or Path(name).is_dir():
            continue
        hub = OnHub.named(name)
        if hub is None or "/" not in hub.id:
            raise FileNotFoundError(f"There is no directory {name}: pass {ROWS}.")


def require_model(name: str) -> None:
    """
    Refuses what is neither a directory nor can be a model on the Hub.

    Raises:
        `FileNotFoundError`: Which, and what to pass.
    """
    hub = OnHub.named(name)
    if not Path(name).is_dir() and (hub is None or hub.config is not None or hub.split is not None):
        raise FileNotFoundError(f"There is no directory {name}: pass {MODEL}.")


def require_trajectory(directory: Path) -> None:
    """
    Refuses a directory that holds no record, as the library does, which takes seconds to import.

    Raises:
        `TrajectoryError`: Which, and what to pass.
    """
    if not (directory / "manifest.json").is_file():
        raise TrajectoryError(
            f"There is no trajectory in {directory}: pass the directory that TrajectoryCallback wrote to."
        )


def refuse_existing(directory: Path) -> None:
    """Nothing is written over: a dataset may be the only copy."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} already exists and is not empty: pass a new directory.")


def load_rows(name: str) -> Dataset:
    """One split of a dataset that `save_to_disk` wrote, or that is on the Hub."""
    from datasets import Dataset, load_from_disk

    require_rows(name)
    hub = OnHub.unless_here(name)
    loaded = load_from_disk(name) if hub is None else _from_hub(hub, name)
    if isinstance(loaded, Dataset):
        return loaded
    if len(loaded) == 1 and hub is not None:
        return next(iter(loaded.values()))
    splits, first = ", ".join(loaded), next(iter(loaded))
    example = f"{name}/{first}" if hub is None else f"{name}{first}" if hub.config else f"{name}:{first}"
    raise ValueError(f"{name} holds a DatasetDict with the splits {splits}: pass one of them, such as {example}.")


def _from_hub(hub: OnHub, name: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(hub.id, hub.config, revision=hub.revision, split=hub.split)
    except OSError as error:
        raise FileNotFoundError(
            f"There is no directory {name}, and the Hub gave no such dataset ({str(error).rstrip('.')}): pass {ROWS}."
        ) from error
    except ValueError:
        _check_config(hub)
        raise


def _check_config(hub: OnHub) -> None:
    """Says which configs there are, if a wrong one was named, or none where none is the default."""
    from datasets import get_dataset_config_names, get_dataset_default_config_name

    names = get_dataset_config_names(hub.id, revision=hub.revision)
    wanted = hub.config or get_dataset_default_config_name(hub.id, revision=hub.revision)
    if wanted in names:
        return
    whole = hub.id if hub.revision is None else f"{hub.id}@{hub.revision}"
    raise ValueError(
        f"{whole} has the configs {', '.join(names)}: name one of them, such as "
        f"{whole}:{names[0]}/{hub.split or 'train'}."
    )


def load_pruned(name: str, source: Dataset) -> PrunedDataset:
    """
    Makes a [`PrunedDataset`] again, from its source and its provenance.

    Args:
        name (`str`): What `PrunedDataset.save_to_disk` wrote, or `owner/name@revision:config/` of a pushed one.
        source (`Dataset`): The dataset that was pruned.

    Raises:
        `ValueError`: If the source is another one.
    """
    from hf_prune.publish.replay import replay
    from hf_prune.selection import PrunedDataset

    record = open_record(name)
    replay(**record_place(name), source=source)  # compares source and rows with the recorded digests
    return PrunedDataset.from_source(source, record.selection())


def open_record(name: str) -> Any:
    """The provenance and the kept ids of a pruned dataset."""
    from hf_prune.publish.replay import Record

    require_rows(name)
    record, hub = Record.open(**record_place(name)), OnHub.unless_here(name)
    split = record.provenance["split"]
    if hub is not None and hub.split not in (None, split):
        raise ValueError(f"{name} is not what was pruned: that is the split {split}.")
    return record


def record_place(name: str) -> dict[str, Any]:
    """Where a pruned dataset lies, as `replay` takes it."""
    hub = OnHub.unless_here(name)
    if hub is None:
        return {"repo_id": name}
    return {"repo_id": hub.id, "config_name": hub.config or "default", "revision": hub.revision}


def place_of(name: str) -> tuple[str, str | None]:
    """The directory, or the repository and its revision."""
    hub = OnHub.unless_here(name)
    return (name, None) if hub is None else (hub.id, hub.revision)


def load_model(name: str, recorded: dict[str, Any]) -> Any:
    """A trained model. Its class is the recorded one: the Auto classes would have to guess the head."""
    import transformers

    where, revision = place_of(name)
    wanted = str(recorded.get("class"))
    kind = getattr(transformers, wanted, None)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind.from_pretrained(where, revision=revision or "main")
    if wanted.startswith("PeftModelFor"):
        import peft

        return getattr(peft, f"Auto{wanted}").from_pretrained(where, revision=revision, is_trainable=True)
    raise ValueError(f"The run trained a {wanted}, which is not a model of transformers: call the function in Python.")


def load_tokenizer(name: str, *, required: bool) -> Any:
    """The tokenizer next to a model; None where there is none, for rows that are prepared need none."""
    import transformers

    where, revision = place_of(name)
    try:
        return transformers.AutoTokenizer.from_pretrained(where, revision=revision or "main")
    except (OSError, ValueError, KeyError):
        if required:
            raise
        return None


def check_function(option: str, name: str) -> None:
    """Refuses what cannot be the name of a function."""
    module, separator, attribute = name.partition(":")
    if not separator or not module or not attribute:
        raise ValueError(
            f"{option} {name!r} is not a function's name: pass module:function, such as train:make_trainer."
        )


def function_of(option: str, name: str) -> Any:
    """`module:function`, of the working directory too, as other tools that take such a name do it."""
    check_function(option, name)
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise ValueError(f"The module {module} has no function {attribute}: check {option}.")
    return found

"""Saving a pruned dataset to a directory: the old state or the new one, however the process ends."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets import Dataset
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from hf_prune._core.io import held, remove_unless_held, writing
from hf_prune.publish import columns, files, media

_ROWS = re.compile(r"data-\d{5}-of-\d{5}\.arrow|state\.json|dataset_info\.json")
"""What `Dataset.save_to_disk` writes."""
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def save(
    pruned: Any,
    directory: str | os.PathLike[str],
    write_rows: Callable[[Dataset, Any], None],
    storage_options: dict[str, Any] | None = None,
    *,
    include_scores: bool = False,
    include_tokens: bool = False,
) -> None:
    """Saves the rows, and with them the selection, its provenance and a README.

    All of it is made in a directory next to the one that is asked for, with the other files that are there, and takes
    its place in one step. What cannot be merged is met before a row is written. On a file system that is not local,
    and in an empty directory whose parent cannot be written to, the files are written one after the other.

    Args:
        pruned (`PrunedDataset`): what [`~hf_prune.prune`] returned.
        directory (`str` or `os.PathLike`): a directory, or a URL that fsspec understands.
        write_rows (`Callable[[Dataset, Any], None]`): writes rows to the directory that it is given.
        storage_options (`dict[str, Any]`, *optional*): for the file system of a URL.
        include_scores (`bool`, *optional*, defaults to `False`): save the influence columns too.
        include_tokens (`bool`, *optional*, defaults to `False`): save tokens too where the rows hold their text.

    Raises:
        `ValueError`: if a README.md that is there is not YAML and UTF-8, a row names a file that is no picture, sound,
            film or document, or the directory cannot be replaced.
        `PermissionError`: if the rows lie in that directory.
    """
    pruned = columns.published(pruned, include_scores=include_scores, include_tokens=include_tokens)
    if pruned.format["type"] == "custom":
        pruned = pruned.with_format(None)  # a function that changes rows cannot be saved
    fs, root = url_to_fs(os.fspath(directory), **(storage_options or {}))
    _, contents = files.prepare(pruned, fs, root)
    media.check(pruned)
    if not isinstance(fs, LocalFileSystem):
        write_rows(pruned, directory)
        files.put(fs, root, contents)
        return
    target = Path(root).resolve()
    if target in {Path(file["filename"]).resolve().parent for file in pruned.cache_files}:
        raise PermissionError(f"The rows are read from {target}, which is not overwritten: save to another directory.")
    with writing("The rows", target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _remove_remains(target)
    staged = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        staged.mkdir()
    except OSError as error:
        if target.is_dir() and not any(target.iterdir()):
            write_rows(pruned, target)
            files.put(fs, str(target), contents)
            return
        raise ValueError(f"{target} cannot be replaced ({error.strerror}): save to a new directory.") from error
    try:
        with writing("The rows", target), held(staged):
            if target.is_dir():
                shutil.copytree(
                    target, staged, symlinks=True, ignore=_old_rows(target), copy_function=_link, dirs_exist_ok=True
                )
            write_rows(pruned, staged)
            files.put(fs, str(staged), contents)
            _replace(target, staged)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove_remains(target: Path) -> None:
    """
    What killed processes left, but not what another process writes now. Where directories cannot be exchanged, a
    directory that was there before is put back if the new one did not take its place.
    """
    for path in target.parent.glob(f".{escape(target.name)}.*.tmp"):
        remove_unless_held(path)
    for path in target.parent.glob(f".{escape(target.name)}.*.old"):
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def _old_rows(target: Path) -> Callable[[str, list[str]], list[str]]:
    return lambda folder, names: [name for name in names if Path(folder) == target and _ROWS.fullmatch(name)]


def _link(source: str, place: str) -> None:
    """A second name for a file; our own files are replaced and never written into."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def _replace(target: Path, staged: Path) -> None:
    """Puts `staged` in the place of `target`; what was there is in the place of `staged` or gone afterwards."""
    if not target.exists():
        staged.rename(target)
        return
    if _exchange(target, staged):
        return
    old = target.with_name(f".{target.name}.{uuid4().hex}.old")
    try:
        target.rename(old)
    except OSError as error:
        raise ValueError(f"{target} cannot be replaced ({error.strerror}): save to a new directory.") from error
    staged.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two directories in one step, where the operating system can; returns whether it did."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)

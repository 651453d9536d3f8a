"""Files that rows name: pictures, sound and films get into what is published, and nothing else of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, config
from datasets.features.features import require_storage_embed
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.niftifolder.niftifolder import NiftiFolder
from datasets.packaged_modules.pdffolder.pdffolder import PdfFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from datasets.table import embed_table_storage, table_visitor
from huggingface_hub import constants

PICTURES_AND_SOUND = tuple(ImageFolder.EXTENSIONS) + tuple(AudioFolder.EXTENSIONS)
"""Ends of file names."""
_MEDIA = (
    PICTURES_AND_SOUND
    + tuple(VideoFolder.EXTENSIONS)
    + tuple(PdfFolder.EXTENSIONS)
    + tuple(NiftiFolder.EXTENSIONS)
    + (".nii.gz",)
)
_BATCH = 1_000


def columns(rows: Dataset) -> list[str]:
    """Returns the columns that hold media, in the rows or as names of files."""
    return [name for name, feature in rows.features.items() if require_storage_embed(feature)]


def check(rows: Dataset) -> None:
    """Refuses rows that name a file of this machine that is no picture, sound, film or document.

    A row of somebody else's dataset may name any file, whose content would be published with it. The files that
    `datasets` and `huggingface_hub` downloaded were public already, whatever their names.

    Raises:
        `ValueError`: names the file.
    """
    named = columns(rows)
    if named:
        for batch in rows.select_columns(named).with_format("arrow").iter(_BATCH):
            table_visitor(batch, _check_array)


def embed(table: pa.Table, remote: bool = True) -> pa.Table:
    """Returns a table with the content of the files that it names, checked first; `remote` ones on request."""
    table_visitor(table, _check_array)
    return embed_table_storage(table, remote_files=remote)


def _check_array(array: pa.Array, feature: Any) -> None:
    if not hasattr(feature, "embed_storage") or not pa.types.is_struct(array.type):
        return
    names = {field.name for field in array.type}
    if {"bytes", "path"} <= names:
        for path in array.field("path").filter(array.field("bytes").is_null()).to_pylist():
            if path is not None and "://" not in path and not may_be_read(path):
                raise ValueError(
                    f"A row names the file {path}, which is not an image, audio, video or document: its content would "
                    "be published with the rows, so drop the row or give the file its right extension."
                )


def may_be_read(path: str) -> bool:
    """Whether a file that a row names is of media by its name, or was downloaded from the Hub or elsewhere."""
    if path.lower().endswith(_MEDIA):
        return True
    place = Path(path).absolute()
    downloaded = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return ".." not in place.parts and any(place.is_relative_to(Path(folder).absolute()) for folder in downloaded)

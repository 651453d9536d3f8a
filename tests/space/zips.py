"""Zip files of directories, with what a stranger may put into them."""

from __future__ import annotations

import zipfile
from pathlib import Path


def zipped(file: Path, directory: Path | None, also: dict[str | zipfile.ZipInfo, bytes] | None = None) -> Path:
    """A zip file of a directory, as file managers make it, and of further members."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [] if directory is None else sorted(directory.rglob("*")):
            archive.write(path, path.relative_to(directory.parent))
        for name, content in (also or {}).items():
            archive.writestr(name, content)
    return file

"""A zip file from a stranger: looked at before it takes memory or disk, and refused rather than repaired."""

from __future__ import annotations

import re
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from hf_prune._core.reading import one_line

MOST_BYTES = 2**30
"""What a zip file may unpack to."""
MOST_MEMBERS = 5_000
_DIRECTORY_BYTES = 2**20
"""Of the list of members, which is held in memory."""
_END = struct.Struct("<4s4H2LH")
_END_MARK, _LARGE_MARK = b"PK\5\6", b"PK\6\7"
_PART = r"(?!\.{1,2}(/|$))[\w.+ -]+"
_NAME = re.compile(rf"{_PART}(/{_PART})*/?", re.ASCII)
_READ = re.compile(
    r"([^/]+/)?(manifest\.json|(ledger|statistics)/[^/]+\.jsonl|snapshots/[^/]+\.safetensors"
    r"|selection\.json|[^/]+\.parquet|hf_prune/[^/]+\.(json|parquet))"
)
"""What a recorded run, a selection or a pruned dataset is read from; its rows and cached scores are none of it."""
_MEND = "zip the directory that hf_prune wrote"


def unpack(file: Path, into: Path) -> Path:
    """
    Unpacks a zip file.

    Args:
        file (`Path`): The zip file.
        into (`Path`): An empty directory.

    Returns:
        `Path`: The directory that holds what was zipped: `into`, or the only one in it.

    Raises:
        `ValueError`: If it is no zip file, too large, or has members that are not plain files below `into`.
    """
    _check_end(file)
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _checked(archive.infolist()):
                target = into / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # no more than what the member says of itself is read, and that was counted
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"The zip file cannot be unpacked ({one_line(error)}): {_MEND}.") from error
    inside = list(into.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else into


def _check_end(file: Path) -> None:
    """The end of the file says how long the list of members is, which `zipfile` reads into memory at once."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 42))
        tail = stream.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(_END_MARK) or not end.endswith(b"\0\0"):
        raise ValueError(f"This is not a zip file, or one with a comment: {_MEND}.")
    if tail.startswith(_LARGE_MARK) or _END.unpack(end)[5] > _DIRECTORY_BYTES:
        raise ValueError(f"The zip file lists too many files: {_MEND}.")


def _checked(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The members to unpack."""
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not _NAME.fullmatch(member.filename) or kind not in (0, stat.S_IFREG, stat.S_IFDIR) or not plain:
            raise ValueError(f"The zip file holds {one_line(member.filename)!r}, which is no plain file: {_MEND}.")
    wanted = [member for member in members if _READ.fullmatch(member.filename) and "__MACOSX" not in member.filename]
    if len(wanted) > MOST_MEMBERS:
        raise ValueError(f"The zip file holds {len(wanted):,} files, and at most {MOST_MEMBERS:,} are read.")
    total = sum(member.file_size for member in wanted)
    if total > MOST_BYTES:
        raise ValueError(
            f"The zip file unpacks to {total:,} bytes, and at most {MOST_BYTES:,} are read: of a recorded run, "
            "snapshots/ may be left out."
        )
    return wanted

"""Files that may be damaged, or come from somebody else: read within limits, or refused in one sentence.

Nothing here takes memory that grows with what a file claims; only with its size, which is looked at first.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta

JSON_BYTES = 64 * 2**20
_DEEPEST = 32
"""Lists and mappings within each other; our own files have 7 at most."""
_LONGEST = 200
_AGAIN = ": write it again."
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")

Count = Annotated[int, Meta(ge=0, lt=2**53)]
"""A whole number that every reader of JSON knows."""
Positive = Annotated[int, Meta(ge=1, lt=2**53)]
Real = Annotated[float, Meta(ge=-1e100, le=1e100)]
"""A number whose square is one, too."""
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T")


def one_line(value: Any) -> str:
    """Control characters, line breaks and marks that turn the writing direction become one space; long text is cut."""
    line = _CONTROL.sub(" ", str(value)).strip()
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


@dataclass(frozen=True)
class Reader:
    """
    Reads files of one origin.

    Args:
        error (`type[ValueError]`): What is raised if a file cannot be read.
        mend (`str`): What to do then: the end of each sentence.
    """

    error: type[ValueError]
    mend: str

    def content(self, path: Path, limit: int = JSON_BYTES) -> bytes | None:
        """The content of a file, `None` if it is not there; refused if it is not regular, or larger than `limit`."""
        try:
            # without waiting for a writer, which a named pipe may never get
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self.error(f"{path} cannot be read ({one_line(error)}).") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise self.error(f"{path} is not a regular file: {self.mend}.")
            self.check_size(path, found.st_size, limit)
            with open(descriptor, "rb", closefd=False) as stream:
                return stream.read(limit)
        finally:
            os.close(descriptor)

    def check_size(self, where: Any, size: int | None, limit: int) -> None:
        """Refuses what is larger than `limit` bytes."""
        if size is None or size > limit:
            told = "an unknown number of" if size is None else f"{size:,}"
            raise self.error(f"{where} has {told} bytes, and at most {limit:,} are read: {self.mend}.")

    def value(self, content: bytes, where: Any) -> Any:
        """What a JSON document holds; refused if it is none, holds what JSON cannot, or is nested too deeply."""
        self.check_size(where, len(content), JSON_BYTES)
        value = self._decoded(content, where, parse_constant=_no_constant, parse_int=_whole, parse_float=_real)
        if _too_deep(value, _DEEPEST):
            raise self.error(f"{where} is nested too deeply to be read: {self.mend}.")
        return value

    def mapping(self, content: bytes, where: Any) -> dict[str, Any]:
        """The object that a JSON document is."""
        value = self.value(content, where)
        if not isinstance(value, dict):
            raise self.error(f"{where} is not a JSON object: {self.mend}.")
        return value

    def line(self, content: bytes, kind: type[T], where: Any) -> T:
        """A line of JSON of a kind all of whose fields have a type; it may hold NaN."""
        return self.typed(self._decoded(content, where), kind, where)

    def typed(self, value: Any, kind: Any, where: Any) -> Any:
        """The value of a type, a dataclass for example, that values of JSON stand for."""
        try:
            return typed(value, kind)
        except ValueError as error:
            told = one_line(error).removesuffix(_AGAIN)
            raise self.error(f"{where} is not of this format ({told}): {self.mend}.") from error

    def _decoded(self, content: bytes, where: Any, **options: Any) -> Any:
        try:
            value = json.loads(content, object_pairs_hook=_object, **options)
            if b"\\u" in content:
                json.dumps(value, ensure_ascii=False).encode()  # half of a character cannot be shown or written
        except RecursionError as error:
            raise self.error(f"{where} is nested too deeply to be read: {self.mend}.") from error
        except ValueError as error:
            raise self.error(f"{where} is not JSON ({one_line(error)}): {self.mend}.") from error
        return value


def typed(value: Any, kind: Any) -> Any:
    """
    The value of a type that values of JSON stand for, without guessing: no text is a number.

    Raises:
        `ValueError`: says where it differs.
    """
    if is_dataclass(kind):
        check_fields(kind, value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{one_line(error)}{_AGAIN}") from error


def check_fields(kind: Any, values: Mapping[str, Any]) -> None:
    """
    Compares the keys of `values` with the fields of the dataclass `kind`.

    Raises:
        `ValueError`: names the fields that are unknown, or that are missing and have no default.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__} is not a JSON object{_AGAIN}")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no field {one_line(', '.join(map(repr, unknown)))}: it was written by a newer "
            "version, so upgrade hf-prune."
        )
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(needed - set(values))
    if missing:
        raise ValueError(f"{kind.__name__} lacks the field {', '.join(map(repr, missing))}{_AGAIN}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _whole(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{digits[:30]} is too large a number")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:30]} is too large a number")
    return number


def _too_deep(value: Any, left: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return left == 0 or any(_too_deep(item, left - 1) for item in value)

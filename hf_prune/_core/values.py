"""The one form that stands for all ways in which Arrow, files and libraries hold the same values."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_MEDIA = {"bytes", "path"}
"""Fields in which `datasets` holds an image, a sound, a film or a document."""


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type without extensions and dictionaries, with large strings and lists, and fields in alphabetical order."""
    if isinstance(kind, pa.BaseExtensionType):
        return storage_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return storage_type(kind.value_type)
    if _is_text(kind):
        return pa.large_string()
    if _is_binary(kind):
        return pa.large_binary()
    if _is_list(kind):
        return pa.large_list(storage_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(name, storage_type(kind.field(name).type)) for name in field_names(kind)])
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """The array in its storage type at the top level, with text as bytes and booleans as bytes."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if _is_text(kind):
        return array.cast(pa.large_string()).cast(pa.large_binary())
    if _is_binary(kind):
        return array.cast(pa.large_binary())
    if _is_list(kind):
        return array.cast(pa.large_list(kind.value_type))
    if pa.types.is_boolean(kind):
        return array.cast(pa.uint8())
    return array


def field_names(kind: pa.DataType) -> list[str]:
    """Names of a struct's fields, in alphabetical order."""
    return sorted(kind.field(place).name for place in range(kind.num_fields))


def fields_of(array: pa.Array) -> list[pa.Array]:
    """The fields of a struct array without nulls, in alphabetical order."""
    kind, flat = array.type, array.flatten()
    return [flat[kind.get_field_index(name)] for name in field_names(kind)]


def is_number(kind: pa.DataType) -> bool:
    """Whether values are integers or floating-point numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def type_name(kind: pa.DataType) -> str:
    """A name that leaves children to themselves, except for the names of a struct's fields."""
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_large_list(kind):
        return "list"
    if is_media(kind):
        return "media"
    if pa.types.is_struct(kind):
        return json.dumps(["struct", field_names(kind)])
    return str(kind)


def is_media(kind: pa.DataType) -> bool:
    """Whether values are media as `datasets` stores them: their content, or the path of a file that holds it."""
    return pa.types.is_struct(kind) and set(field_names(kind)) == _MEDIA


def media_contents(array: pa.Array) -> Iterator[tuple[bytes, bool]]:
    """
    The content of each of the media, and whether it lies in the row.

    It is read from the file that the row names where it does not; a path that is no file here stands for itself.
    """
    contents, paths = array.field("bytes"), array.field("path")
    for row in range(len(array)):
        content = contents[row].as_py()
        yield (_file_content(paths[row].as_py()), False) if content is None else (content, True)


def fixed_bytes(array: pa.Array) -> Any:
    """The values of a fixed-width array without nulls, as one buffer that starts at its first row."""
    width = array.type.bit_width // 8
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return b""
    return memoryview(buffer)[array.offset * width : (array.offset + len(array)) * width]


def _file_content(path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                return file.read()
    except (OSError, ValueError):
        pass  # an address, or a file that is gone
    return path.encode()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)

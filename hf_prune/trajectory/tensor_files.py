"""Safetensors files that may be damaged, or come from somebody else."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from hf_prune._core.reading import Reader, one_line


def read_tensors(
    reader: Reader, path: Path, wanted: Container[str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file by name, all of them or the wanted ones alone, and its metadata."""
    with _parsing(reader, path), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if wanted is None or name in wanted]  # noqa: SIM118 - not a dictionary
        tensors = {name: file.get_tensor(name) for name in names}
        return tensors, dict(file.metadata() or {})


def read_shapes(reader: Reader, path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shapes of a file's tensors by name, and its metadata; only its header is read."""
    with _parsing(reader, path), safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return shapes, dict(file.metadata() or {})


@contextmanager
def _parsing(reader: Reader, path: Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")  # a named pipe would be waited for
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # what untrusted files raise inside the parser is open-ended
        raise reader.error(f"{path} is damaged ({one_line(error)}): {reader.mend}.") from error

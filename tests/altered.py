"""Alters files as accidents and strangers do, and tells apart the errors that are said in our words."""

from __future__ import annotations

import json
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 20
"""Longer than any altered file may take to be read."""
LONGEST = 800
"""Characters of an error."""
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 2**31, 10**9, 2**53 + 1, 2**62, 2**64, 10**400, 1.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "1", "nan", "a" * 5_000, "\u202e", "\x00", "\ud800", "{}", "NaN"),
    *("../..", "../../etc/passwd", "/etc/passwd", "~/x", "C:\\x", "file:///etc/passwd", "<script>alert(1)</script>"),
    *([], {}, [1], ["x"], [None], {"a": 1}, [[[]]], [0] * 300, {"mean": 1}, {"__class__": "x"}),
]
_DEEP = "nested too deeply"
_HOLE = json.dumps(_DEEP)


@dataclass(frozen=True)
class Format:
    """
    One kind of file, and the way in which it is read.

    Args:
        directory (`Path`): holds good files.
        files (`list[str]`): those of the kind, by their paths in the directory.
        read (`Callable`): reads the directory; what it returns is compared with what the good files say.
        sound (`Callable`, *optional*): whether a value that differs from the good one can be a true one.
        mend (`Callable`, *optional*): makes what depends on an altered file fit it, as a stranger would.
    """

    directory: Path
    files: list[str]
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool] = lambda value: False
    mend: Callable[[Path], None] | None = None


@dataclass
class Outcomes:
    """What became of the altered files."""

    same: int = 0
    sound: int = 0
    refused: int = 0
    opaque: list[str] = field(default_factory=list)
    """Errors from below our code, or not in our words."""
    false: list[str] = field(default_factory=list)
    """What was read without an error, though it is neither the same nor sound."""

    @property
    def tried(self) -> int:
        return self.same + self.sound + self.refused + len(self.opaque) + len(self.false)


def try_altered(form: Format, count: int, work: Path) -> Outcomes:
    """Alters one file at a time, `count` times, and reads; `work` is a directory to do so in."""
    found = Outcomes()
    good = form.read(form.directory)
    for seed in range(count):
        rng = random.Random(seed)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(form.directory, work)
        name = form.files[seed % len(form.files)]
        what = alter(work / name, [work / other for other in form.files if other != name], rng)
        if form.mend is not None and rng.random() < 0.5:
            form.mend(work)
        where = f"{name}, seed {seed} ({what})"
        try:
            with limited():
                value = form.read(work)
        except Exception as error:
            if said(error):
                found.refused += 1
            else:
                found.opaque.append(f"{where}: {told(error)}")
            continue
        if same(value, good):
            found.same += 1
        elif _sound(form, value):
            found.sound += 1
        else:
            found.false.append(f"{where}: {_difference(value, good)}")
    return found


def _sound(form: Format, value: Any) -> bool:
    try:
        return bool(form.sound(value))
    except Exception:
        return False


class limited:  # noqa: N801 - a context manager
    """Ends what hangs."""

    def __enter__(self) -> None:
        def stop(*_: Any) -> None:
            raise RuntimeError(f"not done after {SECONDS} seconds")

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def said(error: Exception) -> bool:
    """Whether an error is one of ours, raised by our code, in a sentence or two that say what to do."""
    words, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
    ours = "/hf_prune/" in last.filename and (last.line or "").startswith("raise ") and 0 < len(words) < LONGEST
    if type(error).__module__.startswith("hf_prune."):
        return ours
    return ours and isinstance(error, ValueError | TypeError | FileNotFoundError) and words.endswith((".", "?"))


def told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:160]!r} at {Path(last.filename).name}:{last.lineno} {last.line}"


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, NaN and NaN too."""
    return repr(one) == repr(other)


def _difference(value: Any, good: Any) -> str:
    if isinstance(value, dict) and isinstance(good, dict):
        return str({name: str(item)[:200] for name, item in value.items() if not same(item, good.get(name))})
    return str(value)[:200]


def alter(path: Path, others: list[Path], rng: random.Random) -> str:
    """Alters a file in one of many ways; returns which."""
    content, action = path.read_bytes(), rng.random()
    if action < 0.02:
        path.write_bytes(b"")
        return "emptied"
    if action < 0.05 and others:
        other = rng.choice(others)
        swapped = other.read_bytes()
        other.write_bytes(content)
        path.write_bytes(swapped)
        return f"swapped with {other.name}"
    structure = {".json": _document, ".jsonl": _lines, ".safetensors": _header}.get(path.suffix)
    if structure is None or action < 0.3:
        path.write_bytes(_bytes(content, rng))
        return "bytes"
    path.write_bytes(structure(content, rng))
    return "values"


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Replaces, adds or repeats a few bytes, or cuts the file."""
    altered = bytearray(content)
    for _ in range(rng.choice([1, 2, 8])):
        place, action = rng.randrange(len(altered) + 1), rng.random()
        if action < 0.15:
            del altered[place:]
        elif action < 0.25:
            altered[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 1000])))
        elif action < 0.35:
            altered[place:place] = altered[place : place + 64]
        elif place < len(altered):
            altered[place] = rng.randrange(256) if action < 0.7 else rng.choice(b'0123456789-.eE",:[]{}')
    return bytes(altered)


def _document(content: bytes, rng: random.Random) -> bytes:
    """Alters one to three values of a JSON document."""
    document = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if any(True for _ in _places(document)):
            _value(document, rng)
    text = json.dumps(document)
    depth = rng.choice([1_000, 100_000])
    text = text.replace(_HOLE, rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]))
    if rng.random() < 0.05 and isinstance(document, dict) and document:
        key = rng.choice(list(document))  # twice, the second is the one that was there
        text = "{" + f"{json.dumps(key)}: {json.dumps(rng.choice(VALUES))}, " + text[1:]
    return text.encode()


def _value(document: Any, rng: random.Random) -> None:
    """Removes, adds or replaces one value."""
    *path, last = rng.choice(list(_places(document)))
    for key in path:
        document = document[key]
    action, value = rng.random(), deepcopy(rng.choice(VALUES))
    if action < 0.15:
        del document[last]
    elif action < 0.25 and isinstance(document, dict):
        document["unknown"] = value
    elif action < 0.30 and isinstance(document, list):
        document.append(deepcopy(document[last]))
    elif action < 0.33:
        document[last] = _DEEP
    elif action < 0.40 and isinstance(document[last], int | float):
        document[last] = rng.choice([-document[last], 2 * document[last], document[last] + 1, document[last] - 1])
    else:
        document[last] = value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(item, (*path, key))


def _lines(content: bytes, rng: random.Random) -> bytes:
    """Alters, removes, repeats or exchanges lines of JSON."""
    lines, action = content.split(b"\n"), rng.random()
    place, other = (rng.randrange(max(1, len(lines) - 1)) for _ in range(2))
    if action < 0.1:
        del lines[place]
    elif action < 0.2:
        lines.insert(other, lines[place])
    elif action < 0.3:
        lines[place], lines[other] = lines[other], lines[place]
    elif lines[place]:
        lines[place] = _document(lines[place], rng)
    return b"\n".join(lines)


def _header(content: bytes, rng: random.Random) -> bytes:
    """Alters the header of a safetensors file: names, types, shapes, offsets, metadata; or its length."""
    size = int.from_bytes(content[:8], "little")
    header, action = content[8 : 8 + size], rng.random()
    if action < 0.1:
        return rng.choice([0, 1, size - 1, size + 8, 2**31, 2**62, 2**64 - 1]).to_bytes(8, "little") + content[8:]
    header = _document(header, rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]

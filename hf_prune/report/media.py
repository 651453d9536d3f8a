"""Images, sounds and texts of rows, in forms that a page can hold."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LARGEST_SIDE = 256
"""Pixels of an image in the page."""
LARGEST_AUDIO = 1 << 20
"""Bytes of a sound in the page."""
LONGEST_TEXT = 600
"""Characters of a text to show."""
_SOUNDS = {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}
_MP3 = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def sound_type(content: bytes) -> str | None:
    """The MIME type of a sound by its first bytes; None if it is none that browsers play."""
    for start, mime in _SOUNDS.items():
        if content.startswith(start):
            return mime
    return "audio/mpeg" if content.startswith(_MP3) else None


def file_bytes(value: Any) -> bytes | None:
    """The content of an undecoded file: `{"bytes", "path"}` as `datasets` keeps images and sounds, or bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, Mapping):
        return None
    if value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path")
    return Path(path).read_bytes() if path and Path(path).is_file() else None


def picture(value: Any) -> bytes:
    """
    An image as a PNG of at most 256 pixels a side.

    Args:
        value (`Any`): An undecoded file, or numbers of shape `(channels, height, width)` as models take them.

    Raises:
        `ValueError`: If it is no image that can be read.
    """
    content = file_bytes(value)
    if content is None and isinstance(value, Mapping):
        raise ValueError("the image's file is not there")
    try:
        image = _of_pixels(np.asarray(value, dtype=np.float64)) if content is None else Image.open(io.BytesIO(content))
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        # modes such as CMYK and F have no PNG
        image = image.convert(image.mode if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "RGB")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError("the image cannot be read") from error
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sound(value: Any) -> bytes:
    """
    A sound as a file that browsers play.

    Args:
        value (`Any`): An undecoded file, or `{"array", "sampling_rate"}`.

    Raises:
        `ValueError`: If it is no such sound, or too large for a page.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        content = _wav(np.asarray(value["array"], dtype=np.float64), int(value["sampling_rate"]))
    else:
        found = file_bytes(value)
        if found is None:
            raise ValueError("the sound's file is not there")
        content = found
    if sound_type(content) is None:
        raise ValueError("the sound is of a format that browsers do not play")
    if len(content) > LARGEST_AUDIO:
        raise ValueError(f"the sound is too large to be put here ({len(content) / 2**20:.1f} MiB)")
    return content


def shorten(text: str) -> str:
    """A text that is no longer than what a page shows of one row."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def conversation(messages: Any) -> str:
    """A list of `{"role", "content"}` as lines."""
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in messages or ())


def _of_pixels(values: np.ndarray) -> Image.Image:
    """Numbers of any range as grey or colour; a model's normalisation is undone as far as brightness goes."""
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError("not of shape (1 or 3, height, width)")
    low, high = float(values.min()), float(values.max())
    bytes_ = ((values - low) / max(high - low, 1e-12) * 255).round().astype("uint8")
    return Image.fromarray(bytes_[0] if len(bytes_) == 1 else np.moveaxis(bytes_, 0, -1).copy())


def _wav(samples: np.ndarray, rate: int) -> bytes:
    """One channel of samples in [-1, 1] as 16-bit WAV."""
    mono = samples.mean(axis=0) if samples.ndim == 2 else samples
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(mono, -1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()

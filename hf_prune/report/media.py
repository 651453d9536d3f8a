"""Images, sounds and texts of rows, in forms that a page can hold."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_prune._core.reading import Reader, one_line
from hf_prune.publish.media import may_be_read

LARGEST_SIDE = 256
"""Pixels of an image in the page."""
MOST_PIXELS = 1 << 26
"""Of an image that is decoded: at most 256 MiB."""
LARGEST_FILE = 1 << 28
"""Bytes of a file that is read."""
LARGEST_AUDIO = 1 << 20
"""Bytes of a sound in the page."""
LONGEST_TEXT = 600
"""Characters of a text to show."""
_READER = Reader(ValueError, "it is not shown")
_FORMATS = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_SOUNDS = {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}
_MP3 = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def sound_type(content: bytes) -> str | None:
    """The MIME type of a sound by its first bytes; None if it is none that browsers play."""
    for start, mime in _SOUNDS.items():
        if content.startswith(start):
            return mime
    return "audio/mpeg" if content.startswith(_MP3) else None


def file_bytes(value: Any, what: str) -> bytes:
    """
    The content of an undecoded file.

    Args:
        value (`Any`): `{"bytes", "path"}` as `datasets` keeps images and sounds, or bytes.
        what (`str`): What the file holds, for messages.

    Raises:
        `ValueError`: if it is not in the row, and what the row names is no file of media that can be read.
    """
    content = value if isinstance(value, bytes) else value.get("bytes")
    if not content:
        path = value.get("path") if isinstance(value, Mapping) else None
        if not path:
            raise ValueError(f"the row has no {what}")
        if not may_be_read(path) or "://" in path:
            raise ValueError(f"the {what} is not in the row, and {one_line(path)} is not opened")
        try:
            content = _READER.content(Path(path), LARGEST_FILE)
        except ValueError as error:
            raise ValueError(f"the {what}'s file cannot be read ({one_line(error)})") from error
        if content is None:
            raise ValueError(f"the {what}'s file is not there")
    if len(content) > LARGEST_FILE:
        raise ValueError(f"the {what} is too large to be read ({len(content) / 2**20:.0f} MiB)")
    return bytes(content)


def picture(value: Any) -> bytes:
    """
    An image as a PNG of at most 256 pixels a side.

    Args:
        value (`Any`): An undecoded file, or numbers of shape `(channels, height, width)` as models take them.

    Raises:
        `ValueError`: If it is no image that can be read, or has too many pixels.
    """
    content = file_bytes(value, "image") if isinstance(value, bytes | Mapping) else None
    try:
        image = _of_pixels(np.asarray(value, dtype=np.float64)) if content is None else _opened(content)
        size = image.size
        if size[0] * size[1] <= MOST_PIXELS:
            return _png(image)
    except Image.DecompressionBombError as error:
        raise ValueError("the image has too many pixels to be shown") from error
    except Exception as error:  # what damaged images raise inside the decoders is open-ended
        raise ValueError("the image cannot be read") from error
    raise ValueError(f"the image has too many pixels to be shown ({size[0]:,} x {size[1]:,})")


def sound(value: Any) -> bytes:
    """
    A sound as a file that browsers play; it is not decoded.

    Args:
        value (`Any`): An undecoded file, or `{"array", "sampling_rate"}`.

    Raises:
        `ValueError`: If it is no such sound, or too large for a page.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        try:
            content = _wav(np.asarray(value["array"], dtype=np.float64), int(value["sampling_rate"]))
        except Exception as error:  # numbers of any shape, and rates that no sound has
            raise ValueError("the sound cannot be read") from error
    else:
        content = file_bytes(value, "sound")
    if sound_type(content) is None:
        raise ValueError("the sound is of a format that browsers do not play")
    if len(content) > LARGEST_AUDIO:
        raise ValueError(f"the sound is too large to be put here ({len(content) / 2**20:.1f} MiB)")
    return content


def shorten(text: str | None) -> str | None:
    """A text that is no longer than what a page shows of one row."""
    return text if text is None or len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def _opened(content: bytes) -> Image.Image:
    """The image, not yet decoded; of formats that are only decoded, where others run programs."""
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _png(image: Image.Image) -> bytes:
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    # modes such as CMYK and F have no PNG
    image = image.convert(image.mode if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _of_pixels(values: np.ndarray) -> Image.Image:
    """Numbers of any range as grey or colour; a model's normalisation is undone as far as brightness goes."""
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError("not of shape (1 or 3, height, width)")
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    low, high = float(values.min()), float(values.max())
    bytes_ = ((values - low) / max(high - low, 1e-12) * 255).round().astype("uint8")
    return Image.fromarray(bytes_[0] if len(bytes_) == 1 else np.moveaxis(bytes_, 0, -1).copy())


def _wav(samples: np.ndarray, rate: int) -> bytes:
    """One channel of samples in [-1, 1] as 16-bit WAV."""
    mono = np.nan_to_num(samples.mean(axis=0) if samples.ndim == 2 else samples)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(mono, -1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()

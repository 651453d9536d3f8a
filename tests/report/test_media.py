"""Images, sounds and texts of rows get into the page as what they are."""

import base64
import io
import os
import random
import re
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value, Video
from PIL import Image as Pillow

from hf_prune.report import ReportData, media, render_report, selection_parts
from hf_prune.report.examples import _tried
from hf_prune.selection import select

RATE = 8000


def tone(seconds: float = 0.05) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        samples = np.sin(np.arange(int(RATE * seconds)) * 0.3)
        file.writeframes((samples * 20000).astype("<i2").tobytes())
    return buffer.getvalue()


def scored_with(rows: int = 20, **columns) -> Dataset:
    """A scored dataset with columns given as `(values, feature)`."""
    influence = np.random.default_rng(0).normal(size=(rows, 8)).astype("float32")
    values = {name: column[0] for name, column in columns.items()}
    features = {name: column[1] for name, column in columns.items()}
    values |= {"influence": influence.tolist(), "influence_norm": np.linalg.norm(influence, axis=1).tolist()}
    features |= {"influence": List(Value("float32"), length=8), "influence_norm": Value("float32")}
    return Dataset.from_dict(values, features=Features(features))


def examples_of(dataset: Dataset) -> list:
    parts = selection_parts(select(dataset, 0.5, balance=False), dataset)
    return [row for _, _, rows in parts["examples"] for row in rows]


def test_sounds_are_players_without_a_decoder_being_installed():
    file = {
        "bytes": Value("binary"),
        "path": Value("string"),
    }
    # cast: a column of `Audio` cannot be made without the decoder
    dataset = scored_with(audio=([{"bytes": tone(), "path": None}] * 20, file)).cast_column("audio", Audio())
    parts = selection_parts(select(dataset, 0.5, balance=False), dataset)
    page = render_report(ReportData(title="t", **parts))
    sources = re.findall(r'<audio controls preload="none" src="data:audio/wav;base64,([^"]+)"', page)
    assert len(sources) == sum(len(rows) for _, _, rows in parts["examples"]) + 2 * len(parts["pairs"])
    assert base64.b64decode(sources[0]) == tone()


def test_samples_become_a_sound():
    samples = np.sin(np.arange(400) * 0.3)
    with wave.open(io.BytesIO(media.sound({"array": samples, "sampling_rate": RATE}))) as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, 400)
        frames = np.frombuffer(file.readframes(400), "<i2")
    np.testing.assert_allclose(frames / 32767, samples, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bytes": b"no sound", "path": None}, "a format that browsers do not play"),
        ({"bytes": None, "path": "nowhere.wav"}, "file is not there"),
        ({"bytes": None, "path": "/etc/passwd"}, "not in the row, and /etc/passwd is not opened"),
        ({"bytes": None, "path": "https://x.example/a.wav"}, "https://x.example/a.wav is not opened"),
        ({"bytes": b"", "path": None}, "the row has no sound"),
        ({"array": [0.0] * 9, "sampling_rate": None}, "cannot be read"),
        ({"array": [0.0] * 9, "sampling_rate": 0}, "cannot be read"),
        ({"array": [[[0.0]], [1.0]], "sampling_rate": 8000}, "cannot be read"),
        ({"bytes": b"RIFF" + b"x" * (media.LARGEST_AUDIO + 1), "path": None}, r"too large to be put here \(1.0 MiB\)"),
    ],
)
def test_a_sound_that_cannot_be_shown_is_said(value, message):
    with pytest.raises(ValueError, match=message):
        media.sound(value)


def test_a_damaged_image_is_said_and_the_page_is_still_made():
    dataset = scored_with(image=([{"bytes": b"damaged", "path": None}] * 20, Image()))
    rows = examples_of(dataset)
    assert {row.remark for row in rows} == {"the image cannot be read"}
    parts = selection_parts(select(dataset, 0.5, balance=False), dataset)
    assert "Not shown: the image cannot be read." in render_report(ReportData(title="t", **parts))


def test_what_a_model_takes_as_pixels_is_shown_as_an_image():
    pixels = np.zeros((20, 1, 8, 8), dtype="float32")
    pixels[:, 0, 2, 5] = 3.0
    line = List(List(List(Value("float32"), length=8), length=8), length=1)
    row = examples_of(scored_with(pixel_values=(pixels.tolist(), line)))[0]
    image = np.asarray(Pillow.open(io.BytesIO(row.image)))
    assert image[2, 5] == 255
    assert image.sum() == 255


def test_large_images_are_made_smaller():
    large = Pillow.new("CMYK", (1000, 500))
    dataset = scored_with(image=([large] * 20, Image()))
    image = Pillow.open(io.BytesIO(examples_of(dataset)[0].image))
    assert (image.size, image.format, image.mode) == ((256, 128), "PNG", "RGB")


def test_pairs_of_texts_and_conversations_are_named():
    string = Value("string")
    pair = examples_of(scored_with(premise=(["a"] * 20, string), hypothesis=(["b"] * 20, string)))[0]
    assert pair.text == "premise: a\nhypothesis: b"
    turns = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]] * 20
    kind = List({"role": string, "content": string})
    assert examples_of(scored_with(messages=(turns, kind)))[0].text == "user: Hello\nassistant: Hi"


def test_a_label_that_is_missing_has_no_name():
    classes = ClassLabel(names=["no", "yes"])
    dataset = scored_with(label=([-1, 1] * 10, classes), text=(["x"] * 20, Value("string")))
    assert {row.label for row in examples_of(dataset)} == {"-1", "yes"}


def encoded(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """A small PNG whose header tells of another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + encoded("PNG")[24:29]
    return encoded("PNG")[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded("PNG")[33:]


@pytest.mark.parametrize("side", [8_193, 12_000, 60_000])
def test_an_image_of_too_many_pixels_is_not_decoded(side: int):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="the image has too many pixels to be shown"):
        media.picture({"bytes": png_that_says(side, side), "path": None})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**16  # KiB


def test_an_image_is_of_a_format_that_is_only_decoded():
    assert media.picture({"bytes": encoded("JPEG"), "path": None})
    for kind in ("EPS", "PDF"):  # the decoder of the first runs another program
        with pytest.raises(ValueError, match="the image cannot be read"):
            media.picture({"bytes": encoded(kind), "path": None})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "JPEG2000", "PPM"])
def test_altered_images_are_shown_or_said_to_be_unreadable(kind: str):
    good = encoded(kind, (32, 32))
    for seed in range(60):
        rng = random.Random(seed)
        altered = bytearray(good)
        for _ in range(rng.choice([1, 4, 16])):
            altered[rng.randrange(len(altered))] = rng.randrange(256)
        content = bytes(altered if seed % 3 else altered[: rng.randrange(len(altered))])
        shown, remark = _tried(media.picture, {"bytes": content, "path": None})
        assert shown is None or Pillow.open(io.BytesIO(shown)).format == "PNG"
        assert remark is None or remark.startswith(("the image ", "the row has no image"))


def test_pixels_that_are_not_finite_are_no_image():
    with pytest.raises(ValueError, match="the image cannot be read"):
        media.picture(np.full((1, 4, 4), np.nan))


def test_files_that_rows_name_are_opened_only_if_they_can_be_media(tmp_path: Path):
    secret = tmp_path / "key.txt"
    secret.write_bytes(encoded("PNG"))
    named = tmp_path / "photo.png"
    named.write_bytes(encoded("PNG"))
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert media.picture({"bytes": None, "path": str(named)})
    for path, message in (
        (secret, "is not opened"),
        (pipe, "not a regular file"),
        (tmp_path, "is not opened"),
        (tmp_path / "nowhere.png", "file is not there"),
        ("a" * 5_000 + ".png", "cannot be read"),
        ("x\x00.png", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            media.picture({"bytes": None, "path": str(path)})
        assert len(str(error.value)) < 800


def test_a_report_shows_which_file_it_did_not_open_and_runs_no_part_of_its_name(tmp_path: Path):
    evil = '/etc/<script>alert(1)</script>"onerror="x'
    dataset = scored_with(image=([{"bytes": None, "path": evil}] * 20, Image()))
    page = render_report(ReportData(title="t", **selection_parts(select(dataset, 0.5, balance=False), dataset)))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page


def test_columns_that_are_not_shown_are_not_decoded():
    file = {"bytes": Value("binary"), "path": Value("string")}
    broken = [{"bytes": b"no film", "path": "/etc/passwd"}] * 20
    dataset = scored_with(
        film=(broken, file), images=([[one] for one in broken], List(file)), text=(["x"] * 20, Value("string"))
    )
    dataset = dataset.cast_column("film", Video()).cast_column("images", List(Image()))
    assert {row.text for row in examples_of(dataset)} == {"x"}


def test_labels_and_messages_of_any_kind_are_shown():
    classes = ClassLabel(names=["no", "yes"])
    label = pa.array([7] * 20, pa.int64())
    dataset = scored_with(label=([0] * 20, classes), messages=([["a", None]] * 20, List(Value("string"))))
    table = dataset.data.table.set_column(dataset.column_names.index("label"), "label", label)
    row = examples_of(Dataset(table, info=dataset.info))[0]
    assert (row.label, row.text) == ("7", "a\nNone")
    long = scored_with(label=(["x" * 10**6] * 20, Value("string")), text=(["y" * 10**6] * 20, Value("string")))
    page = render_report(
        ReportData(title="t", examples=selection_parts(select(long, 0.5, balance=False), long)["examples"])
    )
    assert len(page) < 300_000

"""Images, sounds and texts of rows get into the page as what they are."""

import base64
import io
import re
import wave

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow

from hf_prune.report import ReportData, media, render_report, selection_parts
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
    assert len(sources) == sum(len(rows) for _, _, rows in parts["examples"])
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

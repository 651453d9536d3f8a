"""A row of a stranger may name any file of this machine: only media get into what is published or saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from PIL import Image as Picture

from hf_prune.publish import media, shards
from hf_prune.selection import prune
from tests.publish import samples


def rows(paths: list[str], feature: Any = None) -> Dataset:
    feature = feature or Image()
    values: list[Any] = [[path] for path in paths] if isinstance(feature, List) else paths
    return Dataset.from_dict({"image": values}, features=Features({"image": feature}))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.PNG") for i in range(60)]
    for path in paths:
        Picture.new("RGB", (2, 2)).save(path)
    return paths


@pytest.mark.parametrize("feature", [Image(), Image(decode=False), List(Image())])
def test_secret_that_a_row_names_gets_into_nothing(tmp_path, pictures, feature):
    secret = tmp_path / "id_rsa"
    secret.write_text("a secret key")
    scored = samples.scored(rows([*pictures[:-1], str(secret)], feature))
    pruned = prune(scored, keep=60)
    with pytest.raises(ValueError, match="id_rsa, which is not an image"):
        pruned.save_to_disk(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match="id_rsa, which is not an image"):
        shards._write(scored, tmp_path / "shard.parquet", embed=True)
    assert not (tmp_path / "shard.parquet").exists()


def test_device_that_never_ends_is_not_opened():
    with pytest.raises(ValueError, match="/dev/zero, which is not an image"):
        media.check(rows(["/dev/zero"]))


def test_pictures_are_saved_with_their_content(tmp_path, pictures):
    prune(samples.scored(rows(pictures)), keep=0.5).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(str(tmp_path / "saved")).cast_column("image", Image(decode=False))
    assert saved[0]["image"]["bytes"] == Path(pictures[0]).read_bytes()


def test_what_was_downloaded_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr(media.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    media.check(rows([str(tmp_path / "cache" / "blobs" / "0a1b2c")]))
    outside = os.path.join(tmp_path, "cache", "..", "id_rsa")
    with pytest.raises(ValueError, match="id_rsa"):
        media.check(rows([outside]))


def test_rows_without_media_are_not_read():
    assert media.columns(samples.plain()) == []
    media.check(Dataset.from_dict({"text": ["/etc/passwd"]}, features=Features({"text": Value("string")})))

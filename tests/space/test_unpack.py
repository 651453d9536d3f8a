"""Zip files from strangers, against the function that unpacks them."""

from __future__ import annotations

import importlib.util
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from tests.space.zips import zipped

PLACE = Path(__file__).parents[2] / "space" / "unpack.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("unpack", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(module, tmp_path):
    """Says why a zip file is refused; nothing is left outside the directory."""

    def refuse(file: Path) -> str:
        into = tmp_path / "into" / "deep"
        into.mkdir(parents=True)
        with pytest.raises(ValueError, match="zip") as error:
            module.unpack(file, into)
        assert {path for path in tmp_path.rglob("*") if path.is_file()} - {file} <= set(into.rglob("*"))
        return str(error.value)

    return refuse


def member(name: str, kind: int = 0) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = kind << 16
    return found


def test_what_is_read_is_unpacked_and_nothing_else(module, tmp_path):
    also = {
        "run/manifest.json": b"{}",
        "run/ledger/rank-00000-part-000.jsonl": b"[]",
        "run/scores/.work.lock": b"",
        "run/scores/0.arrow": b"x" * 100,
        "__MACOSX/run/._manifest.json": b"",
    }
    into = tmp_path / "into"
    into.mkdir()
    root = module.unpack(zipped(tmp_path / "run.zip", None, also), into)
    assert root == into / "run"
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "ledger/rank-00000-part-000.jsonl",
        "manifest.json",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.json",
        "/etc/manifest.json",
        "a/../../manifest.json",
        "a\\..\\manifest.json",
        "C:/manifest.json",
        "..",
    ],
)
def test_a_member_that_leads_elsewhere_is_refused(refused, tmp_path, name):
    assert "which is no plain file" in refused(zipped(tmp_path / "evil.zip", None, {name: b"{}"}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(refused, tmp_path, kind):
    evil = {member("manifest.json", kind | 0o777): b"/etc/passwd"}
    assert "'manifest.json', which is no plain file" in refused(zipped(tmp_path / "evil.zip", None, evil))


def test_a_bomb_is_refused_before_it_is_unpacked(refused, module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2**20)
    bomb = zipped(tmp_path / "bomb.zip", None, {"manifest.json": bytes(2**20 + 1)})
    assert bomb.stat().st_size < 2**11
    assert "unpacks to 1,048,577 bytes, and at most 1,048,576" in refused(bomb)


def test_a_bomb_that_lies_about_its_size_is_cut_off(refused, tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", None, {"manifest.json": bytes(2**22)})
    content = bomb.read_bytes()
    assert content.count(struct.pack("<L", 2**22)) == 2  # before the member, and in the list of members
    bomb.write_bytes(content.replace(struct.pack("<L", 2**22), struct.pack("<L", 10)))
    assert "cannot be unpacked (Bad CRC-32" in refused(bomb)
    assert (tmp_path / "into/deep/manifest.json").stat().st_size <= 10


def test_a_compression_that_unpacks_without_bounds_is_refused(refused, tmp_path):
    file = tmp_path / "bomb.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("manifest.json", bytes(2**20))
    assert "which is no plain file" in refused(file)


def test_too_many_members_are_refused(refused, module, tmp_path, monkeypatch):
    many = zipped(tmp_path / "many.zip", None, {f"ledger/{i}.jsonl": b"" for i in range(5001)})
    assert "holds 5,001 files, and at most 5,000" in refused(many)


def test_a_list_of_members_that_is_too_long_is_refused_before_it_is_read(refused, module, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", None)  # would be called
    file = tmp_path / "evil.zip"
    file.write_bytes(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 9, 9, 2**20 + 1, 0, 0))
    assert "lists too many files" in refused(file)


def test_a_second_end_with_a_longer_list_is_refused(refused, module, tmp_path, monkeypatch):
    file = zipped(tmp_path / "evil.zip", None, {"manifest.json": b"{}"})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    content = file.read_bytes()
    file.write_bytes(content[:-22] + b"PK\6\7" + bytes(16) + content[-22:])
    assert "lists too many files" in refused(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>", bytes(100)])
def test_what_is_no_zip_file_is_refused(refused, tmp_path, content):
    file = tmp_path / "not.zip"
    file.write_bytes(content)
    assert "not a zip file" in refused(file)


def test_two_members_of_one_name_are_refused(refused, tmp_path):
    file = tmp_path / "evil.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("manifest.json", b"[]")
    assert "cannot be unpacked" in refused(file)


def test_a_member_with_a_password_is_refused(refused, tmp_path):
    file = zipped(tmp_path / "locked.zip", None, {"manifest.json": b"{}"})
    content = bytearray(file.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    file.write_bytes(bytes(content))
    assert "cannot be unpacked" in refused(file)

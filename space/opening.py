"""What a visitor opens: read within the limits that hf_prune has for what others made, and put into words."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from unpack import unpack

from hf_prune import Trajectory
from hf_prune._core.reading import Reader, one_line
from hf_prune._core.words import plain
from hf_prune.cli.places import OnHub
from hf_prune.cli.show import figures
from hf_prune.publish.limits import utf8
from hf_prune.publish.replay import Record
from hf_prune.report import ReportData, how_it_was_made, observed, render_report, selection_parts
from hf_prune.selection import Selection
from hf_prune.trajectory import summarize

LARGEST_UPLOAD = 256 * 2**20
LARGEST_PAGE = 16 * 2**20
"""Bytes of a report; it is sent to the visitor twice, up and down."""
_READER = Reader(ValueError, "upload another file")
_NAME = "write it as owner/name, owner/name@revision or owner/name:config/"


@dataclass(frozen=True)
class Opened:
    """
    What is shown.

    Args:
        verdict (`str`): The first line.
        remark (`str`): What it rests on.
        figures (`Sequence[tuple[str, str]]`): Names and values.
        certificate (`str`, *optional*): What is predicted of a selection.
        page (`str`, *optional*): A report, as HTML.
    """

    verdict: str
    remark: str
    figures: Sequence[tuple[str, str]] = ()
    certificate: str | None = None
    page: str | None = None


def from_hub(name: str) -> Opened:
    """
    A pruned dataset on the Hub, from its provenance: two small files are read, and no rows.

    Raises:
        `ValueError`: Says in a sentence why it cannot be opened.
    """
    hub = OnHub.named(name)
    if hub is None or "/" not in hub.id:
        raise ValueError(f"{one_line(name) or 'Nothing'!r} is not the name of a dataset: {_NAME}.")
    try:
        # token=False: a token of the Space is not for its visitors
        record = Record.open(hub.id, config_name=hub.config or "default", revision=hub.revision, token=False)
    except RepositoryNotFoundError as error:
        raise ValueError(f"There is no public dataset {hub.id} on the Hub.") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"The dataset {hub.id} has no revision {hub.revision}.") from error
    except OSError as error:
        raise ValueError(f"The Hub did not give {hub.id} ({one_line(error)}): try again later.") from error
    return _of_record(record, hub.id)


def from_upload(file: Path) -> Opened:
    """
    A report, or a zip file of a recorded run, a selection or a pruned dataset.

    Raises:
        `ValueError`: Says in a sentence why it cannot be opened.
    """
    with tempfile.TemporaryDirectory() as directory:
        try:
            if file.suffix == ".html":
                return _of_page(file)
            return _of_directory(unpack(file, Path(directory)), file.stem)
        except ValueError as error:  # where files lie is nothing to a visitor
            raise ValueError(str(error).replace(f"{directory}/", "").replace(f"{file.parent}/", "")) from error


def _of_page(file: Path) -> Opened:
    content = _READER.content(file, LARGEST_PAGE) or b""
    remark = "It is shown as it is: its own script may search its rows, no other runs, and nothing in it was checked."
    return Opened(f"The report {file.name}", remark, page=utf8(content, file.name))


def _of_directory(root: Path, name: str) -> Opened:
    if (root / "manifest.json").is_file():
        return _of_run(root)
    if (root / "selection.json").is_file():
        return _of_selection(Selection.load(root), name)
    if (root / "hf_prune").is_dir():
        return _of_record(Record.open(str(root)), name)
    raise ValueError(
        "The zip file holds neither a recorded run (manifest.json), nor a selection (selection.json), nor a pruned "
        "dataset (hf_prune/provenance.json): zip the directory that hf_prune wrote."
    )


def _of_run(root: Path) -> Opened:
    summary = summarize(root)
    return Opened(_run_verdict(summary), _run_remark(Trajectory.open(root)), figures(summary))


def _run_verdict(summary: dict) -> str:
    steps = summary["steps"]
    recorded, planned = f"{steps['recorded']:,}", f"{steps['planned']:,}"
    if summary["stopped"]:
        return f"Recording stopped after {recorded} of {planned} steps: {one_line(summary['stopped'])}"
    if summary["complete"]:
        return f"A whole run: {recorded} of {planned} steps over {summary['rows']:,} rows were recorded."
    return f"The run was ended after {recorded} of {planned} steps, and is recorded up to there."


def _run_remark(record: Trajectory) -> str:
    steps = record.snapshot_steps
    if not steps:
        return "Its snapshots are not in the zip file, which is enough to look at it; scoring takes two of them."
    if len(steps) == 1:
        return "It has one snapshot, and scoring takes two."
    return f"Rows can be scored over the steps {steps[0]:,} to {steps[-1]:,}."


def _of_selection(selection: Selection, name: str) -> Opened:
    certificate = selection.certificate
    asked = {name: value for name, value in selection.config.to_dict().items() if value is not None}
    page = render_report(ReportData(title=f"Selection: {name}", **selection_parts(selection)))
    return Opened(
        plain(certificate.verdict),
        "As it was predicted when the rows were chosen; nothing was computed again.",
        figures(asked),
        certificate.explain(),
        page,
    )


def _of_record(record: Record, name: str) -> Opened:
    selection, made = record.selection(), how_it_was_made(record.provenance)
    said = observed(record.provenance)
    page = ReportData(title=f"Pruning report: {name}", made=made, observed=said, **selection_parts(selection))
    return Opened(
        said or plain(selection.certificate.verdict),
        f"As its publisher says; anyone can make the rows again and compare them: hf-prune replay {name}",
        made,
        selection.certificate.explain(),
        render_report(page),
    )

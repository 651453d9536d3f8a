"""Every number in the documents comes from a result file, from the code, or from a test that is named beside it."""

from __future__ import annotations

import re

import pytest

from tests.docs.figures import FIGURE, ROOT, blocks, literals, number, prose, result, said
from tests.docs.measured import MEASURED
from tests.docs.settings import SETTINGS

SAID = (*MEASURED, *SETTINGS)
NAMES = (
    *("IEEE TPAMI 2026", "Intelligence, 2026", "ICLR 2023", "Maehara 2019", "DOI [10.1109/TPAMI.2026.3703395]"),
    *(
        "[10.1109/TPAMI.2026.3703395]",
        "[arXiv 2205.09329]",
        "as it was in 2026",
        "Spark 4.3",
        "signal 9",
        "1970 and in 2106",
    ),
    *("95 % interval", "61.26 % less; of what, is not public", "-100", "2 B", "step 0", "rank 0", "ledger of rank 1"),
    *("4 or 8 bits", "32 and 8 bits", "8 bits", "32 bits", "power -1/2", "keep=0.5 for half"),
    *("root mean square length 1", "below 1 is ahead of chance"),
    *("0, -1 or 10^9, 100,000 nested lists", "huge numbers, paths, half characters, 100,000 nested lists"),
)
"""Numbers in names, and in what is quoted: nobody measured or chose them here."""
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


def untraced(document: str) -> list[str]:
    """
    The numbers of a document that are in no compared table or phrase, in no name, and in no test that is named beside
    them: in the same sentence, or the same line of a table.
    """
    text = prose(document)
    known = [said(document, phrase, values) for where, phrase, values in SAID if where == document]
    spans = [found.span(group) for found in known for group in range(1, found.re.groups + 1)]
    spans += [found.span() for name in NAMES for found in re.finditer(re.escape(name), text)]
    left = []
    for part in re.finditer(r"(?m)^\|.*$|(?:(?!\. |$).)+", text):
        held = {value for test in re.findall(r"`(test_\w+)`", part[0]) for value in literals(test)}
        for found in FIGURE.finditer(text, *part.span()):
            inside = any(start <= found.start() and found.end() <= end + 1 for start, end in spans)
            if not inside and number(found[0]) not in held:
                left.append(f"{found[0]} in: {part[0].strip()}")
    return left


@pytest.mark.parametrize(("document", "phrase", "values"), SAID, ids=[phrase for _, phrase, _ in SAID])
def test_what_is_said_in_words(document: str, phrase: str, values: list[float]):
    said(document, phrase, values)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_other_numbers_are_said(document: str):
    assert untraced(document) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_hides_in_code(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert not [code for code in re.findall(r"`([^`\n]+)`", text) if re.fullmatch(r"[\d.,+\-± /%]+", code)]


def test_figures_that_are_shown_as_printed_are_those_of_two_tests():
    """`tests/test_five_lines.py` prints the first, `tests/attribution/test_readme.py` the second."""
    shown = [(document, block) for document in DOCUMENTS for block in blocks(document, "", "text")]
    assert [document for document, block in shown if re.search(r"\d\.\d", block)] == ["README.md"] * 2


CURVES = result("curves")["summary"]
VERDICTS = {
    "none is a loss": CURVES["held_out_random_losses"] == 0,
    "first of all methods in the mean": CURVES["gain_influence"]
    == max(gain for name, gain in CURVES.items() if name.startswith("gain_")),
}


@pytest.mark.parametrize("phrase", VERDICTS)
def test_verdicts_without_a_number(phrase: str):
    assert any(phrase in prose(document) for document in DOCUMENTS)
    assert VERDICTS[phrase]

"""Contrast as WCAG 2 defines it, computed from the theme's colours."""

import pytest

from hf_prune.report.theme import DARK, GROUNDS, LIGHT, OUTLINES, TEXTS


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2, definition of relative luminance)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(theme):
    found = {(text, ground): contrast(theme[text], theme[ground]) for text in TEXTS for ground in GROUNDS}
    assert min(found.values()) >= 4.5, found


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_fields_can_be_seen_on_every_ground(theme):
    assert min(contrast(theme[line], theme[ground]) for line in OUTLINES for ground in GROUNDS) >= 3


def test_every_colour_is_there_in_both_themes():
    assert LIGHT.keys() == DARK.keys() == {*GROUNDS, *TEXTS, *OUTLINES, "line"}

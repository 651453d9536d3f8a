"""Sentences that name functions between backticks, for terminals and Markdown, as they are shown elsewhere."""

from __future__ import annotations


def plain(sentence: str) -> str:
    """A sentence without the backticks around names."""
    return sentence.replace("`", "")

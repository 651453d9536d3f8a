"""The colours of page and pictures, light and dark. Text has a contrast of at least 4.5 on its ground."""

from __future__ import annotations

LIGHT = {
    "paper": "#f7f8fa",
    "card": "#ffffff",
    "ink": "#1f2430",
    "muted": "#5b6472",
    "line": "#d5d9e0",
    "edge": "#7d8695",
    "pruned": "#2563d0",
    "random": "#9c5a06",
    "good": "#1a7040",
    "bad": "#b3352b",
}
DARK = {
    "paper": "#12151b",
    "card": "#1a1e27",
    "ink": "#e7eaf0",
    "muted": "#a3acba",
    "line": "#323947",
    "edge": "#7b8596",
    "pruned": "#7fabff",
    "random": "#f0b25c",
    "good": "#6fd29a",
    "bad": "#ff9288",
}
GROUNDS = ("paper", "card")
"""What text stands on."""
TEXTS = ("ink", "muted", "pruned", "random", "good", "bad")
"""What text and marks are drawn in."""
OUTLINES = ("edge",)
"""Borders that show where something can be typed or chosen: a contrast of 3 or more."""

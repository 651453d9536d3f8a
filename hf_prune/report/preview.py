"""The picture that messengers and social sites show of a page's address: its title, its verdict and its curve."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure

from hf_prune.report import draw
from hf_prune.report.data import Curve
from hf_prune.report.theme import LIGHT
from hf_prune.verification import Verification

PIXELS = (1200, 630)
"""Width and height, as previews want them."""
_DPI = 100


def preview_of(address: str) -> str:
    """
    The address of the picture of a page.

    Args:
        address (`str`): That of the page, such as `"https://me.github.io/report.html"`.

    Raises:
        `ValueError`: If it is no address of a file on the web.
    """
    if not address.startswith(("https://", "http://")) or not address.endswith(".html"):
        raise ValueError(f"{address!r} is not where a page can be: pass such as https://example.org/report.html.")
    return f"{address.removesuffix('.html')}.png"


def draw_preview(title: str, verdict: str | None, verified: Mapping[float, Verification]) -> bytes:
    """
    Draws the picture, as PNG.

    Args:
        title (`str`): The page's title.
        verdict (`str`, *optional*): Its first line.
        verified (`Mapping[float, Verification]`): What retraining showed; the picture has no curve without it.
    """
    with draw.style():
        figure = Figure(figsize=(PIXELS[0] / _DPI, PIXELS[1] / _DPI), dpi=_DPI, facecolor=LIGHT["card"])
        width = 30 if verified else 62
        figure.text(0.05, 0.9, textwrap.shorten(title, 60, placeholder=" …"), fontsize=26, weight="bold", va="top")
        said = textwrap.fill(textwrap.shorten(verdict or "", 260, placeholder=" …"), width)
        figure.text(0.05, 0.74, said, fontsize=19, va="top", linespacing=1.35)
        figure.text(0.05, 0.06, "hf-prune", fontsize=15, color=LIGHT["muted"])
        if verified:
            axes = figure.add_axes((0.56, 0.17, 0.4, 0.56))
            draw.draw_curve(axes, Curve.of(verified))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()

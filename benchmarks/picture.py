"""
The picture of the README: accuracy over random rows against the share that is pruned, of `results/curves.json`.

    python benchmarks/picture.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "curves.json"
PICTURE = ROOT / "docs" / "assets" / "gains.svg"
SHOWN = {
    "influence": "hf_prune",
    "features-herding": "herding on features",
    "moderate": "moderate",
    "iclr2023": "ICLR 2023 method",
    "ccs": "CCS",
    "forgetting": "forgetting",
    "el2n": "EL2N",
}
COLOUR, OTHERS, LOWEST = "#3f51b5", "#888888", -12.5


def source() -> str:
    """What the picture says it was made of."""
    return hashlib.sha256(RESULT.read_bytes()).hexdigest()


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "hf_prune", "font.size": 11}
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, budget in zip(axes, ("epochs", "steps"), strict=True):
        axis.axhline(0, color="black", linewidth=0.8)
        for method, name in SHOWN.items():
            of = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
            points = sorted((100 * row["rate"], 100 * row["gain"]) for row in of)
            colour, width = (COLOUR, 3.0) if method == "influence" else (OTHERS, 1.3)
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker="o", markersize=4)
            last = [point for point in points if point[1] > LOWEST][-1]
            below = -15 if last[0] < 90 else -4  # beside a line that goes on downwards
            style = {"color": colour, "weight": "bold"} if method == "influence" else {"color": "#444444"}
            axis.annotate(name, last, (6, below), textcoords="offset points", fontsize=9, **style)
        title = f"for equal {budget}"
        axis.set(xlim=(28, 118), ylim=(LOWEST, 6.5), xticks=(30, 50, 70, 90), title=title, xlabel="rows pruned, %")
        axis.spines[["right", "top"]].set_visible(False)
    axes[0].set_ylabel("accuracy over random rows, points")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None, "Description": source()})


if __name__ == "__main__":
    main()

"""The pictures as matplotlib figures, and what notebooks show of objects."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image as Pillow

from hf_prune._core.words import plain
from hf_prune.record import TrajectoryCallback
from hf_prune.report import Curve, Gap, plot_classes, plot_curve, plot_gap, plot_influence
from hf_prune.selection import select
from hf_prune.trajectory import Trajectory
from hf_prune.verification import Arm, MeanInterval, Retraining, Verification
from tests.report.test_report import EVIL, Page, scored
from tests.toys import Mlp, train, vectors


def verification(less: float, predicted: float | None = 0.1) -> Verification:
    def arm(rows, value):
        return Arm(rows, tuple(Retraining(i, value + 0.01 * i, 1 - value, 10, 1.0) for i in range(3)))

    return Verification("accuracy", True, "epochs", arm(10, 0.9), arm(5, less), arm(5, less - 0.05), predicted)


def texts(figure: Figure) -> set[str]:
    ax = figure.axes[0]
    return {text.get_text() for text in ax.get_legend().get_texts()} | {ax.get_xlabel(), ax.get_ylabel()}


def test_every_picture_is_a_figure_that_a_notebook_shows():
    dataset = scored()
    selection = select(dataset, 0.5)
    found = {0.5: verification(0.8), 0.7: verification(0.7)}
    figures = [plot_curve(found), plot_gap(found), plot_influence(dataset, selection), plot_classes(selection)]
    for figure in figures:
        assert isinstance(figure, Figure)
        image = np.asarray(Pillow.open(io.BytesIO(figure._repr_png_())))
        assert image[0, 0].tolist() == [255, 255, 255, 255]
        assert len(np.unique(image[..., 0])) > 10


def test_curve_shows_what_was_verified_at_each_rate():
    figure = plot_curve({0.5: verification(0.8), 0.7: verification(0.7)})
    assert {"pruned", "random rows", "all rows", "accuracy"} <= texts(figure)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["random rows"].get_xydata(), [[0, 0.91], [0.5, 0.76], [0.7, 0.66]])


def test_gap_shows_predicted_and_observed_change():
    figure = plot_gap({0.5: verification(0.8), 0.7: verification(0.7)})
    points = next(line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2)
    np.testing.assert_allclose(points.get_xydata(), [[0.1, 0.1], [0.1, 0.2]])
    with pytest.raises(ValueError, match="pass eval_dataset to add_influence"):
        plot_gap({0.5: verification(0.8, predicted=None)})


def test_influence_shows_kept_and_dropped_rows():
    dataset = scored()
    figure = plot_influence(dataset, select(dataset, 0.25))
    assert {"kept", "dropped"} <= texts(figure)
    kept = sum(bar.get_height() for bar in figure.axes[0].patches if hasattr(bar, "get_height"))
    assert kept == 10
    assert "all rows" in texts(plot_influence(dataset))


def test_wrong_rows_are_refused():
    dataset = scored()
    selection = select(dataset, 0.5)
    with pytest.raises(ValueError, match="no column 'other_norm'"):
        plot_influence(dataset, column="other")
    with pytest.raises(ValueError, match="The dataset has 3 rows, the selection is of 40"):
        plot_influence(dataset.select(range(3)), selection)
    with pytest.raises(ValueError, match="name their column"):
        plot_classes(select(dataset, 0.5, balance=False))


def test_classes_of_data_are_drawn_as_they_are():
    selection = select(scored(), 0.5)
    names = [label.get_text() for label in plot_classes(selection).axes[0].get_xticklabels()]
    assert names == ["no", EVIL[:19] + "…"]


def test_a_curve_and_gaps_can_be_given_by_hand():
    curve = Curve("f1", MeanInterval.of([0.9]), {0.5: MeanInterval.of([0.8])})
    assert "f1" in texts(plot_curve(curve))
    figure = plot_gap([Gap(0.5, 0.1, MeanInterval.of([0.2]))])
    assert [note.get_text() for note in figure.axes[0].texts] == ["50%"]


def test_notebooks_show_certificate_and_selection_with_everything_escaped():
    dataset = scored()
    selection = select(dataset, 0.5)
    certificate = selection.certificate
    for html in (selection._repr_html_(), certificate._repr_html_()):
        text = Page(html).text
        assert "Kept 20 of 40 rows (50.0%), method influence" in text
        assert f"{certificate.audit_residual:.4g}" in text
        assert str(certificate.random_audit_residual) in text
        assert all(plain(note) in text for note in certificate.notes)
    named = replace(certificate, method=EVIL, notes=(EVIL,))
    page = Page(named._repr_html_())
    assert page.text.count(EVIL) == 2
    assert not {"script", "img"} & set(page.tags)


def test_notebooks_show_a_trajectory(tmp_path):
    train(Mlp(), vectors(32), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])
    trajectory = Trajectory.open(tmp_path / "t")
    text = Page(trajectory._repr_html_()).text
    for shown in ("16 of 16, complete", "steps 8 to 16", "Mlp", "AdamW", trajectory.manifest.run_id):
        assert shown in text

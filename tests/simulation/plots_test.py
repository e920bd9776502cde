"""What a user sees of a run and of a partition, from numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tff_fedmpq import plots
from tff_fedmpq.simulation.data.partitions import (
    Partition,
    column_partition,
    dirichlet_partition,
    iid_partition,
)

LABELS = np.array([0, 1, 1, 2, 2, 2])


def panels_of(figure):
    """Returns the panels by title; the bar of colours has none."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def check_inside(axes):
    """Checks that every point of every line is within the limits of its panel."""
    for line in axes.lines:
        points = np.array(line.get_xydata(), float)
        for column, (low, high) in zip(points.T, (axes.get_xlim(), axes.get_ylim())):
            assert np.all((low <= column) & (column <= high)), line.get_label()


def test_the_figure_has_four_labelled_panels(result):
    panels = panels_of(plots.curves(result))
    labels = {
        title: (axes.get_xlabel(), axes.get_ylabel()) for title, axes in panels.items()
    }
    assert labels == {
        "Accuracy": ("round", "test accuracy, %"),
        "Loss": ("round", "cross-entropy"),
        "Sent so far": ("round", "MB, all clients"),
        "Bits per weight, mean over clients": ("round", "layer"),
    }


@pytest.mark.parametrize("kind", ["result", "float_result"])
def test_the_figure_is_written(request, tmp_path, kind):
    path = tmp_path / "curves.png"
    plots.curves(request.getfixturevalue(kind)).savefig(path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_figures_title_names_the_run(result):
    assert plots.curves(result).get_suptitle() == (
        "fedmpq: resnet8 on digits, Dirichlet(0.5), 2 of 4 clients, 3 local epoch(s)"
    )


def test_the_panels_show_the_numbers(result):
    panels = panels_of(plots.curves(result))
    lines = {
        title: {line.get_label(): line for line in axes.lines}
        for title, axes in panels.items()
    }

    def points(title, label):
        return lines[title][label].get_xydata().tolist()

    accuracy = points("Accuracy", "global model")
    assert accuracy == [[1, 12.5], [2, 50], [3, 62.5]]
    for place, (label, value) in enumerate(
        (("device of 2 bits", 33.33), ("device of 6.5 bits", 62.5)), start=1
    ):
        ((x, y),) = points("Accuracy", label)
        assert y == pytest.approx(value)
        assert 3 < x < 3 + 0.2 * place  # Beside the last round.
    assert points("Loss", "training") == [[1, 2.5], [2, 1.5], [3, 1.25]]
    assert points("Loss", "test") == [[1, 2.25], [2, 1.75], [3, 3.0]]
    # Megabytes of all rounds so far; the label is of six models each way.
    up, down = "up, 333 kB per model", "down, 667 kB per model"
    assert points("Sent so far", up) == [[1, 1], [2, 1.5], [3, 2]]
    assert points("Sent so far", down) == [[1, 2], [2, 3], [3, 4]]
    (image,) = panels["Bits per weight, mean over clients"].images
    np.testing.assert_array_equal(image.get_array(), [[2, 3, 3], [4, 4, 5]])
    assert image.get_clim() == (1, 8)
    assert list(image.get_extent()) == [0.5, 3.5, 1.5, -0.5]  # A column per round.


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
@pytest.mark.parametrize("kind", ["result", "float_result"])
def test_all_data_is_inside_its_panel(request, kind, num_rounds):
    result = request.getfixturevalue(kind)
    figure = plots.curves({**result, "rounds": result["rounds"][:num_rounds]})
    panels = panels_of(figure)
    assert len(panels) == 4
    for axes in panels.values():
        check_inside(axes)


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_texts_are_inside_the_figure_and_panels_do_not_overlap(result, num_rounds):
    figure = plots.curves({**result, "rounds": result["rounds"][:num_rounds]})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, frame = canvas.get_renderer(), figure.bbox
    boxes = []
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        boxes.append(box)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_rounds_are_marked_at_whole_numbers(result):
    for axes in panels_of(plots.curves(result)).values():
        ticks = [t for t in axes.get_xticks() if axes.get_xlim()[0] <= t <= 3.5]
        assert all(float(tick).is_integer() for tick in ticks)


def test_every_curve_is_in_a_legend(result):
    for title, axes in panels_of(plots.curves(result)).items():
        labels = [line.get_label() for line in axes.lines]
        legend = axes.get_legend()
        found = [text.get_text() for text in legend.get_texts()] if legend else []
        assert found == labels, title


def test_a_float_run_has_no_bit_widths_to_show(float_result):
    figure = plots.curves(float_result)
    axes = panels_of(figure)["Bits per weight, mean over clients"]
    assert [text.get_text() for text in axes.texts] == ["float weights"]
    assert not axes.images
    assert len(figure.axes) == 4  # And no bar of colours.
    assert len(panels_of(figure)["Accuracy"].lines) == 1


# --- other figures ----------------------------------------------------------


def test_bits_per_layer_are_those_of_clients_by_budget(result):
    (axes, _) = plots.bits_per_layer(result).axes
    # Clients 3 and 2 have the smallest budgets; the record has a row per client.
    expected = [[1, 2, 3, 4], [3, 2, 8, 7]]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    written = [text.get_text() for text in axes.texts]
    assert written == [str(bits) for row in expected for bits in row]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["2", "2", "4.5", "8"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["conv", "dense"]
    first = plots.bits_per_layer(result, 1).axes[0]
    np.testing.assert_array_equal(first.images[0].get_array(), 1)
    assert first.get_title() == "Bits per weight after round 1"


def test_bits_that_there_are_not_are_refused(result, float_result):
    with pytest.raises(ValueError, match=r"expected one of \[1, 2, 3\], found 4"):
        plots.bits_per_layer(result, 4)
    with pytest.raises(ValueError, match="fedavg has float weights"):
        plots.bits_per_layer(float_result)


def test_bytes_against_accuracy_has_a_line_per_run(result, float_result):
    figure = plots.bytes_against_accuracy({"mixed": result, "float": float_result})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["mixed", "float"]
    # 24, 12 and 12 million bits in all.
    expected = [[3, 12.5], [4.5, 50], [6, 62.5]]
    assert lines["mixed"].get_xydata().tolist() == expected
    check_inside(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)


def test_a_partition_is_bars_of_classes():
    parts = Partition(
        ([0, 3], [], [1, 2, 4]), 0.5, 0, "tiny", client_ids=("a", "b", "c")
    )
    (axes,) = plots.partition(parts, LABELS).axes
    # By class, then by client: where a bar begins, and how long it is.
    bars = [[(bar.get_x(), bar.get_width()) for bar in c] for c in axes.containers]
    assert bars == [
        [(0, 1), (0, 0), (0, 0)],
        [(1, 0), (0, 0), (0, 2)],
        [(1, 1), (0, 0), (2, 1)],
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_title() == "tiny, dirichlet(0.5)"


@pytest.mark.parametrize(
    ("parts", "labels", "bars"),
    [
        (column_partition(["u", "v", "u", "u", "v", "u"]), LABELS, 3),
        (iid_partition(6, 2, 0), LABELS * 0.5, 1),  # A regression.
        (iid_partition(6, 2, 0), LABELS[:, np.newaxis], 1),
        (iid_partition(100, 2, 0), np.arange(100), 1),  # A hundred classes.
        (dirichlet_partition(LABELS, 200, 1.0, 0), LABELS, 3),
    ],
)
def test_any_partition_is_drawn(parts, labels, bars):
    figure = plots.partition(parts, labels)
    (axes,) = figure.axes
    assert len(axes.containers) == bars
    total = sum(bar.get_width() for bars in axes.containers for bar in bars)
    assert total == parts.sizes.sum()
    assert max(figure.get_size_inches()) <= 16


@pytest.mark.parametrize("inline", [False, True])
def test_a_notebook_shows_a_figure(result, inline):
    """Whether pyplot is in use or not; and pyplot keeps none of them open."""
    pytest.importorskip("IPython")
    from IPython.core.formatters import DisplayFormatter
    from IPython.core.pylabtools import print_figure

    formatter = DisplayFormatter()
    if inline:
        png = formatter.formatters["image/png"]
        png.for_type(pyplot.Figure, lambda figure: print_figure(figure, "png"))
    shown, _ = formatter.format(plots.bytes_against_accuracy({"run": result}))
    assert shown["image/png"][:4] == b"\x89PNG"
    assert pyplot.get_fignums() == []

"""What a user reads and sees at the end of a run, from numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tff_fedmpq.simulation import report


def make_record(number, accuracy, losses, bits, bit_widths, clients=2):
    train_loss, test_loss = losses
    up, down = bits
    return {
        "round": number,
        "test_accuracy": accuracy,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "uplink_bits": up,
        "downlink_bits": down,
        "mean_bit_width": 3.75,
        "bit_widths": bit_widths,
        "seconds": 12.34,
        "clients": [{}] * clients,
        "rejected": {},
        "num_rejected": 0,
        "abandoned": False,
    }


@pytest.fixture
def result():
    """Three rounds of two clients; layers of 2 and 4, 3 and 4, 3 and 5 bits."""
    return {
        "scheme": "fedmpq",
        "model": "resnet8",
        "dataset": "digits",
        "settings": {
            "alpha": 0.5,
            "clients_per_round": 2,
            "num_clients": 4,
            "epochs": 3,
        },
        "rounds": [
            make_record(1, 0.125, (2.5, 2.25), (8_000_000, 16_000_000), [2.0, 4.0]),
            make_record(2, 0.5, (1.5, 1.75), (4_000_000, 8_000_000), [3.0, 4.0]),
            make_record(3, 0.625, (1.25, 3.0), (4_000_000, 8_000_000), [3.0, 5.0]),
        ],
        "devices": {
            "2": {
                "client": "0",
                "mean_bit_width": 1.984,
                "num_bytes": 23_456,
                "bytes_down": 25_000,
                "accuracy": 0.3333,
                "loss": 1.5,
            },
            "6.5": {
                "client": "2",
                "mean_bit_width": 6.5,
                "num_bytes": 76_540,
                "bytes_down": None,
                "accuracy": 0.625,
                "loss": 1.25,
            },
        },
    }


@pytest.fixture
def float_result(result):
    rounds = [{**r, "bit_widths": [], "mean_bit_width": 32} for r in result["rounds"]]
    return {**result, "scheme": "fedavg", "rounds": rounds, "devices": {}}


# --- lines ------------------------------------------------------------------


def test_a_rounds_line(result):
    line = report.describe_round(result["rounds"][0], 12)
    assert line == (
        "round   1/12  test accuracy 12.50 %  test loss 2.250  train loss 2.500  "
        "up 1.000 MB  down 2.000 MB  bits 3.75  12.3 s"
    )


def test_a_rounds_line_names_who_was_left_out_and_why(result):
    rejected = {"7": "its checksum is wrong"}
    record = {**result["rounds"][0], "rejected": rejected, "num_rejected": 3}
    line = report.describe_round({**record, "abandoned": True}, 12)
    expected = "12.3 s  left out: 7 (its checksum is wrong), 2 unknown  abandoned"
    assert line.endswith(expected)


def test_lines_of_rounds_are_aligned(result):
    last = {**result["rounds"][2], "round": 100, "test_accuracy": 0.0625}
    lines = [report.describe_round(r, 100) for r in (result["rounds"][0], last)]
    assert [line.index("test accuracy") for line in lines] == [15, 15]
    assert [line.index("test loss") for line in lines] == [38, 38]
    assert "accuracy  6.25 %" in lines[1]


def test_the_summary_of_a_run(result):
    lines = report.describe_result(result).splitlines()
    assert lines[0] == "Global model after 3 rounds: 62.50 % of the test images."
    assert lines[1] == "Models that devices get:"
    assert "\n".join(lines[2:]) == report.format_devices(result)


def test_the_summary_of_a_float_run_has_no_devices(float_result):
    line = "Global model after 3 rounds: 62.50 % of the test images."
    assert report.describe_result(float_result) == line


def test_the_table_of_devices(result):
    lines = report.format_devices(result).splitlines()
    headers = ["budget", "bits per weight", "kB down", "kB stored", "accuracy, %"]
    assert all(header in lines[0] for header in headers)
    assert lines[2].split() == ["2", "1.98", "25.0", "23.5", "33.33"]
    # It never took part: it was sent nothing.
    assert lines[3].split() == ["6.5", "6.50", "-", "76.5", "62.50"]
    assert len(lines) == 4
    # A column of numbers ends where its header ends.
    for header, number in (("kB stored", "23.5"), ("accuracy, %", "33.33")):
        end = lines[0].index(header) + len(header)
        assert lines[2][:end].endswith(number)


def test_the_table_of_devices_as_markdown(result):
    lines = report.format_devices(result, "github").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "budget", "bits per weight", "kB down", "kB stored", "accuracy, %"
    ]  # fmt: skip
    assert cells[2] == ["2", "1.98", "25.0", "23.5", "33.33"]


# --- the figure -------------------------------------------------------------


@pytest.fixture
def draw(monkeypatch):
    """Returns (result) -> the figure, which is not written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **kw: figures.append(self))

    def draw(result):
        report.plot_curves(result, "nowhere.png")
        return figures[-1]

    return draw


def panels_of(figure):
    """Returns the panels by title; the bar of colours has none."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def check_inside(axes):
    """Checks that every point of every line is within the limits of its panel."""
    for line in axes.lines:
        points = np.array(line.get_xydata(), float)
        for column, (low, high) in zip(points.T, (axes.get_xlim(), axes.get_ylim())):
            assert np.all((low <= column) & (column <= high)), line.get_label()


def test_the_figure_has_four_labelled_panels(draw, result):
    panels = panels_of(draw(result))
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
    report.plot_curves(request.getfixturevalue(kind), path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_figures_title_names_the_run(draw, result):
    assert draw(result).get_suptitle() == (
        "fedmpq: resnet8 on digits, Dirichlet(0.5), 2 of 4 clients, 3 local epoch(s)"
    )


def test_the_panels_show_the_numbers(draw, result):
    panels = panels_of(draw(result))
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
def test_all_data_is_inside_its_panel(draw, request, kind, num_rounds):
    result = request.getfixturevalue(kind)
    figure = draw({**result, "rounds": result["rounds"][:num_rounds]})
    panels = panels_of(figure)
    assert len(panels) == 4
    for axes in panels.values():
        check_inside(axes)


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_texts_are_inside_the_figure_and_panels_do_not_overlap(
    draw, result, num_rounds
):
    figure = draw({**result, "rounds": result["rounds"][:num_rounds]})
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


def test_rounds_are_marked_at_whole_numbers(draw, result):
    for axes in panels_of(draw(result)).values():
        ticks = [t for t in axes.get_xticks() if axes.get_xlim()[0] <= t <= 3.5]
        assert all(float(tick).is_integer() for tick in ticks)


def test_every_curve_is_in_a_legend(draw, result):
    for title, axes in panels_of(draw(result)).items():
        labels = [line.get_label() for line in axes.lines]
        legend = axes.get_legend()
        found = [text.get_text() for text in legend.get_texts()] if legend else []
        assert found == labels, title


def test_a_float_run_has_no_bit_widths_to_show(draw, float_result):
    figure = draw(float_result)
    axes = panels_of(figure)["Bits per weight, mean over clients"]
    assert [text.get_text() for text in axes.texts] == ["float weights"]
    assert not axes.images
    assert len(figure.axes) == 4  # And no bar of colours.
    assert len(panels_of(figure)["Accuracy"].lines) == 1

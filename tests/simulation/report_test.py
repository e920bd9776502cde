"""What a user reads at the end of a run, from numbers made by hand."""

from __future__ import annotations

from tff_fedmpq.simulation import report


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

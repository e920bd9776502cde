"""Tables inside pages that are written by hand are those of the committed results."""

from __future__ import annotations

import json

import pytest

from studies import digits_bits, keras_models, pages, scale_rules


def test_the_pages_have_the_tables_of_the_results():
    page = keras_models.PAGE.read_text()
    assert keras_models.table(keras_models.read_rows()) in page
    result = json.loads(digits_bits.RESULT.read_text())
    assert digits_bits.table(result["rows"]) in page
    rows = scale_rules.read_rows()
    assert scale_rules.table(rows) in scale_rules.PAGE.read_text()
    table = scale_rules.table(rows, rule="widening")
    assert table in scale_rules.TASKS_PAGE.read_text()


def test_every_model_was_quantized_trained_and_loaded():
    rows = keras_models.read_rows()
    assert [row["name"] for row in rows] == list(keras_models.MODELS)
    for row in rows:
        assert row["quantized_share"] >= 0.95
        assert row["float_layers"] == []
        assert row["relative_error_of_least_squares"][0] < 0.05
        assert row["relative_error"][0] < 0.1  # Initial weights get room to grow.
        assert row["loaded_is_equal"]
        for kernels in (row["kernels_moved"], row["kernels_moved_after_loading"]):
            assert kernels > 0.8 * row["kernels"]


def test_three_seeds_of_every_method_and_bit_width():
    rows = json.loads(digits_bits.RESULT.read_text())["rows"]
    cells = {(row["method"], row["bits"], row["seed"]) for row in rows}
    assert len(cells) == len(rows) == 3 * (1 + 4 + 4 + 1 + 4)


def test_a_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- end -->\n")
    pages.put(page, "one", "new")
    expected = "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb\n<!-- end -->\n"
    assert page.read_text() == expected
    pages.put(page, "one", "new")
    assert page.read_text() == expected
    with pytest.raises(ValueError, match="two"):
        pages.put(page, "two", "new")

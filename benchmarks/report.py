"""Writes the figures of the result files into docs/performance.md.

    uv run python -m benchmarks.report

The text of the document is written by hand; between the lines
``<!-- results: NAME -->`` and ``<!-- end -->`` stands what the file
docs/results/performance/NAME.json holds, and ``<!-- bars -->`` collects the bars.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "performance.md"
RESULTS = DOCUMENT.parent / "results" / "performance"

_RESULTS_BLOCK = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_BARS_BLOCK = re.compile(r"<!-- bars -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Rewrites the document in place."""
    results = {
        p.stem: json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))
    }
    text = DOCUMENT.read_text()
    text = _RESULTS_BLOCK.sub(lambda m: results_block(m.group(1), results), text)
    text = _BARS_BLOCK.sub(lambda _: bars_block(results), text)
    DOCUMENT.write_text(text)


def results_block(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one benchmark's table, and how it was made."""
    lines = [f"<!-- results: {name} -->", ""]
    if name in results:
        result = results[name]
        lines += table(result["rows"])
        lines += ["", f"`{result['command'].strip()}`; {machine(result)}."]
    else:
        lines += ["Not measured."]
    return "\n".join([*lines, "", "<!-- end -->"])


def bars_block(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of all bars."""
    rows = [
        {
            "benchmark": name,
            "quantity": bar["what"],
            "bar": bar["bar"],
            "measured": float(bar["measured"]),
            "": "met" if bar["met"] else "**missed**",
        }
        for name, result in results.items()
        for bar in result["bars"]
    ]
    return "\n".join(["<!-- bars -->", "", *table(rows), "", "<!-- end -->"])


def table(rows: list[Mapping[str, Any]]) -> list[str]:
    """Returns rows as the lines of a Markdown table."""
    if not rows:
        return ["Not measured."]
    cells = [[cell(value) for value in row.values()] for row in rows]
    header = [key.replace("_", " ") for key in rows[0]]
    rule = ["---"] * len(header)
    return [f"| {' | '.join(line)} |" for line in (header, rule, *cells)]


def cell(value: Any) -> str:
    """Returns a value as text; four significant digits."""
    if isinstance(value, bool) or not isinstance(value, (float, list)):
        return str(value)
    if isinstance(value, list):
        return " to ".join(cell(v) for v in value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def machine(result: Mapping[str, Any]) -> str:
    """Returns what a result was measured of and on, in a few words."""
    environment = result["environment"]
    commit = environment.get("commit") or "not recorded"
    threads = [environment[f"{k}_op_threads"] or "default" for k in ("intra", "inter")]
    return (
        f"commit {commit}, {environment['processor']}, {environment['cores']} cores, "
        f"{' '.join(environment.get('vector_instructions', []))}, oneDNN "
        f"{environment.get('onednn', 'as TensorFlow chooses')}, "
        f"intra-op threads {threads[0]}, inter-op threads {threads[1]}, TensorFlow "
        f"{environment['tensorflow']}, load before {environment['load_average_before']}"
    )


if __name__ == "__main__":
    main()

"""Tables of results inside pages that are otherwise written by hand."""

from __future__ import annotations

import pathlib

_END = "<!-- end -->\n"


def put(page: pathlib.Path, name: str, text: str) -> None:
    """Puts text between a page's marks ``<!-- name -->`` and ``<!-- end -->``."""
    head, mark, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(_END)
    if not mark or not end:
        raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- end -->.")
    page.write_text(f"{head}{mark}\n{text}\n\n{end}{tail}")

"""The documentation: snippets run, the site builds, the API reference is complete."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys
import zlib

import pytest

import tff_fedmpq

_ROOT = pathlib.Path(__file__).parents[2]
_DOCS = _ROOT / "docs"
_PAGES = sorted([*_DOCS.glob("*.md"), *_DOCS.glob("api/*.md")])
_PAGES_WITH_SNIPPETS = [page for page in _PAGES if "```python" in page.read_text()]
_CONTRIBUTING = _ROOT / "CONTRIBUTING.md"
_SUBPACKAGES = (
    "quantization",
    "keras",
    "allocation",
    "export",
    "federated",
    "baselines",
    "simulation",
)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FOLDERS = "tff_fedmpq|examples|studies|benchmarks|tests|docs"
# A file or folder of the repository; a pattern such as `tests/<layer>` is none.
_PATH = re.compile(rf"(?<![\w/.$])(?:{_FOLDERS})/[\w./-]*[\w/](?![\w*<])")
_END_OF_SNIPPET = "=== end of snippet ==="


def _snippets(page: pathlib.Path) -> list[tuple[str, str | None]]:
    """Python blocks, each with the text block after it: its expected output."""
    blocks = [match.groups() for match in _BLOCK.finditer(page.read_text())]
    following = [*blocks[1:], ("", "")]
    return [
        (code, text if next_language == "text" else None)
        for (language, code), (next_language, text) in zip(blocks, following)
        if language == "python"
    ]


def _name(page: pathlib.Path) -> str:
    return page.relative_to(_DOCS).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", _PAGES_WITH_SNIPPETS, ids=_name)
def test_snippets_run_and_print_what_the_page_says(page, tmp_path):
    snippets = _snippets(page)
    end = f"\nprint({_END_OF_SNIPPET!r})\n"
    program, output = tmp_path / "page.py", tmp_path / "output"
    program.write_text(end.join(code for code, _ in snippets))
    with output.open("w") as out, (tmp_path / "errors").open("w") as errors:
        finished = subprocess.run(
            [sys.executable, str(program)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            cwd=tmp_path,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            timeout=300,
        )
    assert finished.returncode == 0, (tmp_path / "errors").read_text()
    printed = output.read_text().split(f"{_END_OF_SNIPPET}\n")
    assert len(printed) == len(snippets)
    for (code, expected), found in zip(snippets, printed):
        if expected is not None:
            assert found == expected, code


@pytest.mark.parametrize("page", _PAGES_WITH_SNIPPETS, ids=_name)
def test_snippets_compile_and_import_names_that_exist(page):
    for code, _ in _snippets(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tff_"):
                module = importlib.import_module(str(node.module))
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "tff_fedmpq"
            ):
                assert node.attr in tff_fedmpq.__all__


@pytest.mark.parametrize("page", [*_PAGES, _CONTRIBUTING], ids=lambda p: p.stem)
def test_paths_are_of_this_repository_and_of_no_machine(page):
    text = page.read_text()
    assert not re.search(r"(?<![\w.~$])/(?:home|root|tmp|work|Users)/", text)
    made_by_commands = ("docs/studies/", "studies/results/")
    missing = [
        path
        for path in _PATH.findall(text)
        if not (_ROOT / path).exists() and not path.startswith(made_by_commands)
    ]
    assert missing == []


def _public_names() -> set[str]:
    """Full names, where they are defined, of all that is public in the package."""
    names = set()
    for subpackage in _SUBPACKAGES:
        for path in (_ROOT / "tff_fedmpq" / subpackage).rglob("*.py"):
            parts = path.relative_to(_ROOT).with_suffix("").parts
            module = ".".join(parts).removesuffix(".__init__")
            names |= {
                f"{module}.{node.name}"
                for node in ast.parse(path.read_text()).body
                if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                and not node.name.startswith("_")
            }
    return names


def _exported_names() -> dict[str, object]:
    """All names in `__all__` of the package and of its subpackages."""
    packages = [tff_fedmpq] + [
        importlib.import_module(f"tff_fedmpq.{name}") for name in _SUBPACKAGES
    ]
    packages.append(importlib.import_module("tff_fedmpq.simulation.data"))
    return {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in packages
        for name in getattr(package, "__all__", ())
    }


def _rendered(pages: dict[str, str]) -> set[str]:
    """Full names that the `:::` blocks name."""
    found = re.findall(r"^::: ([\w.]+)$", "\n".join(pages.values()), re.MULTILINE)
    assert len(found) == len(set(found))
    return set(found)


def test_api_pages_name_every_module_and_exported_constant():
    rendered = _rendered({p.name: p.read_text() for p in _DOCS.glob("api/*.md")})
    modules = {name.rpartition(".")[0] for name in _public_names()}
    assert modules - rendered == set()
    constants = {
        name.rpartition(".")[2]
        for name, value in _exported_names().items()
        if not (isinstance(value, type) or hasattr(value, "__qualname__"))
    }
    listed = {name.rpartition(".")[2] for name in rendered}
    assert constants - listed - {"__version__"} == set()


def test_api_index_lists_every_name_of_the_package():
    text = (_DOCS / "api" / "index.md").read_text()
    assert [name for name in tff_fedmpq.__all__ if f"`{name}`" not in text] == []


@pytest.mark.skipif(sys.version_info < (3, 10), reason="mkdocstrings is older there")
def test_the_site_builds_without_warnings_and_has_every_public_name(tmp_path):
    site, log = tmp_path / "site", tmp_path / "log"
    with log.open("w") as out:
        finished = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            timeout=300,
        )
    assert finished.returncode == 0, log.read_text()
    # Sphinx's format: four lines of header, then a line per name, compressed.
    compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    inventory = zlib.decompress(compressed).decode().splitlines()
    names = {line.split(" ", 1)[0] for line in inventory}
    assert _public_names() - names == set()
    assert (site / "performance" / "index.html").exists()

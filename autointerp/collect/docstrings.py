"""A corpus that every installation has: the docstrings of its installed packages, one document per object.

Sources are parsed with `ast`, never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

from autointerp.seeds import generator

PACKAGES = (
    "numpy", "scipy", "sklearn", "pandas", "matplotlib", "torch", "transformers", "datasets", "pyarrow", "pydantic",
    "jinja2", "rich", "openai", "email", "http", "asyncio", "unittest", "xml", "logging", "json", "multiprocessing",
    "concurrent", "importlib", "sqlite3", "urllib", "ctypes", "distutils", "tkinter", "idlelib",
)  # fmt: skip

MIN_CHARS = 80


def docstrings(seed: int, *, packages: tuple[str, ...] = PACKAGES) -> Iterator[str]:
    """Docstrings of at least 80 characters, each once, in a seeded order of the source files."""
    files = sorted(_sources(packages))
    order = generator(seed, "docstrings").permutation(len(files))
    seen: set[str] = set()
    for index in order:
        for text in _of_file(files[int(index)]):
            key = " ".join(text.split())
            if len(text) >= MIN_CHARS and key not in seen:
                seen.add(key)
                yield text


def _sources(packages: tuple[str, ...]) -> Iterator[Path]:
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        for folder in spec.submodule_search_locations or ():
            for path in Path(folder).rglob("*.py"):
                if "tests" not in path.parts and "test" not in path.parts:
                    yield path


def _of_file(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw:
                found.append(inspect.cleandoc(raw).strip())
    return found

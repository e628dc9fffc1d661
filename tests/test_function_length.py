"""A function fits on a screen."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 80  # lines
FILES = [
    path for room in ("compiler", "relay_ops", "schedules") for path in ROOT.glob(f"{room}/**/*.py")
]


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in FILES])
def test_no_function_is_longer_than_a_screen(path):
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = [(f.name, f.end_lineno - f.lineno + 1) for f in functions]
    assert [(name, lines) for name, lines in lengths if lines > LONGEST] == []

"""No module of ours can be imported in place of a package.

transformers, accelerate and others ask for optional packages by name; a loose file `kernels.py` in
a folder on sys.path answers. So each folder of the tests that goes on sys.path holds one package,
whose name begins with `intformer`.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = tuple(str(ROOT / name) for name in ("benchmarks", "examples", "tests"))
PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
PROGRAMS = sorted(
    path.parent for path in (ROOT / "benchmarks").rglob("__main__.py")
)  # `python benchmarks/race`
ENTRIES = sorted({ROOT / entry for entry in PYTEST["pythonpath"]} | set(PROGRAMS))
PROBERS = ("transformers", "accelerate", "peft", "safetensors", "tokenizers", "torch.utils", "tvm")


def scripts():
    """Yield every Python file that is not part of the package."""
    for folder in FOLDERS:
        yield from Path(folder).rglob("*.py")


def importable(folder):
    """Return the names that `import` finds in a folder: modules, packages, folders of any kind."""
    names = {path.stem for path in folder.iterdir() if path.suffix in (".py", ".so")}
    names |= {path.name for path in folder.iterdir() if path.is_dir() and path.name.isidentifier()}
    return names - {"__main__", "__pycache__"}


@pytest.mark.parametrize("folder", ENTRIES, ids=lambda folder: folder.name)
def test_a_folder_on_the_path_holds_one_package_of_ours(folder):
    (name,) = importable(folder)
    assert name.startswith("intformer_")
    assert (folder / name / "__init__.py").is_file()


def test_nothing_else_is_put_on_the_path():
    """Of our files, those that change sys.path or PYTHONPATH name a folder in ENTRIES."""
    allowed = {
        *("SUPPORT", "PACKAGES", 'str(Path(__file__).parents[2] / "tests" / "support")'),
        'str(Path(__file__).parent / "records")',
        *(f'str(Path(__file__).parents[1] / "{name}")' for name in ("records", "race", "load")),
    }
    for path in scripts():
        if path == Path(__file__):
            continue
        for line in path.read_text().splitlines():
            if re.search(r"sys\.path(\.|\[)|^PYTHONPATH=|\"PYTHONPATH\"\]? *[:=]", line):
                assert any(name in line for name in allowed) or "join(" in line, f"{path}: {line}"


def test_programs_that_are_files_are_started_without_their_folder():
    """`python FILE` puts the folder of the file on sys.path, `python -P FILE` does not."""
    for path in (ROOT / "Makefile", *scripts()):
        for line in path.read_text().splitlines():
            if re.search(r"(bin/|^ *|[`\"])python (tests|benchmarks|examples)/\S+\.py", line):
                pytest.fail(f"{path.relative_to(ROOT)}: {line.strip()}: say python -P")
            assert not re.search(r"sys\.executable, _{2}file", line), f"{path}: say -P"


def probed():
    """Return the names of packages that the libraries we use ask for, from their source."""
    names = set()
    for prober in PROBERS:
        spec = importlib.util.find_spec(prober)
        if spec is None or not spec.submodule_search_locations:
            continue
        for path in Path(spec.submodule_search_locations[0]).rglob("*import*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and "avail" in ast.unparse(node.func) + "find_spec":
                    names |= {
                        arg.value.split(".")[0]
                        for arg in node.args
                        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                    }
    return {name for name in names if name.isidentifier()}


def test_what_transformers_probes_for_is_none_of_ours():
    pytest.importorskip("transformers", reason="needs the compiler extra")
    names = probed()
    assert {"kernels", "peft", "accelerate"} <= names  # it is such names that were found
    ours = set().union(*map(importable, [*ENTRIES, ROOT, TESTS]))  # `python -m pytest` adds ROOT
    assert not names & ours


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda folder: folder.name)
def test_a_program_finds_no_module_of_ours_under_another_name(program):
    """What `python benchmarks/race` has on sys.path, seen from inside it."""
    code = (
        "import runpy, sys, importlib.util\n"
        f"sys.argv = [{str(program)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('MODULES', *sorted(n for n, m in sys.modules.items() if '.' not in n\n"
        f"    and str(getattr(m, '__file__', None)).startswith({FOLDERS!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    names = set(line.split()[1:]) - {"__main__", "__mp_main__"}
    assert names and all(name.startswith("intformer_") for name in names)

"""The base install (numpy and tokenizers) is enough to import, load and run."""

import importlib.util
import subprocess
import sys

import pytest

# A finder that refuses what only the extras bring: what a base install does not have.
REFUSE = """
import sys
EXTRAS = (
    *("torch", "transformers", "tvm", "tvm_ffi", "rich", "safetensors", "iced_x86"),
    *("sentence_transformers", "fastapi", "uvicorn", "prometheus_client", "pyarrow", "ray"),
)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", REFUSE + code], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "code",
    [
        "import intformer; intformer.IntformerError; intformer.load",
        "import intformer.runtime, intformer.runtime.edge",
        "import intformer.integrations, intformer.integrations.pipelines, intformer.offline",
        "from intformer import cli; cli.main(['--version'])",
    ],
)
def test_imports_without_the_extras(code):
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_what_needs_an_extra_says_so():
    done = run(
        "from intformer import cli;"
        "sys.exit(cli.main(['bench', '--shape', 'minilm-l6', '--target', 'x86-64']))"
    )
    assert done.returncode == 1
    assert "is not installed - pip install 'intformer[compiler]'" in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_python_says_which_extra_verify_needs():
    done = run(
        "import intformer\n"
        "try: intformer.verify('x.so')\n"
        "except intformer.IntformerError as error: print(error)"
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.endswith("is not installed - pip install 'intformer[compiler]'")


def test_importing_is_quick():
    """No heavy module comes along, even where the extras are installed."""
    code = (
        "import sys, intformer, intformer.cli, intformer.runtime, intformer.runtime.edge;"
        "import intformer.integrations.pipelines;"
        "heavy = {'torch', 'tvm', 'transformers', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_itself_imports_nothing_but_python():
    """`import intformer` is what every start pays; numpy comes with the first library."""
    code = (
        "import sys; before = set(sys.modules); import intformer;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "more = new - set(sys.stdlib_module_names) - {'intformer'};"
        "sys.exit(str(more) if more else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_loading_needs_no_tokenizer():
    done = run(
        "class NoTokenizers:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tokenizers': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTokenizers())\n"
        "import intformer; intformer.load"
    )
    assert done.returncode == 0, done.stderr


def test_public_names():
    import intformer

    assert set(intformer.__all__) == set(intformer.PUBLIC)
    for name in intformer.PUBLIC:  # a module of that name would hide the object
        assert importlib.util.find_spec(f"intformer.{name}") is None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = intformer.nothing

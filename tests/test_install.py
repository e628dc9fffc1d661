"""The project as it is installed: a wheel with nothing around it, and an editable install."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from intformer.link import build as library
from intformer_testing import toy

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
LEAST_SETUPTOOLS = 77
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def has_setuptools():
    if not importlib.util.find_spec("setuptools"):
        return False
    import setuptools

    return int(setuptools.__version__.split(".")[0]) >= LEAST_SETUPTOOLS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a wheel is made from: a build writes into its folder."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    for name in SETUPTOOLS["package-dir"].values():
        unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.o")
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with the dependencies of the base install and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    for package in (np, tokenizers):
        source = Path(package.__file__).parent
        for part in (source, source.with_name(source.name + ".libs")):
            if part.is_dir():
                (folder / part.name).symlink_to(part)
    return folder


def call(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def install(wheel, target):
    done = call(*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel)
    assert done.returncode == 0, done.stderr


def run(code, *folders):
    """Run Python code that sees the standard library and `folders` alone."""
    start = "import site\n" + "".join(f"site.addsitedir({str(f)!r})\n" for f in folders)
    done = call(sys.executable, "-I", "-S", "-c", start + textwrap.dedent(code), cwd=os.sep)
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_all():
    return f"""
        import importlib, importlib.util
        for name in {SETUPTOOLS["packages"]!r}:
            print(importlib.import_module(name).__file__)
        for name in ("tvm", "torch", "transformers", "pip"):
            assert importlib.util.find_spec(name) is None, name
    """


@pytest.mark.slow
def test_a_wheel_alone_runs_a_library(tree, base, tmp_path):
    isolated = not has_setuptools()
    options = [] if isolated else ["--no-build-isolation"]
    done = call(*PIP, "wheel", "--no-deps", *options, "--wheel-dir", tmp_path, tree)
    if isolated and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip(f"no setuptools >= {LEAST_SETUPTOOLS} here, and none to be downloaded")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    install(wheel, installed)
    for name in os.listdir(library.SOURCES):
        assert (installed / "intformer" / "link" / "c" / name).is_file(), name
    assert list(installed.glob("intformer-*.dist-info/licenses/LICENSE"))
    for line in run(import_all(), base, installed).splitlines():
        assert Path(line).is_relative_to(installed)

    path = tmp_path / "libtoy.so"
    variant = library.Variant("x86-64", [toy.object_file(tmp_path)])
    library.build(toy.plan(), [variant], toy.model(), path, target="x86-64")
    ids, offsets = toy.batch(0, (3, 12, 7))
    code = f"""
        import intformer
        lib = intformer.load({str(path)!r})
        print(lib.run({ids.tolist()}, {offsets.tolist()}).ravel().tolist())
    """
    got = run(code, base, installed).strip().strip("[]").split(",")
    assert [int(n) for n in got] == toy.expected(0, ids, offsets).ravel().tolist()


@pytest.mark.skipif(not has_setuptools(), reason=f"needs setuptools >= {LEAST_SETUPTOOLS}")
def test_an_editable_install_imports_every_package(tree, base, tmp_path):
    """What `pip install -e` does: setuptools makes a wheel whose .pth maps names to folders."""
    hook = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    done = call(sys.executable, "-c", hook, tmp_path, cwd=tree)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    install(wheel, installed)
    files = [Path(line) for line in run(import_all(), base, installed).splitlines()]
    mapped = SETUPTOOLS["package-dir"]
    assert {f.parent.relative_to(tree).parts[0] for f in files} == set(mapped.values())

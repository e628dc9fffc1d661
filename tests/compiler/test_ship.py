"""A library as a wheel: installed by pip, imported, and served as its Dockerfile says."""

import base64
import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import intformer
from intformer import cli
from intformer.errors import IntformerError
from intformer.ship import package
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

TEXTS = [" ".join(text.split()[:9]) for text in small_tokenizer.SENTENCES[:4]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    folder = plain(made / "model", hidden=32, heads=2, layers=1, ffn=48)
    path, calibration = made / "My.Model.so", made / "texts.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    options = {"head": "sentence-embedding", "target": "x86-64", "calibrate": calibration}
    intformer.compile(folder, path, **options)
    return path


@pytest.fixture(scope="module")
def made(library, tmp_path_factory):
    return package(library, tmp_path_factory.mktemp("package") / "out", version="1.2")


def test_pip_installs_it_and_it_answers(made, library, tmp_path):
    """With the base install around it and nothing else."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    options = ["--no-deps", "--no-index", "--target", tmp_path]
    subprocess.run([*pip, *options, made.wheel], check=True, capture_output=True)
    folders = {Path(p.__file__).parents[1] for p in (np, tokenizers)}
    code = f"""
import sys
sys.path += {[str(tmp_path), *map(str, folders)]!r}
import importlib.util
spec = importlib.util.spec_from_file_location("intformer", {str(ROOT / "compiler/__init__.py")!r},
    submodule_search_locations=[{str(ROOT / "compiler")!r}])
sys.modules["intformer"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import my_model
assert my_model.__version__ == "1.2" and not {{"torch", "tvm"}} & set(sys.modules)
print([answer.tolist() for answer in my_model.predict({TEXTS!r})])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=os.sep
    )
    assert done.returncode == 0, done.stderr
    wanted = [a.tolist() for a in intformer.predict(intformer.load(library), TEXTS)]
    assert done.stdout.strip() == str(wanted)


def test_what_the_wheel_says(made, library):
    assert made.module == "my_model"
    major, minor = intformer.load(library).footer.glibc
    tags = [f"manylinux_{max((major, minor), (2, 17))[0]}_{max((major, minor), (2, 17))[1]}_x86_64"]
    tags.append("musllinux_1_2_x86_64")
    assert made.wheel.name == f"my_model-1.2-py3-none-{'.'.join(tags)}.whl"
    with zipfile.ZipFile(made.wheel) as archive:
        names = archive.namelist()
        info = "my_model-1.2.dist-info"
        assert sorted(names) == sorted(
            ["my_model/__init__.py", "my_model/my-model.so"]
            + [f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")]
        )
        about = archive.read(f"{info}/METADATA").decode()
        assert "Name: my-model\nVersion: 1.2\n" in about
        assert f"\nRequires-Dist: intformer>={intformer.__version__}\n" in about
        wheel = archive.read(f"{info}/WHEEL").decode()
        assert [line for line in wheel.splitlines() if line.startswith("Tag")] == [
            f"Tag: py3-none-{tag}" for tag in tags
        ]
        rows = list(csv.reader(archive.read(f"{info}/RECORD").decode().splitlines()))
        assert {row[0] for row in rows} == set(names)
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={found}", str(len(data)))
        assert archive.read("my_model/my-model.so") == library.read_bytes()


def test_the_same_library_makes_the_same_wheel(made, library, tmp_path):
    again = package(library, tmp_path, version="1.2")
    assert again.wheel.read_bytes() == made.wheel.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["Dockerfile", made.wheel.name]


def test_the_dockerfile(made):
    text = made.dockerfile.read_text()
    assert len(text.splitlines()) <= 15
    assert 'my-model==1.2 "intformer[serve]"' in text
    assert '["intformer", "serve", "/my-model.so", "--host", "0.0.0.0"' in text


def test_the_command(library, tmp_path, capsys):
    words = ["package", str(library), "-o", str(tmp_path), "--name", "other", "--version", "2"]
    assert cli.main(words) == 0
    assert "import other, other.predict([...])" in capsys.readouterr().out
    assert list(tmp_path.glob("other-2-*.whl"))


def test_a_library_without_a_tokenizer(library, tmp_path, monkeypatch):
    monkeypatch.setattr("intformer.ship.LibraryFile.sections", lambda self: ["metadata.json"])
    with pytest.raises(IntformerError, match="carries no tokenizer"):
        package(library, tmp_path)


def test_libraries_for_other_machines(library, tmp_path):
    """Are not run, and pip refuses them elsewhere: the machine is in the wheel's name."""
    with pytest.MonkeyPatch.context() as patch:
        real = intformer.ship.LibraryFile

        def other(path):
            file = real(path)
            file.image.machine = 183
            return file

        patch.setattr("intformer.ship.LibraryFile", other)
        made = package(library, tmp_path)
    assert made.wheel.name.endswith("_aarch64.musllinux_1_2_aarch64.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", tmp_path]
    done = subprocess.run([*pip, made.wheel], capture_output=True, text=True)
    assert "is not a supported wheel on this platform" in done.stderr


@pytest.mark.parametrize("name", ["json", "class", "intformer", "1st", "a b", "é", "x", "a/b"])
def test_names_that_cannot_be(library, tmp_path, name):
    with pytest.raises(IntformerError, match="a package cannot be called"):
        package(library, tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["", "v1", "1.0-1", "1 2", "latest"])
def test_versions_that_cannot_be(library, tmp_path, version):
    with pytest.raises(IntformerError, match="version"):
        package(library, tmp_path, version=version)

"""README.md and docs/: their examples run, and their tables are current.

A table between <!-- generated: NAME --> and <!-- end --> is compared with what the code says;

    pytest tests/test_readme.py --update-golden

rewrites it.
"""

import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import intformer_records as records
import pytest

from intformer_qat_results import report

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
USAGE = ROOT / "docs" / "usage.md"
RESULTS = ROOT / "docs" / "results.md"
RECORDS = sorted((ROOT / "docs" / "results").glob("*.json"))
QAT = ROOT / "benchmarks" / "qat_results" / "results.json"
MOST_LINES = 150
MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def models():
    """Model types by recipe and heads."""
    from intformer.frontend.families import FAMILIES
    from intformer.ir.heads import HEADS

    groups = {}
    for model_type, family in sorted(FAMILIES.items()):
        recipe = "ibert" if model_type == "ibert" else "native"
        # every family embeds: a mean of rows, or one of them
        lacks = tuple(n for n, h in sorted(HEADS.items()) if h not in family.heads and not h.embeds)
        groups.setdefault((recipe, lacks), []).append(f"`{model_type}`")
    heads = ", ".join(f"`{name}`" for name in sorted(HEADS))
    rows = [
        [", ".join(types), recipe, f"all but {', '.join(lacks)}" if lacks else "all"]
        for (recipe, lacks), types in sorted(groups.items(), key=lambda one: -len(one[1]))
    ]
    return table(["model types", "recipe", "heads"], rows) + f"\nHeads: {heads}.\n"


def targets():
    from intformer.backends.targets import TARGETS

    return table(["target", "chip"], [[f"`{t.name}`", t.title] for t in TARGETS.values()])


def verbs():
    from intformer import cli

    modules = {verb: import_module(f"intformer.cli.{verb.replace('-', '_')}") for verb in cli.VERBS}
    return table(["verb", "does"], [[f"`{verb}`", m.ABOUT] for verb, m in modules.items()])


def ops():
    from intformer.cli import ops as verb

    lines = verb.run(None)[1]
    return "```text\n" + "".join(f"{line}\n" for line in lines) + "```\n"


def shown(path):
    return records.markdown(json.loads(path.read_text()))


GENERATED = {
    "models": (README, models),
    "targets": (README, targets),
    "verbs": (USAGE, verbs),
    "ops": (ROOT / "docs" / "numerics.md", ops),
    "results-qat": (RESULTS, lambda: "".join(f"{line}\n" for line in report.table(QAT))),
    **{f"results-{path.stem}": (RESULTS, lambda path=path: shown(path)) for path in RECORDS},
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_tables_are_current(name, request):
    pytest.importorskip("tvm", reason="needs the compiler extra")
    file, make = GENERATED[name]
    text, wanted = file.read_text(), make()
    (found,) = [body for _, one, body, _ in MARKED.findall(text) if one == name]
    if request.config.getoption("--update-golden"):
        swap = lambda m: f"{m[1]}{wanted}{m[4]}" if m[2] == name else m[0]  # noqa: E731
        file.write_text(MARKED.sub(swap, text))
        return
    assert found == wanted, f"{file.name}: run pytest tests/test_readme.py --update-golden"


def test_every_marked_table_has_a_generator():
    for file in [README, *(ROOT / "docs").rglob("*.md")]:
        for _, name, _, _ in MARKED.findall(file.read_text()):
            assert GENERATED[name][0] == file


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the files that the examples name."""
    pytest.importorskip("tvm", reason="needs the compiler extra")
    from intformer_testing import random_hf, small_tokenizer

    made = tmp_path_factory.mktemp("readme")
    model = made / "my-model"
    shape = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 48, "vocab_size": 8000}
    random_hf.save(model, "bert", "features", **shape)
    (model / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
    )
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    small_tokenizer.save(model)
    sentences = (ROOT / "tests" / "data" / "sentences.txt").read_text().splitlines()[:16]
    (made / "sentences.txt").write_text("\n".join(sentences))
    return made


def test_the_python_example_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(32,)\n(32,)\n"


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_c_example_runs(folder):
    import intformer

    options = {"calibrate": folder / "sentences.txt", "target": "x86-64", "header": True}
    intformer.compile(folder / "my-model", folder / "my-model.so", **options)
    (example,) = blocks("c")
    (folder / "main.c").write_text(example)
    command = ["cc", "-Wall", "-Werror", "main.c", "intformer_open.c", "-o", "main", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run("./main", cwd=folder, capture_output=True, text=True, timeout=100)
    assert re.fullmatch(r"32 integers, the first is -?\d+\n", done.stdout), done


def test_every_environment_flag_is_listed():
    used = set(re.findall(r"INTFORMER_[A-Z]+", (ROOT / "compiler" / "knobs.py").read_text()))
    assert used == set(re.findall(r"^\| `(INTFORMER_[A-Z]+)", USAGE.read_text(), re.MULTILINE))
    assert len(used) <= 5
    for path in [*ROOT.glob("compiler/**/*.py"), *ROOT.glob("relay_ops/*.py")]:
        reads = re.search(r"environ(\.get|\[)|getenv", path.read_text())
        assert not reads or path.name == "knobs.py", f"{path} reads the environment"

"""What README.md says is so: its example runs, its flags exist, its tables are current."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tvm", reason="needs the compiler extra")
    from intformer_testing import random_hf, small_tokenizer

    model = tmp_path / "my-model"
    random_hf.save(model, "bert", "features", hidden=32, heads=1, layers=1, ffn=48)
    (model / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
    )
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    small_tokenizer.save(model)
    sentences = (ROOT / "tests" / "data" / "sentences.txt").read_text().splitlines()[:16]
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(32,)\n(32,)\n"


def test_every_environment_flag_is_listed():
    used = set(re.findall(r"INTFORMER_[A-Z]+", (ROOT / "compiler" / "knobs.py").read_text()))
    assert used == set(re.findall(r"^\| `(INTFORMER_[A-Z]+)", README, re.MULTILINE))
    assert len(used) <= 5
    for path in [*ROOT.glob("compiler/**/*.py"), *ROOT.glob("relay_ops/*.py")]:
        reads = re.search(r"environ(\.get|\[)|getenv", path.read_text())
        assert not reads or path.name == "knobs.py", f"{path} reads the environment"


def test_every_verb_is_listed():
    from intformer import cli

    actions = cli.parser()._subparsers._group_actions[0].choices
    for verb in actions:
        assert re.search(rf"`{verb}[ `]", README), verb


def test_the_table_of_op_errors_is_current():
    from intformer.cli import ops

    printed = ops.run(None)[1]
    (table,) = blocks("text")
    assert table.splitlines() == printed

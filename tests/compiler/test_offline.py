"""Files of texts to files of vectors: every kind of file, kills, bounds and refusals."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import intformer
from intformer import cli
from intformer.errors import IntformerError, LibraryError
from intformer.offline import Embedder, embed
from intformer.offline.parts import Parts
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

ROWS = [" ".join(text.split()[:9]) for text in small_tokenizer.SENTENCES[:40]]
SHAPE = {"hidden": 32, "heads": 2, "layers": 1, "ffn": 48}


def compiled(folder, path, **options):
    calibration = path.with_suffix(".txt")
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    intformer.compile(folder, path, calibrate=calibration, target="x86-64", **options)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("embedder")
    return compiled(plain(made / "model", **SHAPE), made / "m.so", head="sentence-embedding")


@pytest.fixture(scope="module")
def wanted(library):
    return np.stack(list(intformer.predict(intformer.load(library), ROWS)))


def vectors(path):
    column = parquet.read_table(path).column("embedding")
    return np.stack(column.to_pylist()).astype(np.float32)


def written(folder, kind, names=("id", "text")):
    """A file of ROWS with a column of numbers before them."""
    path = folder / f"texts.{kind}"
    if kind == "parquet":
        table = pa.table(dict(zip(names, (range(len(ROWS)), ROWS), strict=True)))
        parquet.write_table(table, path, row_group_size=17)
        return path
    separator = {"csv": ",", "tsv": "\t"}.get(kind)
    if separator:
        quoted = ['"' + t.replace('"', '""') + '"' if kind == "csv" else t for t in ROWS]
        lines = [f"{i:03}{separator}{t}" for i, t in enumerate(quoted)]
        lines.insert(0, separator.join(names))
    elif kind == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in enumerate(ROWS)]
    else:
        lines = [*ROWS[:5], "", *ROWS[5:]]
    path.write_text("\r\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "txt"])
def test_every_kind_of_file(library, wanted, tmp_path, kind):
    output = tmp_path / "vectors.parquet"
    done = embed(library, written(tmp_path, kind), output, part_rows=7)
    assert (done.rows, done.resumed, done.channels) == (len(ROWS), 0, 32)
    np.testing.assert_array_equal(vectors(output), wanted)
    table = parquet.read_table(output)
    assert table.column("text").to_pylist() == ROWS
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    if kind != "txt":
        ids = table.column("id").to_pylist()
        as_text = kind in ("csv", "tsv")
        assert ids == [f"{i:03}" if as_text else i for i in range(len(ROWS))]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"texts.{kind}", output.name])


def test_a_csv_with_lines_in_its_texts(library, tmp_path):
    source, output = tmp_path / "t.csv", tmp_path / "v.parquet"
    source.write_text('sentence,n\n"the you\nof, ""it""",1\n,2\n')
    embed(library, source, output)
    assert parquet.read_table(output).column("sentence").to_pylist() == ['the you\nof, "it"', ""]


def command(library, source, output, *more):
    return [
        *(sys.executable, "-m", "intformer", "embed", str(library)),
        *("--input", str(source), "--output", str(output), *more),
    ]


def test_killed_and_called_again(library, tmp_path):
    """What was done before the kill is not done again, and nothing differs from one run."""
    source, output, whole = tmp_path / "t.parquet", tmp_path / "v.parquet", tmp_path / "w.parquet"
    texts = [f"{ROWS[i % 40]} {ROWS[i % 37]}" for i in range(8_000)]
    parquet.write_table(pa.table({"text": texts, "id": range(len(texts))}), source)
    folder = tmp_path / ".v.parquet.parts"
    options = ("--part-rows", "100", "--threads", "1")
    with subprocess.Popen(command(library, source, output, *options)) as running:
        end = time.monotonic() + 120
        while not (folder / "00000001.parquet").exists():
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not output.exists()
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("0*.parquet")}
    assert 2 <= len(before) < 80
    done = subprocess.run(
        [*command(library, source, output, *options), "--json"], capture_output=True, check=True
    )
    about = json.loads(done.stdout)
    assert about["rows"] == len(texts) and about["resumed"] == 100 * len(before)
    assert not folder.exists()
    embed(library, source, whole)
    assert parquet.read_table(output).equals(parquet.read_table(whole))


def test_parts_of_another_job(library, tmp_path):
    source, output = written(tmp_path, "parquet"), tmp_path / "v.parquet"

    class Stopped(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        kept = Parts.add

        def add(self, table):
            kept(self, table)
            if self.done == 3:
                raise Stopped

        patch.setattr(Parts, "add", add)
        with pytest.raises(Stopped):
            embed(library, source, output, part_rows=7)
    with pytest.raises(IntformerError, match=r"another part_rows - .*\.parts - repeat the command"):
        embed(library, source, output, part_rows=8)
    written(tmp_path, "parquet", ("id", "text"))
    with pytest.raises(IntformerError, match="another input"):
        embed(library, source, output, part_rows=7)


def test_going_on(library, wanted, tmp_path):
    source, output = written(tmp_path, "parquet"), tmp_path / "v.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "join", lambda self: None)  # killed before it
        embed(library, source, output, part_rows=7)
    done = embed(library, source, output, part_rows=7)
    assert (done.rows, done.resumed) == (len(ROWS), len(ROWS))
    np.testing.assert_array_equal(vectors(output), wanted)


@pytest.mark.parametrize(
    "lost", [("00000000.parquet", "job.json"), ("job.json",), ("00000000.parquet",)]
)
def test_a_folder_that_was_half_removed(library, wanted, tmp_path, lost):
    """Its parts are of a job that was finished: none is gone on with."""
    source, output = written(tmp_path, "parquet"), tmp_path / "v.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intformer.offline.parts.shutil.rmtree", lambda folder: None)
        embed(library, source, output, part_rows=7)
    folder = tmp_path / ".v.parquet.parts"
    for name in lost:
        (folder / name).unlink()
    done = embed(library, source, output, part_rows=6)
    assert (done.rows, done.resumed) == (len(ROWS), 0)
    assert not folder.exists()
    np.testing.assert_array_equal(vectors(output), wanted)


def test_two_at_once(library, tmp_path):
    source, output = written(tmp_path, "txt"), tmp_path / "v.parquet"
    parts = Parts(output, {})
    with parts.opened(), pytest.raises(IntformerError, match="another process writes it"):
        embed(library, source, output)


def test_memory_does_not_grow_with_the_file(library, tmp_path):
    """100 MB beside the texts, in one row group, pass through far less of memory."""
    source = tmp_path / "t.parquet"
    rng = np.random.default_rng(0)
    schema = pa.schema({"text": pa.string(), "payload": pa.binary()})
    with parquet.ParquetWriter(source, schema, compression="none") as writer:
        payload = [rng.bytes(100_000) for _ in range(1000)]
        writer.write_table(pa.table({"text": ROWS * 25, "payload": payload}, schema=schema))
    code = (
        "import resource, sys; from intformer import cli;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "import pyarrow.parquet, intformer.offline.tables; before = peak();"
        "assert cli.main(sys.argv[1:]) == 0; print(peak() - before)"
    )
    words = command(library, source, tmp_path / "v.parquet", "--part-rows", "50", "--threads", "1")
    done = subprocess.run(
        [sys.executable, "-c", code, *words[3:]], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 60


def test_the_command(library, tmp_path, capsys):
    source = written(tmp_path, "tsv", ("text", "title"))  # the texts are in `title`
    output = tmp_path / "v.parquet"
    words = command(library, source, output)[3:]
    assert cli.main(words) == 0
    assert vectors(output).shape == (len(ROWS), 32)
    assert cli.main([*words, "--column", "title"]) == 0
    assert f"{output}: {len(ROWS)} vectors of 32 channels, in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "options", "fault"),
    [
        ("a\tb\n1\t2\n", {}, "which column has the texts.* one of a, b"),
        ("a\tb\n1\t2\n", {"column": "c"}, "no such column: 'c'"),
        ("text\tembedding\n1\t2\n", {}, "there is a column 'embedding' already"),
        ("", {}, "cannot read the texts|no texts"),
        ("text\tb\n1\n", {}, "cannot read the texts"),
        ("text\n1\n", {"prompt_name": "x"}, "no prompt 'x'"),
    ],
)
def test_refusals(library, tmp_path, content, options, fault):
    source = tmp_path / "t.tsv"
    source.write_text(content)
    with pytest.raises(IntformerError, match=fault):
        embed(library, source, tmp_path / "v.parquet", **options)


def test_refusals_of_parquet_files(library, tmp_path):
    source, output = tmp_path / "t.parquet", tmp_path / "v.parquet"
    parquet.write_table(pa.table({"text": ["a", None]}), source)
    with pytest.raises(IntformerError, match=r"row 1 has no text - .*t.parquet, column 'text'"):
        embed(library, source, output)
    parquet.write_table(pa.table({"text": [1]}), source)
    with pytest.raises(IntformerError, match="column 'text' is int64, not text"):
        embed(library, source, output)
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), source)
    with pytest.raises(IntformerError, match="no texts"):
        embed(library, source, output)
    source.write_text("no parquet")
    with pytest.raises(IntformerError, match=r"cannot read the texts: .* - .*t.parquet"):
        embed(library, source, output)
    with pytest.raises(IntformerError, match=r"not a \.parquet file"):
        embed(library, written(tmp_path, "txt"), tmp_path / "v.csv")
    with pytest.raises(IntformerError, match="input and output are one file"):
        embed(library, written(tmp_path, "parquet"), tmp_path / "texts.parquet")
    with pytest.raises(IntformerError, match=r"a file ending in '\.xlsx'"):
        embed(library, "x.xlsx", output)
    assert not output.exists()


def test_a_library_that_makes_no_vectors(toy_path):
    with pytest.raises(IntformerError, match=r"head features makes no vectors - .*libtoy\.so"):
        Embedder(toy_path)


def test_the_embedder(library, wanted):
    """As Ray Data calls it."""
    embedder = Embedder(library, "t")
    batch = {"t": np.array(ROWS, object), "id": np.arange(len(ROWS))}
    found = embedder(batch)
    assert list(found) == ["t", "id", "embedding"]
    np.testing.assert_array_equal(found["embedding"], wanted)
    assert embedder({"t": np.array([], object)})["embedding"].shape == (0, 32)
    with pytest.raises(IntformerError, match="no column 't' - columns: 'x'"):
        embedder({"x": batch["t"]})
    with pytest.raises(IntformerError, match="'embedding' already"):
        embedder(found)


def test_an_embedder_goes_to_another_process(library, wanted, tmp_path):
    path = shutil.copy(library, tmp_path / "copied.so")
    copy = pickle.dumps(Embedder(path, "t"))
    batch = {"t": np.array(ROWS, object)}
    np.testing.assert_array_equal(pickle.loads(copy)(batch)["embedding"], wanted)
    compiled(plain(tmp_path / "other", **SHAPE), path, head="features")
    with pytest.raises(LibraryError, match=r"is another library .*copied\.so"):
        pickle.loads(copy)

"""XLM-R as it is used: 250002 words, of which a run touches few, and BGE-M3's side heads."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import intformer
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer_testing import random_hf

WORDS, HIDDEN = 250002, 128
RUN = """
import sys
import numpy as np
from intformer.runtime import load

library = load(sys.argv[1])
ids = np.array(list(map(int, sys.argv[2:])), np.int32)
library.run(ids, np.array([0, len(ids)], np.int32))
print(open("/proc/self/smaps").read())
"""


def mapped(smaps: str, name: str) -> dict[str, int]:
    """Return key -> bytes over all mappings of a file, from /proc/PID/smaps."""
    found = dict.fromkeys(("Rss", "Anonymous", "Size"), 0)
    inside = False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(name)
        key, _, rest = line.partition(":")
        if inside and key in found:
            found[key] += int(rest.split()[0]) * 1024
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_words_that_no_text_has_take_no_memory(tmp_path):
    shape = {"hidden": HIDDEN, "ffn": 64, "vocab_size": WORDS, "max_position_embeddings": 514}
    random_hf.save(tmp_path / "model", "xlm-roberta", "features", **shape)
    file = tmp_path / "words.so"
    calibrate = random_hf.sequences(seed=1)
    intformer.compile(tmp_path / "model", file, target="x86-64", calibrate=calibrate)
    table = WORDS * HIDDEN
    assert file.stat().st_size > table
    took = []
    for ids in (np.arange(3, 67), np.linspace(3, WORDS - 1, 64, dtype=int)):
        command = [sys.executable, "-c", RUN, file, *map(str, ids)]
        smaps = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = mapped(smaps, file.name)
        assert found["Size"] > 2 * table  # by the loader, and to read it
        assert found["Anonymous"] < 2**17  # the table is nobody's own
        took.append(found["Rss"])
    assert took[0] < table / 3
    assert took[0] < took[1]  # what is measured moves with the words that are read


def test_side_heads_are_left_out_and_named(tmp_path):
    random_hf.save(tmp_path, "xlm-roberta", "features")
    assert read_encoder(Checkpoint(tmp_path))[1]["warnings"] == []
    (tmp_path / "colbert_linear.pt").write_bytes(b"not read")
    (note,) = read_encoder(Checkpoint(tmp_path))[1]["warnings"]
    assert note == "heads in files beside the model are left out: colbert_linear.pt"
    (tmp_path / "sparse_linear.pt").write_bytes(b"not read")
    (note,) = read_encoder(Checkpoint(tmp_path), "sentence-embedding")[1]["warnings"]
    assert note.endswith("left out: sparse_linear.pt, colbert_linear.pt")

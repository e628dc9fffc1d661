"""Ray, where it is installed: `make test-engines`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import intformer
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

ray = pytest.importorskip("ray", reason="needs ray: `make test-engines`")
ROOT = Path(__file__).parents[2]
TEXTS = [" ".join(text.split()[:9]) for text in small_tokenizer.SENTENCES[:40]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("embedder")
    folder = plain(made / "model", hidden=32, heads=2, layers=1, ffn=48)
    path, calibration = made / "minilm.so", made / "texts.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    options = {"head": "sentence-embedding", "target": "x86-64", "calibrate": calibration}
    intformer.compile(folder, path, **options)
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, on this machine; the CPUs are as many as the nodes say."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        made.add_node(num_cpus=2)
        made.wait_for_nodes()
        yield made
        made.shutdown()


def test_map_batches(cluster, library, tmp_path):
    """The example, on files of several row groups."""
    (tmp_path / "texts").mkdir()
    for part in range(3):
        rows = {"text": TEXTS, "id": np.arange(len(TEXTS)) + 100 * part}
        parquet.write_table(pa.table(rows), tmp_path / "texts" / f"{part}.parquet")
    command = [sys.executable, "-P", ROOT / "examples" / "ray_embed.py", library]
    done = subprocess.run(
        [*command, tmp_path / "texts", tmp_path / "vectors", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "vectors").sort_by("id")
    assert table.column("text").to_pylist() == TEXTS * 3
    wanted = np.stack(list(intformer.predict(intformer.load(library), TEXTS)))
    found = np.stack(table.column("embedding").to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(found, np.concatenate([wanted] * 3))

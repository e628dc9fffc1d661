"""Ray, where it is installed: `make test-engines`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import intformer
from intformer.errors import IntformerError
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

ray = pytest.importorskip("ray", reason="needs ray: `make test-engines`")
ROOT = Path(__file__).parents[2]
TEXTS = [" ".join(text.split()[:9]) for text in small_tokenizer.SENTENCES[:40]]
pytestmark = pytest.mark.slow


def compiled(made, seed=0):
    """A small library of sentence embeddings."""
    folder = plain(made / "model", hidden=32, heads=2, layers=1, ffn=48, seed=seed)
    path, calibration = made / "minilm.so", made / "texts.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    options = {"head": "sentence-embedding", "target": "x86-64", "calibrate": calibration}
    intformer.compile(folder, path, **options)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, on this machine; the CPUs are as many as the nodes say."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")  # where much else runs
        node = {"num_cpus": 2}
        made = Cluster(initialize_head=True, head_node_args=node)
        made.add_node(**node)
        made.wait_for_nodes()
        yield made
        ray.shutdown()
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


# ---- intformer serve --ray ----


def asked(base, texts, key="secret", **options):
    body = {"inputs": texts, "normalize": False}
    header = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{base}/embed", json=body, headers=header, timeout=60, **options)


def command(cluster, base, *libraries, replicas=(1, 1), more=()):
    """`intformer serve --ray` in a process of its own, which ends when it has deployed."""
    port = base.rpartition(":")[2]
    words = ["serve", *map(str, libraries), "--ray", "--port", port, *more]
    words += ["--min-replicas", str(replicas[0]), "--max-replicas", str(replicas[1])]
    done = subprocess.run(
        [sys.executable, "-m", "intformer", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "INTFORMER_API_KEY": "secret"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"deployed: {base}"


@pytest.fixture(scope="module")
def base(cluster):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def replicas(name="replica"):
    """The processes of a deployment, by their nodes."""
    from ray.util.state import list_actors

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    found = list_actors(filters=[("state", "=", "ALIVE")], limit=100)
    return {a.pid: a.node_id for a in found if f"#{name}#" in (a.name or "")}


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


class Crowd:
    """Clients that ask without pause; `answers` are (status, which of `rows` it was)."""

    def __init__(self, base, *rows, texts=2):
        self.base, self.rows, self.texts = base, rows, texts
        self.answers, self.ends = [], threading.Event()

    def __enter__(self):
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(6)]
        for thread in self.threads:
            thread.start()
        return self

    def _ask(self, i):
        while not self.ends.is_set():
            pick = [(i + 7 * j) % len(TEXTS) for j in range(self.texts)]
            i += 1
            answer = asked(self.base, [TEXTS[one] for one in pick])
            found = answer.json() if answer.status_code == 200 else None
            which = [
                j
                for j, row in enumerate(self.rows)
                if found is not None and np.allclose(found, row[pick], rtol=1e-6, atol=1e-7)
            ]
            self.answers.append((answer.status_code, which))

    def __exit__(self, *_):
        self.ends.set()
        for thread in self.threads:
            thread.join()


def test_queued_tokens_scale(cluster, base, library):
    """One replica becomes two while more tokens wait than it should have."""
    more = ("--target-queued-tokens", "1", "--max-batch-tokens", "16", "--threads", "2")
    command(cluster, base, library, replicas=(1, 2), more=more)
    assert len(replicas()) == 1
    with Crowd(base, texts=32) as crowd:  # longer in the engine than on the way
        until(lambda: len(replicas()) == 2, seconds=90)
    assert {status for status, _ in crowd.answers} == {200}


@pytest.fixture(scope="module")
def served(cluster, base, library, tmp_path_factory):
    """Two replicas of a library, one on each node."""
    path = tmp_path_factory.mktemp("served") / "minilm.so"
    shutil.copy(library, path)
    command(cluster, base, path, replicas=(2, 2), more=("--threads", "2"))
    return path


@pytest.fixture(scope="module")
def wanted(library):
    return np.stack(list(intformer.predict(intformer.load(library), TEXTS)))


def test_it_answers_as_one_server_does(served, base, wanted):
    np.testing.assert_allclose(asked(base, TEXTS[:32]).json(), wanted[:32], rtol=1e-6, atol=1e-7)
    assert asked(base, TEXTS, key="other").status_code == 401
    assert asked(base, []).status_code == 400
    assert asked(base, "the \0").status_code == 422
    assert httpx.get(f"{base}/health").status_code == 200
    assert 'te_request_count{method="/embed"}' in httpx.get(f"{base}/metrics").text
    found = replicas()
    assert len(found) == len(set(found.values())) == 2


def test_a_killed_replica_loses_no_request(served, base, wanted):
    before = set(replicas())
    with Crowd(base, wanted) as crowd:
        until(lambda: len(crowd.answers) > 30)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        count = len(crowd.answers)
        until(lambda: len(crowd.answers) > count + 100)
        until(lambda: len(set(replicas()) - {victim}) == 2)
    assert all(answer == (200, [0]) for answer in crowd.answers)


def test_a_rolling_update(served, base, wanted, cluster, tmp_path):
    """Every request is answered, by the old library or the new one; in the end by the new one."""
    new = compiled(tmp_path, seed=1)
    rows = np.stack(list(intformer.predict(intformer.load(new), TEXTS)))
    assert not np.allclose(rows, wanted)
    new.replace(served)  # its name stays; what is mapped of the old one stays too
    with Crowd(base, wanted, rows) as crowd:
        until(lambda: len(crowd.answers) > 30)
        command(cluster, base, served, replicas=(2, 2), more=("--threads", "2"))
        count = len(crowd.answers)
        until(lambda: len(crowd.answers) > count + 30)
    assert {status for status, _ in crowd.answers} == {200}
    assert all(which in ([0], [1]) for _, which in crowd.answers)
    assert {which[0] for _, which in crowd.answers} == {0, 1}
    assert all(which == [1] for _, which in crowd.answers[count + 6 :])


def test_replicas_for_waiting_tokens():
    from intformer.serve.cluster import QUEUED, QueuedTokens

    for waiting, wanted in (({}, 1), ({"a": 10}, 1), ({"a": 15, "b": 16}, 4), (None, 1)):
        context = SimpleNamespace(aggregated_metrics=waiting and {QUEUED: waiting})
        assert QueuedTokens(10)(context)[0] == wanted


def test_another_build_is_refused(served, cluster):
    from intformer.serve import Limits
    from intformer.serve.cluster import Copy, Replica

    with pytest.raises(IntformerError, match=r"build .*, the cluster serves 00000000 - .*minilm"):
        Replica({"minilm": Copy(str(served), "0" * 64)}, Limits(), 1)


def test_no_cluster(library, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = subprocess.run(
        [sys.executable, "-m", "intformer", "serve", str(library), "--ray"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "error: no Ray cluster" in done.stderr

"""Model repositories for Triton: as the backend calls them, and inside the real server.

The server is the one that nvidia-pytriton carries: `make test-engines` installs it in .venv-triton.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import numpy as np
import pytest

import intformer
from intformer import cli
from intformer.errors import IntformerError
from intformer.runtime.edge import Edge
from intformer.ship.triton import triton_repository
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

ROOT = Path(__file__).parents[2]
TEXTS = [
    " ".join(text.split()[: 3 + i % 9]) for i, text in enumerate(small_tokenizer.SENTENCES[:24])
]
SHAPE = {"hidden": 32, "heads": 2, "layers": 1, "ffn": 48}


def compiled(made, name, head, **shape):
    folder = plain(made / name, head, **SHAPE, **shape)
    path, calibration = made / f"{name}.so", made / f"{name}.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    head = "sentence-embedding" if head == "features" else head
    intformer.compile(folder, path, head=head, target="x86-64", calibrate=calibration)
    return path


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {
        "embedder": compiled(made, "embedder", "features"),
        "ranker": compiled(made, "ranker", "sequence-classification", labels=3),
    }


@pytest.fixture(scope="module")
def repository(libraries, tmp_path_factory):
    made = tmp_path_factory.mktemp("triton") / "repository"
    for path in libraries.values():
        triton_repository(path, made, queue_delay=20_000)
    return made


@pytest.fixture(scope="module")
def wanted(libraries):
    """Vectors of TEXTS, and scores of each text with the next one."""
    embedder, ranker = map(intformer.load, libraries.values())
    pairs = [*TEXTS[1:], TEXTS[0]]
    scores = [list(one["scores"].values()) for one in intformer.predict(ranker, TEXTS, pairs)]
    return np.stack(list(intformer.predict(embedder, TEXTS))), np.float32(scores)


def ids_of(library, text):
    return Edge.of(library).encode([text]).input_ids


# ---- as the backend calls it ----


class Backend(ModuleType):
    """What the classes of Triton's Python backend do, as far as a model needs them."""

    class Tensor(SimpleNamespace):
        def __init__(self, name, array):
            super().__init__(name=lambda: name, as_numpy=lambda: array)

    class TritonError(SimpleNamespace):
        def __init__(self, message):
            super().__init__(message=message)

    class InferenceResponse(SimpleNamespace):
        def __init__(self, tensors=(), error=None):
            super().__init__(tensors=tensors, error=error)


def request(**arrays):
    given = [Backend.Tensor(name, array) for name, array in arrays.items()]
    return SimpleNamespace(inputs=lambda: given)


def words(*texts):
    return np.array(
        [[text if isinstance(text, bytes) else text.encode()] for text in texts], object
    )


@pytest.fixture
def model(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend("utils"))
    monkeypatch.delitem(sys.modules, "intformer.integrations.triton", raising=False)
    from intformer.integrations.triton import TritonPythonModel

    def make(name):
        one = TritonPythonModel()
        output = "embedding" if name == "embedder" else "scores"
        config = json.dumps({"output": [{"name": output}]})
        folder = str(repository / name)
        one.initialize({"model_repository": folder, "model_version": "1", "model_config": config})
        return one

    yield make
    sys.modules.pop("intformer.integrations.triton", None)


def test_a_batch_is_one_run_without_padding(model, wanted):
    one = model("embedder")
    runs, run = [], one.library.run
    one.library.run = lambda **inputs: runs.append(inputs["cu_seqlens"]) or run(**inputs)
    ids = [ids_of(one.library, text) for text in TEXTS]
    requests = [request(input_ids=row[None]) for row in ids[:5]]
    requests.append(request(text=words(*TEXTS[5:8])))
    padded = np.zeros((2, 40), np.int32)
    mask = np.zeros_like(padded)
    for i, row in enumerate(ids[8:10]):
        padded[i, : len(row)], mask[i, : len(row)] = row, 1
    requests.append(request(input_ids=padded, attention_mask=mask))
    found = [answer.tensors[0].as_numpy() for answer in one.execute(requests)]
    assert [len(rows) for rows in found] == [1] * 5 + [3, 2]
    np.testing.assert_array_equal(np.concatenate(found), wanted[0][:10])
    assert [run.tolist() for run in runs] == [np.cumsum([0, *map(len, ids[:10])]).tolist()]


def test_who_is_to_blame_gets_the_error(model, wanted):
    one = model("embedder")
    good = request(text=words(TEXTS[0]))
    bad = {
        "vocab|id": request(input_ids=np.array([[99_999_999]], np.int32)),
        "not UTF-8": request(text=words(b"\xff")),
        "inputs pair - send": request(pair=words("a")),
        "inputs text, input_ids": request(text=words("a"), input_ids=np.zeros((1, 3), np.int32)),
        "sequence 0 is empty": request(
            input_ids=np.ones((1, 3), np.int32), attention_mask=np.zeros((1, 3), np.int32)
        ),
    }
    answers = one.execute([good, *bad.values(), good])
    for answer in (answers[0], answers[-1]):
        np.testing.assert_array_equal(answer.tensors[0].as_numpy(), wanted[0][:1])
    for (fault, _), answer in zip(bad.items(), answers[1:-1], strict=True):
        assert any(part in answer.error.message for part in fault.split("|")), answer.error.message
        assert "/" not in answer.error.message  # no path of the machine
    assert [answer.error is None for answer in one.execute([bad["not UTF-8"]])] == [False]


def test_scores_of_pairs(model, wanted):
    one = model("ranker")
    pairs = words(*TEXTS[1:], TEXTS[0])
    (answer,) = one.execute([request(text=words(*TEXTS), pair=pairs)])
    np.testing.assert_array_equal(answer.tensors[0].as_numpy(), wanted[1])


# ---- the repository ----


def test_the_repository(repository, libraries):
    files = sorted(p.relative_to(repository).as_posix() for p in repository.rglob("*"))
    assert files == [
        *("embedder", "embedder/1", "embedder/1/library.so", "embedder/1/model.py"),
        *("embedder/config.pbtxt", "ranker", "ranker/1", "ranker/1/library.so"),
        *("ranker/1/model.py", "ranker/config.pbtxt", "ranker/labels.txt"),
    ]
    assert (repository / "ranker/labels.txt").read_text() == "LABEL_0\nLABEL_1\nLABEL_2\n"
    config = (repository / "embedder/config.pbtxt").read_text()
    assert 'name: "embedding" data_type: TYPE_FP32 dims: [ 32 ]' in config
    assert '"pair"' not in config
    assert '"pair"' in (repository / "ranker/config.pbtxt").read_text()


def test_the_next_version(libraries, tmp_path, capsys):
    line = ["triton", str(libraries["embedder"]), "-o", str(tmp_path), "--name", "minilm"]
    assert cli.main(line) == cli.main(line) == 0
    assert f"{tmp_path}/minilm: version 2 of model minilm" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "minilm")) == ["1", "2", "config.pbtxt"]


def test_libraries_that_triton_cannot_have(toy_path, libraries, tmp_path):
    with pytest.raises(IntformerError, match="head features has no row of numbers per text"):
        triton_repository(toy_path, tmp_path)
    with pytest.raises(IntformerError, match="a model cannot be called 'a/b'"):
        triton_repository(libraries["embedder"], tmp_path, name="a/b")
    assert not list(tmp_path.iterdir())


# ---- the server ----

VENV = ROOT / ".venv-triton"
ASK = (  # of the Python that runs models
    "import json, sys, sysconfig, numpy, tokenizers, intformer;"
    "print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_python_version(),"
    " sysconfig.get_config_var('LIBDIR')]))"
)


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """The address of a tritonserver that serves the repository."""
    if not (VENV / "bin" / "python").exists():
        pytest.skip(f"needs nvidia-pytriton in {VENV.name}: `make test-engines`")
    python = subprocess.run([VENV / "bin/python", "-I", "-c", ASK], capture_output=True, check=True)
    packages, version, libpython = json.loads(python.stdout)
    found = Path(packages, "pytriton", "tritonserver")
    made = tmp_path_factory.mktemp("server")
    backend = shutil.copytree(found / "backends" / "python", made / "backends" / "python")
    shutil.copy(found / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    libraries = f"{packages}/nvidia_pytriton.libs:{libpython}"
    environment = {  # the backend takes the first Python in PATH, and no PYTHONPATH
        **{"PATH": f"{VENV}/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": libraries},
        "INTFORMER_THREADS": "1",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [found / "bin" / "tritonserver", f"--model-repository={repository}"]
    options = {
        **{"backend-directory": made / "backends", "http-address": "127.0.0.1"},
        **{"http-port": port, "allow-grpc": "false", "allow-metrics": "false", "log-verbose": 0},
    }
    log = made / "log"
    with log.open("w") as file:
        running = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    base, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
    try:
        while True:
            try:
                if httpx.get(f"{base}/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert running.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)
        yield base
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # the models' processes as well
        running.wait()


def infer(base, model, **inputs):
    kinds = {"text": "BYTES", "pair": "BYTES"}
    body = {
        "inputs": [
            {
                "name": name,
                "datatype": kinds.get(name, "INT32"),
                "shape": list(np.shape(value)),
                "data": np.ravel(value).tolist(),
            }
            for name, value in inputs.items()
        ]
    }
    return httpx.post(f"{base}/v2/models/{model}/infer", json=body, timeout=60)


def rows(answer):
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.slow
def test_the_server_answers(server, libraries, wanted):
    """Requests of any length share runs; answers are those of predict, to the last bit."""
    library = intformer.load(libraries["embedder"])
    ids = [ids_of(library, text)[None] for text in TEXTS]

    def ask(i):
        if i % 3:
            return rows(infer(server, "embedder", input_ids=ids[i]))
        return rows(infer(server, "embedder", text=[[TEXTS[i]]]))

    with ThreadPoolExecutor(12) as crowd:
        found = list(crowd.map(ask, [i for _ in range(4) for i in range(len(TEXTS))]))
    np.testing.assert_array_equal(np.concatenate(found), np.tile(wanted[0], (4, 1)))
    stats = httpx.get(f"{server}/v2/models/embedder/stats").json()["model_stats"][0]
    assert stats["inference_count"] == 4 * len(TEXTS)
    assert stats["execution_count"] < stats["inference_count"]  # they did share them


@pytest.mark.slow
def test_the_server_classifies_pairs(server, wanted):
    pairs = [*TEXTS[1:], TEXTS[0]]
    found = infer(server, "ranker", text=[[t] for t in TEXTS], pair=[[t] for t in pairs])
    np.testing.assert_array_equal(rows(found), wanted[1])


@pytest.mark.slow
def test_the_server_refuses(server, wanted):
    refused = infer(server, "embedder", input_ids=[[99_999_999]])
    assert refused.status_code >= 400
    assert "99999999" in refused.json()["error"]
    assert infer(server, "embedder", text=[["a"] * 40]).status_code >= 400
    np.testing.assert_array_equal(rows(infer(server, "embedder", text=[[TEXTS[0]]])), wanted[0][:1])

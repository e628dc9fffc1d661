"""The server: TEI's and OpenAI's answers, bounds, hostile requests, and a log without texts."""

import asyncio
import base64
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import intformer
from intformer.errors import IntformerError, LibraryError
from intformer.ir import heads
from intformer.runtime.edge import predict
from intformer.serve import Limits
from intformer.serve.app import application
from intformer.serve.engine import Engine
from intformer.serve.faults import Fault
from intformer.serve.gate import key_of
from intformer.serve.metrics import Metrics
from intformer.serve.rendered import rendered
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import Exact, plain, write

TEXTS = ["the you of", *small_tokenizer.SENTENCES[50:52], "The"]
TEXTS = [" ".join(text.split()[:8]) for text in TEXTS]
SHAPE = {"hidden": 16, "heads": 2, "layers": 1, "ffn": 16}
SECRET = "xyzzy plugh"  # in no log
POOLING = {"word_embedding_dimension": 16, "pooling_mode": "mean"}


class Library(Exact):
    """A float model that can be told to be slow or to fail; notes what ran."""

    footer = SimpleNamespace(build_id=bytes(32))

    def __init__(self, folder, head=None):
        super().__init__(folder, head)
        self.runs, self.fails = [], False
        self.open = threading.Event()
        self.open.set()

    def run(self, **inputs):
        self.open.wait(20)
        if self.fails:
            raise LibraryError("no memory", where="/secret/path")
        self.runs.append(np.diff(inputs["cu_seqlens"]).tolist())
        return super().run(**inputs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("served")
    embedder = plain(made / "embedder", **SHAPE)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]
    write(embedder / "modules.json", modules)
    write(embedder / "1_Pooling" / "config.json", POOLING)
    prompts = {"prompts": {"query": "of the: "}, "default_prompt_name": None}
    write(embedder / "config_sentence_transformers.json", prompts)
    plain(made / "ranker", "sequence-classification", labels=1, **SHAPE)
    plain(made / "classifier", "sequence-classification", labels=3, **SHAPE)
    plain(made / "tagger", "token-classification", labels=3, **SHAPE)
    plain(made / "sparse", "masked-lm", **SHAPE)
    return made


@pytest.fixture
def library(folders):
    return lambda name: Library(folders / name, "sparse-embedding" if name == "sparse" else None)


class Client:
    """Requests to an application in this process; each is one round of the event loop."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, body=None, **options):
        async def one():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                if body is not None:
                    options["content"] = json.dumps(body)
                    kind = {"Content-Type": "application/json"}
                    options["headers"] = {**kind, **options.get("headers", {})}
                return await client.request(method, path, **options)

        return asyncio.run(one())

    def post(self, path, **body):
        return self("POST", path, body)

    def get(self, path, **options):
        return self("GET", path, **options)


@pytest.fixture
def serve():
    """Return names and libraries -> a client of their application."""
    made = []

    def start(limits=None, key=None, **libraries):
        app = application(libraries, limits, key)
        made.append(app)
        return Client(app)

    yield start
    for app in made:
        for one in app.app.state.models.all.values():
            one.library.open.set()
            one.close()


def answers(library, *columns, **options):
    return list(predict(library, *columns, **options))


# ---- answers ----


def test_embed(serve, library):
    one = library("embedder")
    client = serve(minilm=one)
    wanted = np.stack(answers(one, TEXTS))
    found = client.post("/embed", inputs=TEXTS)
    assert found.status_code == 200
    np.testing.assert_allclose(found.json(), wanted, rtol=1e-5, atol=1e-7)
    assert client.post("/embed", inputs=TEXTS[0]).json() == found.json()[:1]
    raw = np.array(client.post("/embed", inputs=TEXTS, normalize=False).json())
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(
        raw / np.linalg.norm(raw, axis=1)[:, None], wanted, rtol=1e-5, atol=1e-7
    )
    few = np.array(client.post("/embed", inputs=TEXTS, dimensions=4).json())
    kept = raw[:, :4] / np.linalg.norm(raw[:, :4], axis=1)[:, None]
    np.testing.assert_allclose(few, kept, rtol=1e-5, atol=1e-7)
    prompted = client.post("/embed", inputs=TEXTS, prompt_name="query").json()
    np.testing.assert_allclose(
        prompted, np.stack(answers(one, TEXTS, prompt_name="query")), rtol=1e-5, atol=1e-7
    )


def test_token_ids_are_the_text(serve, library):
    client = serve(minilm=library("embedder"))
    tokens = client.post("/tokenize", inputs=TEXTS).json()
    ids = [[token["id"] for token in row] for row in tokens]
    assert [row[0]["special"] for row in tokens] == [True] * len(TEXTS)
    for row, text in zip(tokens, TEXTS, strict=True):
        for token in row[1:-1]:
            assert token["text"] == text[token["start"] : token["stop"]]
    wanted = client.post("/embed", inputs=TEXTS).json()
    assert client.post("/embed", inputs=ids).json() == wanted
    assert client.post("/embed", inputs=ids[0]).json() == wanted[:1]
    bare = client.post("/tokenize", inputs=TEXTS[0], add_special_tokens=False).json()
    assert [token["id"] for token in bare[0]] == ids[0][1:-1]
    assert client.post("/decode", ids=ids[0]).json() == ["the you of"]
    assert client.post("/decode", ids=ids[:1], skip_special_tokens=False).json() == [
        "[CLS] the you of [SEP]"
    ]
    assert len(client.post("/tokenize", inputs="the " * 100).json()[0]) == 102  # uncut


def test_token_ids_have_the_default_prompt(serve, folders, tmp_path):
    folder = shutil.copytree(folders / "embedder", tmp_path / "prompted")
    prompts = {"prompts": {"query": "of the: ", "none": ""}, "default_prompt_name": "query"}
    write(folder / "config_sentence_transformers.json", prompts)
    client = serve(minilm=Library(folder))
    wanted = client.post("/embed", inputs=TEXTS).json()
    tokens = client.post("/tokenize", inputs=TEXTS).json()
    ids = [[token["id"] for token in row] for row in tokens]
    assert client.post("/embed", inputs=ids).json() == wanted
    bare = client.post("/tokenize", inputs=TEXTS, prompt_name="none").json()
    assert [len(row) for row in bare] < [len(row) for row in ids]


def test_openai(serve, library):
    one = library("embedder")
    client = serve(minilm=one)
    found = client.post("/v1/embeddings", input=TEXTS, model="minilm").json()
    wanted = np.stack(answers(one, TEXTS))
    assert [row["index"] for row in found["data"]] == list(range(len(TEXTS)))
    rows = [row["embedding"] for row in found["data"]]
    np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-7)
    tokens = sum(map(len, client.post("/tokenize", inputs=TEXTS).json()))
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    coded = client.post("/v1/embeddings", input=TEXTS, encoding_format="base64").json()
    for row, text in zip(rows, coded["data"], strict=True):
        np.testing.assert_array_equal(
            np.frombuffer(base64.b64decode(text["embedding"]), "<f4"), np.float32(row)
        )
    assert client.get("/v1/models").json()["data"][0]["id"] == "minilm"
    fault = client.post("/v1/embeddings", input="a", model="text-embedding-3-small")
    assert fault.status_code == 404
    assert fault.json()["error"]["message"] == "no such model; served: minilm"


def test_similarity(serve, library):
    one = library("embedder")
    client = serve(minilm=one)
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = client.post("/similarity", inputs=inputs).json()
    rows = np.stack(answers(one, TEXTS))
    np.testing.assert_allclose(found, rows @ rows[0], rtol=1e-4)
    assert found[0] == pytest.approx(1)
    found = client.post("/similarity", inputs=inputs, parameters={"prompt_name": "query"})
    rows = np.stack(answers(one, TEXTS, prompt_name="query"))
    np.testing.assert_allclose(found.json(), rows @ rows[0], rtol=1e-4)


def test_rerank(serve, library):
    one = library("ranker")
    client = serve(ranker=one)
    wanted = [row["score"] for row in answers(one, [TEXTS[0]] * len(TEXTS), TEXTS)]
    found = client.post("/rerank", query=TEXTS[0], texts=TEXTS, return_text=True).json()
    assert [row["index"] for row in found] == np.argsort(wanted)[::-1].tolist()
    assert [row["score"] for row in found] == pytest.approx(sorted(wanted, reverse=True))
    assert [row["text"] for row in found] == [TEXTS[row["index"]] for row in found]
    raw = client.post("/rerank", query=TEXTS[0], texts=TEXTS, raw_scores=True).json()
    assert "text" not in raw[0]
    assert [1 / (1 + np.exp(-row["score"])) for row in raw] == pytest.approx(
        [row["score"] for row in found]
    )


def test_predict(serve, library):
    one = library("classifier")
    client = serve(classifier=one)
    pair = TEXTS[:2]
    wanted = [answers(one, [TEXTS[0]])[0], answers(one, pair[:1], pair[1:])[0]]
    found = client.post("/predict", inputs=[[TEXTS[0]], pair]).json()
    assert [{r["label"]: r["score"] for r in row} for row in found] == [
        pytest.approx(row["scores"]) for row in wanted
    ]
    assert all(row[0]["score"] == max(r["score"] for r in row) for row in found)
    assert client.post("/predict", inputs=TEXTS[0]).json() == found[0]
    assert client.post("/predict", inputs=pair).json() == found[1]
    raw = client.post("/predict", inputs=TEXTS[0], raw_scores=True).json()
    share = np.exp([row["score"] for row in raw])
    assert share / share.sum() == pytest.approx([row["score"] for row in found[0]])


def test_sparse_and_answer(serve, library):
    sparse, tagger = library("sparse"), library("tagger")
    client = serve(sparse=sparse, tagger=tagger)
    found = client.post("/embed_sparse", inputs=TEXTS).json()
    for row, wanted in zip(found, answers(sparse, TEXTS), strict=True):
        assert [one["index"] for one in row] == [one["id"] for one in wanted]
        assert [one["value"] for one in row] == pytest.approx([one["score"] for one in wanted])
    assert client.post("/answer", model="tagger", texts=TEXTS).json() == answers(tagger, TEXTS)
    assert client.post("/answer", texts=TEXTS).json()["error"].startswith("several models fit")


def test_state(serve, library):
    client = serve(ranker=library("ranker"), minilm=library("embedder"))
    info = client.get("/info").json()
    assert info["model_type"]["reranker"]["id2label"] == {"0": "LABEL_0"}
    assert info["max_client_batch_size"] == 32
    assert info["models"] == ["ranker", "minilm"]
    about = client.get("/info", params={"model": "minilm"}).json()
    assert about["model_type"] == {"embedding": {"pooling": "mean"}}
    assert client.get("/info", params={"model": "x"}).status_code == 404
    assert client.get("/health").status_code == client.get("/ping").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/embed", "/rerank", "/predict", "/similarity", "/tokenize", "/info"} <= paths.keys()
    assert "swagger" in client.get("/docs").text
    page = client.get("/").text
    assert '<option value="minilm">minilm (sentence-embedding)' in page
    assert '{"ranker": true, "minilm": false}' in page
    assert not re.search(r"OPTIONS|PAIRS", page)


# ---- metrics, log, key ----


def test_metrics(serve, library):
    client = serve(minilm=library("embedder"))
    client.post("/embed", inputs=TEXTS)
    client.post("/embed", inputs=[])
    text = client.get("/metrics").text
    tokens = sum(map(len, client.post("/tokenize", inputs=TEXTS).json()))
    for line in (
        'te_request_count{method="/embed"} 2.0',
        'te_request_success{method="/embed"} 1.0',
        'te_request_failure{err="Empty"} 1.0',
        'te_queue_size{model="minilm"} 0.0',
        f'te_batch_next_tokens_sum{{model="minilm"}} {tokens:.1f}',
        'te_request_duration_count{method="/embed"} 1.0',
        "te_request_queue_duration_count 1.0",
        "te_request_running 0.0",
    ):
        assert line in text


def test_the_log_has_no_text(serve, library, caplog):
    caplog.set_level(logging.DEBUG)
    one = library("embedder")
    client = serve(minilm=one)
    client.post("/embed", inputs=[f"the {SECRET}", "you"])
    client.post("/embed", inputs=[f"{SECRET}\ud800"])
    client.post("/embed", inputs="a", prompt_name=SECRET)
    client.post("/embed", inputs={SECRET: 1})
    kind = {"Content-Type": "application/json"}
    client("POST", f"/embed?{SECRET}", content=f'{{"inputs": "{SECRET}'.encode(), headers=kind)
    client.get(f"/{SECRET}")
    client.post("/v1/embeddings", input=SECRET, model=SECRET)
    one.run = lambda **_: [][SECRET]  # a bug whose message has it
    assert client.post("/embed", inputs="a").status_code == 500
    found = [record.getMessage() for record in caplog.records if record.name == "intformer.serve"]
    first = json.loads(found[0])
    assert first.pop("milliseconds") > 0
    assert first == {
        **{"method": "POST", "path": "/embed", "status": 200, "error": None},
        **{"model": "minilm", "sequences": 2, "tokens": 8},
    }
    errors = [json.loads(line).get("error") for line in found[1:]]
    assert errors[:6] == [*["Validation"] * 3, "Invalid", "NotFound", "NotFound"]
    assert json.loads(found[6])["path"] == "-" or json.loads(found[5])["path"] == "-"
    assert "TypeError at" in found[-2]
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert not [record for record in ours if "xyzzy" in f"{record.__dict__} {record.exc_text}"]


def test_key(serve, library, tmp_path):
    client = serve(minilm=library("embedder"), key="k\u00e4y")
    assert client.post("/embed", inputs="a").status_code == 401
    for header, status in (("Bearer k\u00e4y", 200), ("Bearer kay", 401), ("k\u00e4y", 401)):
        found = client(
            "POST", "/embed", {"inputs": "a"}, headers={"Authorization": header.encode()}
        )
        assert found.status_code == status
    assert client.get("/info").status_code == 401
    for path in ("/health", "/metrics", "/"):
        assert client.get(path).status_code == 200
    file = tmp_path / "key"
    file.write_text(" abc \nmore")
    assert key_of(str(file), "other") == "abc"
    assert key_of(None, "other") == "other"
    assert key_of(None, None) is None
    file.write_text("\nabc")
    with pytest.raises(IntformerError, match="no key in its first line"):
        key_of(str(file), None)


# ---- hostile requests ----

LONG = "the " * 40
HOSTILE = {
    "no JSON": (b'{"inputs": ', 400),
    "NUL in JSON": (b'{"inputs": "a\0b"}', 400),
    "not UTF-8": (b'{"inputs": "\xff"}', 400),
    "deep": (b'{"inputs": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", 400),
    "no object": (b"7", 422),
    "no inputs": (b"{}", 422),
    "a number": ({"inputs": 7}, 422),
    "a number among texts": ({"inputs": ["a", 7]}, 422),
    "null": ({"inputs": None}, 422),
    "true among ids": ({"inputs": [5, True]}, 422),
    "unknown field": ({"inputs": "a", "input_type": "query"}, 422),
    "NUL": ({"inputs": "a\0b"}, 422),
    "lone surrogate": (b'{"inputs": "a\\ud800"}', 422),
    "empty batch": ({"inputs": []}, 400),
    "empty text": ({"inputs": ["a", ""]}, 400),
    "too long": ({"inputs": ["a", LONG]}, 422),
    "1 MB": ({"inputs": "a" * 1_000_000}, 422),
    "3 MB": ({"inputs": "a" * 3_000_000}, 413),
    "10 000 texts": ({"inputs": ["a"] * 10_000}, 422),
    "ids out of range": ({"inputs": [5, 97]}, 422),
    "negative ids": ({"inputs": [-1]}, 422),
    "huge ids": ({"inputs": [10**30]}, 422),
    "too many ids": ({"inputs": [5] * 33}, 422),
    "ids and texts": ({"inputs": ["a", [5]]}, 422),
    "no ids": ({"inputs": [[5], []]}, 422),
    "prompt before ids": ({"inputs": [5], "prompt_name": "query"}, 422),
    "no such prompt": ({"inputs": "a", "prompt_name": "x"}, 422),
    "no dimensions": ({"inputs": "a", "dimensions": 0}, 422),
    "many dimensions": ({"inputs": "a", "dimensions": 17}, 422),
    "other end": ({"inputs": "a", "truncation_direction": "Left"}, 422),
    "no such model": ({"inputs": "a", "model": "x"}, 404),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests(serve, library, name):
    body, status = HOSTILE[name]
    one = library("embedder")
    client = serve(minilm=one)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    found = client("POST", "/embed", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    assert found.json().keys() == {"error", "error_type"}
    assert len(found.text) < 400
    assert one.runs == []
    assert client.post("/embed", inputs="a").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rerank", {"query": "a", "texts": ["b"]}, 424),
        ("/predict", {"inputs": "a"}, 424),
        ("/embed_sparse", {"inputs": "a"}, 424),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", "b\0"]}}, 422),
        ("/tokenize", {"inputs": []}, 400),
        ("/tokenize", {"inputs": "a\ud800"}, 422),
        ("/tokenize", {"inputs": ["a" * 4500, "b" * 4500]}, 422),
        ("/embed", {"inputs": [[]]}, 422),
        ("/embed", {"inputs": [[], "a"]}, 422),
        ("/embed", {"inputs": ["a", []]}, 422),
        ("/decode", {"ids": [1 << 32]}, 422),
        ("/answer", {"texts": ["a"], "pairs": ["b"]}, 422),
        ("/answer", {"texts": ["a"], "pairs": []}, 422),
        ("/v1/embeddings", {"input": []}, 400),
        ("/nothing", {}, 404),
    ],
)
def test_refusals_of_other_routes(serve, library, path, body, status):
    found = serve(minilm=library("embedder")).post(path, **body)
    assert found.status_code == status, found.text
    assert "error" in found.json()


def test_pairs_that_are_none(serve, library):
    client = serve(ranker=library("ranker"), limits=Limits(max_client_batch_size=2))
    assert client.post("/predict", inputs=[["a", "b", "c"]]).status_code == 422
    assert client.post("/predict", inputs=[]).status_code in (400, 422)
    assert client.post("/predict", inputs=[["a"], ["a", "b"], ["a"]]).status_code == 422
    assert client.post("/rerank", query="", texts=["a"]).status_code == 400
    assert client.post("/rerank", query="a", texts=[]).status_code == 400
    assert client.post("/rerank", query="a", texts=["b"] * 3).status_code == 422


def test_truncation(serve, library):
    one = library("embedder")
    client = serve(minilm=one, limits=Limits(auto_truncate=True))
    wanted = np.stack(answers(one, [LONG]))
    for body in ({}, {"truncate": True}):
        np.testing.assert_allclose(
            client.post("/embed", inputs=LONG, **body).json(), wanted, rtol=1e-5, atol=1e-7
        )
    assert client.post("/embed", inputs=LONG, truncate=False).status_code == 422
    assert client.post("/embed", inputs=[5] * 40).status_code == 200


def test_a_library_that_fails(serve, library):
    one = library("embedder")
    client = serve(minilm=one)
    one.fails = True
    found = client.post("/embed", inputs="a")
    assert (found.status_code, found.json()) == (
        424,
        {"error": "no memory", "error_type": "Backend"},
    )
    one.fails = False
    assert client.post("/embed", inputs="a").status_code == 200


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["inputs", "truncate", "model", "x"]), inner)
        ),
        max_leaves=8,
    ),
    path=st.sampled_from(["/embed", "/tokenize", "/similarity", "/answer", "/v1/embeddings"]),
)
def test_any_json_is_answered_or_refused(shared_client, body, path):
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {"Content-Type": "application/json"}
    assert shared_client("POST", path, content=content, headers=headers).status_code < 500


@pytest.fixture(scope="module")
def shared_client(folders):
    app = application({"minilm": Library(folders / "embedder")})
    yield Client(app)
    app.app.state.models.all["minilm"].close()


# ---- the engine ----


class Sums:
    """A library of which each row is the sum of a sequence; waits to be let on."""

    metadata = {"head": heads.SENTENCE_EMBEDDING.name}  # noqa: RUF012

    def __init__(self):
        self.runs, self.gate = [], threading.Semaphore(0)

    def run(self, input_ids, cu_seqlens, **_):
        self.gate.acquire()
        self.runs.append(np.diff(cu_seqlens).tolist())
        return np.add.reduceat(input_ids, cu_seqlens[:-1])[:, None]


def packed(*lengths, value=1):
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    ids = np.full(offsets[-1], value, np.int32)
    from intformer.runtime.edge import Packed

    return Packed(ids, offsets, ids, ids)


def started(engine, library):
    """A first run that waits, so that what comes next queues up."""
    job = engine.submit(packed(1), time.monotonic() + 60)
    while engine._queue:
        time.sleep(0.001)
    return job


def test_runs_are_first_come_first_served_within_the_budget():
    library, metrics = Sums(), Metrics()
    engine = Engine(library, 10, metrics, "m")
    started(engine, library)
    later = time.monotonic() + 60
    jobs = [
        engine.submit(packed(*lengths, value=i + 1), later)
        for i, lengths in enumerate([(4, 4, 4), (3,), (5, 5), (25,), (1,)])
    ]
    library.gate.release(99)
    got = [job.future.result(20)[:, 0].tolist() for job in jobs]
    assert got == [[4, 4, 4], [6], [15, 15], [100], [5]]
    assert library.runs == [[1], [4, 4], [4, 3], [5, 5], [25], [1]]
    engine.close()
    with pytest.raises(Fault, match="stopping"):
        engine.submit(packed(1), later)


def test_who_no_longer_waits_does_not_run():
    library = Sums()
    engine = Engine(library, 10, Metrics(), "m")
    started(engine, library)
    gone = engine.submit(packed(7), time.monotonic() + 60)
    late = engine.submit(packed(8), time.monotonic() - 1)
    kept = engine.submit(packed(9), time.monotonic() + 60)
    gone.future.cancel()
    assert engine.waiting == 7 + 8 + 9
    library.gate.release(99)
    assert kept.future.result(20).tolist() == [[9]]
    assert engine.waiting == 0
    with pytest.raises(Fault, match="waited too long"):
        late.future.result(20)
    assert library.runs == [[1], [9]]
    engine.close()


def test_what_would_wait_too_long_is_refused_at_once():
    """By the pace of the runs before; without one nothing is refused."""
    library = Sums()
    engine = Engine(library, 10, Metrics(), "m", max_wait=5)
    later = time.monotonic() + 60
    first = engine.submit(packed(1), later)
    library.gate.release()
    first.future.result(20)
    engine._pace = 1.0  # seconds a token
    kept = started(engine, library)
    assert kept.future.done() is False
    jobs = [engine.submit(packed(2), later) for _ in range(3)]  # 1, 3 and 5 tokens ahead
    with pytest.raises(Fault, match="overloaded"):
        engine.submit(packed(1), later)
    assert (engine.waiting, engine.pressed) == (6, True)
    library.gate.release(99)
    assert all(job.future.result(20).size for job in jobs)
    assert (engine.waiting, engine.pressed) == (0, False)
    assert engine._pace < 1.0  # it is measured
    engine.submit(packed(1), later).future.result(20)
    engine.close()


def test_a_failed_run_holds_nobody_up():
    """What failed does not count as running."""

    class Failing(Sums):
        def run(self, **inputs):
            output = super().run(**inputs)
            if inputs["input_ids"][0] == 7:
                raise LibraryError("no memory")
            return output

    library = Failing()
    library.gate.release(99)
    engine = Engine(library, 10, Metrics(), "m", max_wait=5)
    later = time.monotonic() + 60
    engine.submit(packed(1), later).future.result(20)
    engine._pace = 1.0  # seconds a token
    bad = engine.submit(packed(9, value=7), later)
    with pytest.raises(LibraryError):
        bad.future.result(20)
    until(lambda: not engine._running)
    assert not engine.pressed
    engine.submit(packed(1), later).future.result(20)
    engine.close()


def test_long_answers_are_rendered_as_json_does():
    for value in (
        [[0.5, -1], [2]],
        [[[1.25e-3], []], [[3]]],
        [{"a": "\u00e9"}],
        [],
        "a",
        [["b"], 1],
    ):
        assert json.loads(rendered(value)) == value
    with pytest.raises(ValueError, match="Out of range"):
        rendered([[float("nan")]])


def test_closing_finishes_what_was_taken():
    library = Sums()
    engine = Engine(library, 2, Metrics(), "m")
    jobs = [engine.submit(packed(2), time.monotonic() + 60) for _ in range(5)]
    library.gate.release(99)
    engine.close()
    assert all(job.future.result(0).tolist() == [[2]] for job in jobs)


@settings(max_examples=25, deadline=None)
@given(
    jobs=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=8),
    budget=st.integers(1, 20),
)
def test_every_job_gets_its_own_rows(jobs, budget):
    library = Sums()
    library.gate.release(10_000)
    engine = Engine(library, budget, Metrics(), "m")
    later = time.monotonic() + 60
    taken = [engine.submit(packed(*one, value=i), later) for i, one in enumerate(jobs)]
    for i, (job, lengths) in enumerate(zip(taken, jobs, strict=True)):
        assert job.future.result(20)[:, 0].tolist() == [i * length for length in lengths]
    engine.close()
    assert all(sum(run) <= budget or len(run) == 1 for run in library.runs)
    assert sorted(n for run in library.runs for n in run) == sorted(n for j in jobs for n in j)


# ---- over a socket ----


@pytest.fixture
def listening(folders):
    """Return limits -> (port, library) of a server in a thread."""
    running = []

    def start(**limits):
        one = Library(folders / "embedder")
        app = application({"minilm": one}, Limits(**limits))
        config = uvicorn.Config(app, port=0, log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread, one))
        while not server.started:
            time.sleep(0.01)
        return server.servers[0].sockets[0].getsockname()[1], one, app

    def stop():
        for server, _, _ in running:
            server.should_exit = True

    start.stop = stop
    yield start
    stop()
    for _, thread, one in running:
        one.open.set()
        thread.join(20)
        assert not thread.is_alive()


def test_the_client_of_openai(listening):
    port, one, _ = listening()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    wanted = np.stack(answers(one, TEXTS))
    found = client.embeddings.create(input=TEXTS, model="minilm")  # asks for base64
    np.testing.assert_allclose([row.embedding for row in found.data], wanted, rtol=1e-5, atol=1e-7)
    few = client.embeddings.create(
        input=TEXTS[0], model="minilm", dimensions=3, encoding_format="float"
    )
    assert len(few.data[0].embedding) == 3
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.embeddings.create(input="a", model="other")
    with pytest.raises(openai.UnprocessableEntityError, match="more than 32 tokens"):
        client.embeddings.create(input=LONG, model="minilm")


def test_the_client_of_langchain(listening):
    langchain = pytest.importorskip("langchain_openai")
    port, one, _ = listening()
    client = langchain.OpenAIEmbeddings(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        model="minilm",
        check_embedding_ctx_length=False,
    )
    wanted = np.stack(answers(one, TEXTS))
    np.testing.assert_allclose(client.embed_documents(TEXTS), wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(client.embed_query(TEXTS[0]), wanted[0], rtol=1e-5, atol=1e-7)


def test_too_many_requests_are_refused_at_once(listening):
    port, one, app = listening(max_concurrent_requests=2)
    one.open.clear()
    url = f"http://127.0.0.1:{port}/embed"
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(httpx.post(url, json={"inputs": "a"}, timeout=20))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: app.running == 2)
    refused = httpx.post(url, json={"inputs": "a"})
    assert refused.status_code == 429
    assert refused.json()["error_type"] == "Overloaded"
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    one.open.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200, 200]


def test_what_would_wait_too_long_is_refused_before_its_body_is_read(listening):
    port, one, app = listening(max_wait=5)
    engine = app.app.state.models.all["minilm"].engine
    at = f"http://127.0.0.1:{port}"
    assert httpx.post(f"{at}/embed", json={"inputs": "a"}).status_code == 200
    one.open.clear()
    engine._pace = 100.0  # seconds a token
    asked = threading.Thread(
        target=httpx.post, args=(f"{at}/embed",), kwargs={"json": {"inputs": "a"}}
    )
    asked.start()
    until(lambda: engine.pressed)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(b"POST /embed HTTP/1.1\r\nHost: test\r\nContent-Length: 99\r\n\r\n")
        assert slow.recv(99).startswith(b"HTTP/1.1 429 ")
    assert httpx.post(f"{at}/tokenize", json={"inputs": "a"}).status_code == 200
    one.open.set()
    asked.join()
    assert engine.pressed is False


def test_stopping_answers_what_was_taken(listening):
    port, one, app = listening()
    one.open.clear()
    found = []
    asked = threading.Thread(
        target=lambda: found.append(
            httpx.post(f"http://127.0.0.1:{port}/embed", json={"inputs": "a"}, timeout=20)
        )
    )
    asked.start()
    until(lambda: app.running == 1)
    listening.stop()
    until(lambda: refuses(port))  # takes no more
    one.open.set()
    asked.join()
    assert found[0].status_code == 200


def refuses(port):
    try:
        httpx.get(f"http://127.0.0.1:{port}/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass  # the socket closed with this connection in its queue: the next one is refused
    return False


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_deadline_and_a_client_that_leaves(listening):
    port, one, app = listening(timeout=0.4)
    url = f"http://127.0.0.1:{port}/embed"
    one.open.clear()
    late = httpx.post(url, json={"inputs": "a"}, timeout=20)
    assert (late.status_code, late.json()["error_type"]) == (504, "Timeout")
    one.open.set()
    until(lambda: one.runs)
    port, one, app = listening()
    url = f"http://127.0.0.1:{port}/embed"
    one.open.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"inputs": "a"}, timeout=0.3)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"inputs": "the you of"}, timeout=0.3)
    until(lambda: app.running == 0)
    one.open.set()
    assert httpx.post(url, json={"inputs": "the you"}).status_code == 200
    assert one.runs == [[3], [4]]  # the second client's text never ran


def test_slow_and_lying_clients(listening):
    port, _, app = listening(timeout=0.4, max_body_bytes=1000)
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for rest, status in (
        (b'Content-Length: 100\r\n\r\n{"inputs"', b"408"),
        (b"Content-Length: 100000000\r\n\r\n", b"413"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"200\r\n" + b"a" * 512 + b"\r\n", b"408"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + (b"200\r\n" + b"a" * 512 + b"\r\n") * 3, b"413"),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head + rest)
            assert connection.recv(4096).split(b" ")[1] == status
    assert app.running == 0


# ---- the command ----


def test_the_command(tmp_path):
    """A real library, a real server, and an end that answers what was taken."""
    folder = plain(tmp_path / "model", hidden=32, heads=2, layers=1, ffn=48)
    calibration = tmp_path / "texts.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:32]))
    path = tmp_path / "tiny.so"
    intformer.compile(
        folder, path, head="sentence-embedding", target="x86-64", calibrate=calibration
    )
    (tmp_path / "key").write_text("secret\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "intformer", "serve", str(path), "--port", str(port)]
    with subprocess.Popen(
        [*command, "--api-key", str(tmp_path / "key"), "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        base = f"http://127.0.0.1:{port}"
        until_up(base)
        client = httpx.Client(base_url=base, headers={"Authorization": "Bearer secret"})
        found = client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
        wanted = np.stack(answers(intformer.load(path), TEXTS))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert client.get("/info").json()["model_id"] == "tiny"
        rng = np.random.default_rng(0)
        picks = [rng.integers(len(TEXTS), size=size) for size in rng.integers(1, 9, 40)]
        with ThreadPoolExecutor(8) as crowd:  # whatever shares a run with it, to the last bit
            bodies = [{"inputs": [TEXTS[i] for i in pick], "normalize": False} for pick in picks]
            for pick, answer in zip(
                picks, crowd.map(lambda body: client.post("/embed", json=body), bodies), strict=True
            ):
                assert answer.json() == [found[i] for i in pick]
        assert httpx.post(f"{base}/embed", json={"inputs": "a"}).status_code == 401
        client.close()
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
        assert '"path": "/embed", "status": 200' in log
        assert TEXTS[1] not in log
        assert server.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def until_up(base):
    end = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{base}/health").status_code == 200
            return
        except httpx.ConnectError:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.parametrize("name", [f.name for f in Limits.__dataclass_fields__.values()][:5])
def test_limits_are_above_zero(name):
    with pytest.raises(IntformerError, match=f"{name} = 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize("host", ["127.0.0.1", "no such host", "8.8.8.8"])
def test_an_address_that_cannot_be_had(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(IntformerError, match=f"cannot listen: .* - {host}:{port} - choose"):
            intformer.run_server(["x.so"], host=host, port=port)


def test_two_libraries_of_one_name():
    with pytest.raises(IntformerError, match="two libraries of one name"):
        intformer.run_server(["a/x.so", "b/x.so"])

"""The routes of text-embeddings-inference."""

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

import intformer
from intformer.ir.heads import SENTENCE_EMBEDDING, SEQUENCE_CLASSIFICATION, SPARSE_EMBEDDING
from intformer.runtime.edge import SCORE_FUNCTIONS
from intformer.serve import forms
from intformer.serve.embeddings import embedded, rows_of
from intformer.serve.faults import Fault
from intformer.serve.limits import Limits
from intformer.serve.metrics import Metrics
from intformer.serve.rendered import rendered
from intformer.serve.served import Models, Served


def routes(models: Models, limits: Limits, metrics: Metrics) -> APIRouter:
    """Return the routes over some libraries."""
    router = APIRouter(tags=["text-embeddings-inference"])
    _add_answers(router, models)
    _add_scores(router, models)
    _add_tokens(router, models)
    _add_state(router, models, limits, metrics)
    return router


def direction(model: Served, asked: str | None) -> None:
    """Raise Fault where texts would be cut at the other end."""
    own = model.edge.tokenizer.truncation["direction"]
    if asked is not None and asked.lower() != own:
        raise Fault("Validation", f"this model cuts texts at the {own}")


def _add_answers(router: APIRouter, models: Models) -> None:
    @router.post("/embed")
    async def embed(form: forms.EmbedForm) -> Response:
        """Vectors of texts."""
        model = models.get(form.model, "an embedding model", SENTENCE_EMBEDDING)
        direction(model, form.truncation_direction)
        rows, _ = await embedded(
            model,
            rows_of(form.inputs)[0],
            normalize=form.normalize,
            dimensions=form.dimensions,
            truncate=form.truncate,
            prompt_name=form.prompt_name,
        )
        return JSONResponse(rows.tolist())

    @router.post("/embed_sparse")
    async def embed_sparse(form: forms.SparseForm) -> Response:
        """Words of the vocabulary and their weights, for each text."""
        model = models.get(form.model, "a sparse embedding model", SPARSE_EMBEDDING)
        direction(model, form.truncation_direction)
        packed, output = await model.outputs(
            rows_of(form.inputs)[0], truncate=form.truncate, prompt_name=form.prompt_name
        )
        answers = await model.in_pool(model.edge.decode, packed, output)
        return JSONResponse(
            [[{"index": one["id"], "value": one["score"]} for one in row] for row in answers]
        )

    @router.post("/similarity")
    async def similarity(form: forms.SimilarityForm) -> Response:
        """The cosine of a text with each of others."""
        model = models.get(form.model, "an embedding model", SENTENCE_EMBEDDING)
        options = form.parameters or forms.SimilarityOptions()
        direction(model, options.truncation_direction)
        if not form.inputs.sentences:
            raise Fault("Empty", "`inputs.sentences` cannot be empty")
        model.check_count(len(form.inputs.sentences))
        found = [
            await embedded(model, texts, truncate=options.truncate, prompt_name=options.prompt_name)
            for texts in ([form.inputs.source_sentence], form.inputs.sentences)
        ]
        (source, _), (rows, _) = found
        return JSONResponse((rows @ source[0]).tolist())


def _add_scores(router: APIRouter, models: Models) -> None:
    @router.post("/predict")
    async def predict(form: forms.PredictForm) -> Response:
        """Labels of texts or pairs, best first."""
        model = models.get(form.model, "a classification model", SEQUENCE_CLASSIFICATION)
        direction(model, form.truncation_direction)
        inputs = form.inputs
        alone = isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], str))
        rows = [inputs] if alone else inputs
        logits = await _logits(model, rows, form.truncate)
        labels = model.library.metadata["labels"]
        answers = [
            sorted(
                (
                    {"score": float(score), "label": label}
                    for score, label in zip(row, labels, strict=True)
                ),
                key=lambda one: -one["score"],
            )
            for row in _scores(model, logits, form.raw_scores)
        ]
        return JSONResponse(answers[0] if alone else answers)

    @router.post("/rerank")
    async def rerank(form: forms.RerankForm) -> Response:
        """Texts by how well they answer a query, best first."""
        model = models.get(form.model, "a re-ranker model", SEQUENCE_CLASSIFICATION)
        direction(model, form.truncation_direction)
        if len(model.library.metadata["labels"]) != 1:
            raise Fault("Backend", "model is not a re-ranker model")
        if not form.texts:
            raise Fault("Empty", "`texts` cannot be empty")
        logits = await _logits(model, [(form.query, text) for text in form.texts], form.truncate)
        scores = _scores(model, logits, form.raw_scores)
        return JSONResponse(
            [
                {
                    "index": int(i),
                    **({"text": form.texts[i]} if form.return_text else {}),
                    "score": float(scores[i, 0]),
                }
                for i in np.argsort(-logits[:, 0], kind="stable")
            ]
        )


async def _logits(model: Served, rows: list, truncate: bool | None) -> np.ndarray:
    """Return float64 [rows, labels]; single texts and pairs may be mixed."""
    model.check_count(len(rows))
    lengths = [1 if isinstance(row, str) else len(row) for row in rows]
    found = np.empty((len(rows), len(model.library.metadata["labels"])))
    for length in sorted(set(lengths)):
        where = [i for i, one in enumerate(lengths) if one == length]
        _, output = await model.outputs([rows[i] for i in where], truncate=truncate)
        found[where] = model.edge.real(output)
    return found


def _scores(model: Served, logits: np.ndarray, raw: bool) -> np.ndarray:
    return logits if raw else SCORE_FUNCTIONS[model.library.metadata["score_function"]](logits)


def _add_tokens(router: APIRouter, models: Models) -> None:
    @router.post("/tokenize")
    async def tokenize(form: forms.TokenizeForm) -> Response:
        """The tokens of texts, however long."""
        model = models.any(form.model)
        texts = [form.inputs] if isinstance(form.inputs, str) else form.inputs
        model.check_count(len(texts))
        for text in texts:
            model.check_text(text)
        model.check_together(texts)
        prompt = model.prompt_of(form.prompt_name)
        found = await model.in_pool(model.tokens, texts, prompt, form.add_special_tokens)
        return Response(await model.in_pool(rendered, found), media_type="application/json")

    @router.post("/decode")
    async def decode(form: forms.DecodeForm) -> Response:
        """The texts of token ids."""
        model = models.any(form.model)
        rows = rows_of(form.ids)[0]
        model.check_count(len(rows))
        if any(not 0 <= number < 1 << 32 for row in rows for number in row):
            raise Fault("Validation", "a token id is negative or too large")
        return JSONResponse(await model.in_pool(model.texts, rows, form.skip_special_tokens))


def _add_state(router: APIRouter, models: Models, limits: Limits, metrics: Metrics) -> None:
    @router.get("/info")
    async def info(model: str | None = None) -> Response:
        """What is served, and within which limits."""
        chosen = models.named(model) if model is not None else next(iter(models.all.values()))
        about = {
            "model_id": chosen.name,
            "model_sha": chosen.library.footer.build_id.hex(),
            "model_dtype": "int8",
            "served_model_name": chosen.name,
            "model_type": _kind(chosen),
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_input_length": chosen.edge.length,
            "max_batch_tokens": limits.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_client_batch_size,
            "auto_truncate": limits.auto_truncate,
            "tokenization_workers": 1,
            "version": intformer.__version__,
            "sha": None,
            "docker_label": None,
            "models": list(models.all),
        }
        return JSONResponse(about)

    @router.get("/health")
    @router.get("/ping")
    async def health() -> Response:
        """200 while every library takes requests."""
        if not all(one.engine.alive for one in models.all.values()):
            raise Fault("Unhealthy", "unhealthy")
        return Response()

    @router.get("/metrics")
    async def all_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _kind(model: Served) -> dict:
    about = model.library.metadata
    if model.head is SEQUENCE_CLASSIFICATION:
        labels = about["labels"]
        named = {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        return {"reranker" if len(labels) == 1 else "classifier": named}
    if model.head.embeds or model.head is SPARSE_EMBEDDING:
        pooling = "splade" if model.head is SPARSE_EMBEDDING else about.get("pooling", "mean")
        return {"embedding": {"pooling": pooling}}
    return {model.head.name: {}}

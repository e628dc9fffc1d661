"""The embeddings route of OpenAI, and the list of models."""

import base64

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from intformer.ir.heads import SENTENCE_EMBEDDING
from intformer.serve import forms
from intformer.serve.embeddings import embedded, rows_of
from intformer.serve.served import Models


def routes(models: Models) -> APIRouter:
    """Return the routes over some libraries."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/embeddings")
    @router.post("/embeddings", include_in_schema=False)
    async def embeddings(form: forms.EmbeddingsForm) -> Response:
        """Vectors of texts or of token ids, of Euclidean length 1."""
        model = models.get(form.model, "an embedding model", SENTENCE_EMBEDDING)
        rows, tokens = await embedded(model, rows_of(form.input)[0], dimensions=form.dimensions)
        as_text = form.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(row.tobytes()).decode() if as_text else row.tolist(),
            }
            for i, row in enumerate(rows.astype("<f4"))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})

    @router.get("/v1/models")
    async def listed() -> Response:
        """The libraries."""
        data = [{"id": n, "object": "model", "owned_by": "intformer"} for n in models.all]
        return JSONResponse({"object": "list", "data": data})

    return router

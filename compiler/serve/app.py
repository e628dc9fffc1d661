"""The application: routes, what errors become, and the gate around them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

import intformer
from intformer.errors import IntformerError
from intformer.runtime.edge.answers import plain
from intformer.runtime.library import Library
from intformer.serve import forms, openai_routes, tei
from intformer.serve.faults import STATUS, Fault, body_of, fault_of
from intformer.serve.gate import Gate
from intformer.serve.limits import Limits
from intformer.serve.metrics import Metrics
from intformer.serve.page import page
from intformer.serve.rendered import rendered
from intformer.serve.served import Models, Served

UNLISTED = ("/", "/docs", "/openapi.json", "/embeddings")  # paths that Swagger does not show
UNQUEUED = {"/tokenize", "/decode"}  # paths whose answers no library computes
KINDS = {status: kind for kind, status in reversed(STATUS.items())}


def application(
    libraries: Mapping[str, Library], limits: Limits | None = None, key: str | None = None
) -> Gate:
    """Return the ASGI application that serves some libraries.

    libraries  by the names with which requests ask for them
    key        that requests must bring; None: none
    """
    limits, metrics = limits or Limits(), Metrics()
    pool = ThreadPoolExecutor(2, "tokenize")
    models = Models([Served(n, one, limits, metrics, pool) for n, one in libraries.items()])

    @asynccontextmanager
    async def lifespan(_):
        yield
        for one in models.all.values():
            one.close()
        pool.shutdown()

    app = FastAPI(
        title="intformer",
        version=intformer.__version__,
        lifespan=lifespan,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.include_router(tei.routes(models, limits, metrics))
    app.include_router(openai_routes.routes(models))
    _add_own(app, models)
    for error in (Fault, IntformerError, Exception):
        app.add_exception_handler(error, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_form)
    app.add_exception_handler(HTTPException, _refuse_http)
    paths = {*app.openapi()["paths"], *UNLISTED}
    app.state.models = models
    return Gate(
        app, limits, metrics, key, paths, lambda path: models.pressed and path not in UNQUEUED
    )


def _add_own(app: FastAPI, models: Models) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        """The page."""
        return HTMLResponse(page(models))

    @app.post("/answer", tags=["intformer"])
    async def answer(form: forms.AnswerForm) -> Response:
        """What predict() answers, for every kind of model."""
        model = models.any(form.model)
        tei.direction(model, form.truncation_direction)
        rows = list(form.texts)
        if form.pairs is not None:
            if len(form.pairs) != len(rows):
                raise Fault("Validation", f"{len(rows)} texts and {len(form.pairs)} pairs")
            rows = list(zip(rows, form.pairs, strict=True))
        packed, output = await model.outputs(rows, truncate=form.truncate)

        def body() -> bytes:
            return rendered([plain(one) for one in model.edge.decode(packed, output)])

        return Response(await model.in_pool(body), media_type="application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    fault = fault_of(error)
    request.scope["error"] = fault.kind
    return JSONResponse(body_of(fault, request.url.path), fault.status)


async def _refuse_form(request: Request, error: RequestValidationError) -> Response:
    """Say where and what, but not the value: it may be a text."""
    first = error.errors()[0]
    kind = "Invalid" if first["type"] == "json_invalid" else "Validation"
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
    return await _refuse(request, Fault(kind, f"{place}: {first['msg']}"))


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    request.scope["error"] = KINDS.get(error.status_code, "Invalid")
    body = body_of(Fault(request.scope["error"], str(error.detail)), request.url.path)
    return JSONResponse(body, error.status_code, headers=error.headers)

"""The service that people write in an afternoon: FastAPI around `CrossEncoder.predict`.

A peer, so it is written as well as such a thing usually is: the model is loaded once, and
the endpoint is a plain `def`, which FastAPI runs in its thread pool so that the event loop
stays free. Started as `uvicorn benchmarks.contenders.fastapi_app:app`.
"""

import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

__all__ = ["app"]

app = FastAPI()
model = CrossEncoder(os.environ["MODEL"], device="cpu", model_kwargs={"dtype": torch.float32})
batch_pairs = int(os.environ["BATCH_PAIRS"])
logit = torch.nn.Identity()


class RerankRequest(BaseModel):
    """What a client asks."""

    query: str
    documents: list[str]


class RerankResponse(BaseModel):
    """One score per document, in the order of the request."""

    scores: list[float]


@app.get("/health")
def health() -> str:
    """The model is loaded before the port opens."""
    return "ok"


@app.post("/rerank")
def rerank(request: RerankRequest) -> RerankResponse:
    """Score the documents."""
    pairs = [(request.query, document) for document in request.documents]
    scores = model.predict(pairs, batch_size=batch_pairs, activation_fn=logit, show_progress_bar=False)
    return RerankResponse(scores=scores.tolist())

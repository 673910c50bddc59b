"""Other people's clients, unchanged, against real servers through the real Nginx."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.local.certificate import CertificateFiles
from tests.compat.client_environment import (
    COHERE,
    LANGCHAIN_COHERE,
    LITELLM,
    SMALL,
    TEI,
    ClientEnvironment,
)
from tests.compat.front_door import FrontDoor, front_door

pytestmark = pytest.mark.slow

DOCUMENTS = ["a cat", "the red fox", "a fox"]
BEST_FIRST = [1, 2, 0]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[FrontDoor]:
    with front_door(tmp_path_factory.mktemp("clients"), certificate) as opened:
        yield opened


def run(environment: ClientEnvironment, script: str, door: FrontDoor) -> Any:
    """Run a client's script; it finds the addresses, the documents and `show`, which ends it."""
    preamble = f"import json\nDOCUMENTS = {DOCUMENTS!r}\nshow = lambda value: print(json.dumps(value))\n"
    arguments = {
        "URL": door.plain_url,
        "TARGET": door.address,
        "ROOT": str(door.certificate.root),
    }
    return environment.run(preamble + script, arguments)


COHERE_SCRIPT = """
import cohere
for base_url in (URL, URL + "/v1"):
    v1 = cohere.Client(api_key="none", base_url=URL).rerank(
        model="rerank-english-v3.0", query="red fox", top_n=2, return_documents=True,
        documents=[DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]])
    v2 = cohere.ClientV2(api_key="none", base_url=base_url).rerank(
        model="rerank-v3.5", query="red fox", documents=DOCUMENTS)
try:
    cohere.ClientV2(api_key="none", base_url=URL).rerank(model="m", query=" ", documents=DOCUMENTS)
except cohere.BadRequestError as error:
    refused = error.body["message"]
show({
    "v1": [[r.index, r.document.text] for r in v1.results],
    "v2": [[r.index, r.relevance_score] for r in v2.results],
    "billed": v2.meta.billed_units.search_units,
    "refused": refused,
})
"""


@pytest.mark.parametrize("environment", [COHERE, LANGCHAIN_COHERE], ids=["latest", "v5"])
def test_cohere(door: FrontDoor, environment: ClientEnvironment) -> None:
    """Both of its interfaces, a base_url that ends in /v1, and its error class with our message."""
    seen = run(environment, COHERE_SCRIPT, door)
    assert seen["v1"] == [[1, "the red fox"], [2, "a fox"]]
    assert [index for index, _ in seen["v2"]] == BEST_FIRST
    assert seen["v2"][0][1] > 0.9
    assert seen["billed"] == 1
    assert seen["refused"] == "query: must not be blank"


LANGCHAIN_SCRIPT = """
import asyncio
from langchain_core.documents import Document
from langchain_cohere import CohereRerank
compressor = CohereRerank(model="rerank-v3.5", cohere_api_key="none", base_url=URL, top_n=2)
documents = [Document(page_content=text, metadata={"n": n}) for n, text in enumerate(DOCUMENTS)]
found = compressor.compress_documents(documents, "red fox")
show([[d.metadata["n"], d.metadata["relevance_score"]] for d in found])
"""


def test_langchain_cohere(door: FrontDoor) -> None:
    """The compressor keeps the best and notes their scores."""
    found = run(LANGCHAIN_COHERE, LANGCHAIN_SCRIPT, door)
    assert [number for number, _ in found] == BEST_FIRST[:2]
    assert found[0][1] > 0.9


TEI_HTTP_SCRIPT = """
import asyncio
from tei_client import HttpClient
client = HttpClient(URL)
info = client.info()
ranks = client.rerank("red fox", DOCUMENTS, return_text=True).ranks
raw = asyncio.run(client.async_rerank("red fox", DOCUMENTS, raw_scores=True, truncate=True)).ranks
show({
    "healthy": client.health(),
    "info": [info.server_model_type.value, info.server_model_id],
    "ranks": [[r.index, r.score, r.text] for r in ranks],
    "raw": [[r.index, r.score] for r in raw],
})
"""
TEI_GRPC_SCRIPT = """
import grpc
from tei_client import GrpcClient
import tei_client.stubs.tei_pb2 as pb2
credentials = grpc.ssl_channel_credentials(open(ROOT, "rb").read())
client = GrpcClient(TARGET, credentials)
info = client.info()
ranks = client.rerank("red fox", DOCUMENTS, return_text=True).ranks
raw = client.rerank("red fox", DOCUMENTS, raw_scores=True, truncate=True).ranks
Message = pb2.RerankStreamRequest
messages = [Message(query="red fox", text=text, return_text=not n) for n, text in enumerate(DOCUMENTS)]
streamed = client._stubs.rerank.RerankStream(iter(messages), timeout=20)
try:
    client.rerank(" ", DOCUMENTS)
except grpc.RpcError as error:
    refused = [error.code().name, error.details()]
show({
    "healthy": client.health(),
    "info": [info.server_model_type.value, info.server_model_id],
    "ranks": [[r.index, r.score, r.text] for r in ranks],
    "raw": [[r.index, r.score] for r in raw],
    "streamed": [[r.index, r.text] for r in streamed.ranks],
    "chars": streamed.metadata.compute_chars,
    "refused": refused,
})
"""


@pytest.mark.parametrize("script", [TEI_HTTP_SCRIPT, TEI_GRPC_SCRIPT], ids=["http", "grpc"])
def test_tei_client(door: FrontDoor, script: str) -> None:
    """It asks for the model's kind first, then ranks, over either protocol."""
    seen = run(TEI, script, door)
    assert seen["healthy"]
    assert seen["info"] == ["reranker", "simulated"]
    assert [[index, text] for index, _, text in seen["ranks"]] == [[i, DOCUMENTS[i]] for i in BEST_FIRST]
    assert seen["raw"][0][1] > 1 > seen["ranks"][0][1] > 0.9
    if script is TEI_GRPC_SCRIPT:
        assert seen["streamed"] == [[i, DOCUMENTS[i]] for i in BEST_FIRST]
        assert seen["chars"] == len("red fox") + sum(map(len, DOCUMENTS))
        assert seen["refused"] == ["INVALID_ARGUMENT", "query: must not be blank"]


LITELLM_SCRIPT = """
import os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
PROVIDERS = {
    "cohere": URL, "jina_ai": URL + "/v1/rerank", "hosted_vllm": URL, "huggingface": URL,
    "voyage": URL + "/v1/rerank", "together_ai": URL + "/v1", "nvidia_nim/ranking": URL,
}
found = {}
for provider, base in PROVIDERS.items():
    answer = litellm.rerank(
        model=provider + "/m", query="red fox", documents=DOCUMENTS, top_n=3, api_key="none", api_base=base)
    found[provider] = [result["index"] for result in answer.results]
show(found)
"""


def test_litellm(door: FrontDoor) -> None:
    """Seven of its providers, each in its own dialect."""
    found = run(LITELLM, LITELLM_SCRIPT, door)
    assert len(found) == 7
    assert found == dict.fromkeys(found, BEST_FIRST)


SMALL_SCRIPT = """
from infinity_client import Client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput
from mixedbread import Mixedbread
from rerankers.models.api_rankers import APIRanker
found = {}
with Client(base_url=URL) as client:
    body = RerankInput.from_dict({"query": "red fox", "documents": DOCUMENTS, "model": "m"})
    found["infinity"] = [r.index for r in rerank.sync(client=client, body=body).results]
answer = Mixedbread(api_key="none", base_url=URL).rerank(
    model="m", query="red fox", input=DOCUMENTS, return_input=True)
found["mixedbread"] = [r.index for r in answer.data]
assert [r.input for r in answer.data] == [DOCUMENTS[i] for i in found["mixedbread"]]
for provider in ("cohere", "jina", "voyage", "mixedbread.ai"):
    ranker = APIRanker("m", api_key="none", api_provider=provider, verbose=0, url=URL + "/v1/rerank")
    ranked = ranker.rank("red fox", DOCUMENTS, doc_ids=[0, 1, 2])
    found["rerankers " + provider] = [r.doc_id for r in ranked.results]
show(found)
"""


def test_infinity_client_mixedbread_and_rerankers(door: FrontDoor) -> None:
    """Small clients that share an environment; the last speaks four dialects."""
    found = run(SMALL, SMALL_SCRIPT, door)
    assert len(found) == 6
    assert found == dict.fromkeys(found, BEST_FIRST)


def test_curl(door: FrontDoor) -> None:
    """The plain format, as a person types it, over TLS."""
    body = '{"query": "red fox", "documents": ["a cat", "the red fox"]}'
    command = ["curl", "-sS", "--noproxy", "*", "--cacert", str(door.certificate.root), "-d", body]
    done = subprocess.run(
        [*command, f"{door.url}/rerank"], capture_output=True, text=True, timeout=30, check=True
    )
    ranked = json.loads(done.stdout)["ranked_results"]
    assert [set(entry) for entry in ranked] == [{"text", "score"}] * 2
    assert [entry["text"] for entry in ranked] == ["the red fox", "a cat"]

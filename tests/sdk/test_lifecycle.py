"""Opening, closing and being forgotten; threads, loops and processes."""

import asyncio
import gc
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rerank import AsyncRerankClient, ClientClosedError, RerankClient
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Hang, ScoringServer
from tests.sdk.twins import Connect, Twin
from tests.support.waiting import wait_until


def test_a_closed_client_says_so(client: Twin) -> None:
    """Every call on a closed client raises ClientClosedError."""
    client.rerank("query", ["a"])
    client.close()
    with pytest.raises(ClientClosedError):
        client.rerank("query", ["a"])
    with pytest.raises(ClientClosedError):
        client.get_model()
    with pytest.raises(ClientClosedError):
        client.health()
    with pytest.raises(ClientClosedError):
        client.wait_until_ready(20)


def test_closing_twice_is_fine(client: Twin) -> None:
    """close can be called again, and before the first call."""
    client.close()
    client.close()


def test_calls_under_way_end_when_the_client_is_closed(server: ScoringServer) -> None:
    """A call that waits in another thread fails with ClientClosedError, and the server is told."""
    hang = Hang()
    server.script = [hang]
    client = RerankClient(server.target)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(client.rerank, "query", ["a"], timeout_s=60)
        wait_until(lambda: server.seen, "the call to arrive")
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(timeout=20)
    assert hang.cancelled.wait(timeout=20)


async def test_calls_under_way_end_when_the_async_client_is_closed(server: ScoringServer) -> None:
    """A call that waits in another task fails with ClientClosedError, not as if it were cancelled."""
    hang = Hang()
    server.script = [hang]
    client = AsyncRerankClient(server.target)
    call = asyncio.create_task(client.rerank("query", ["a"], timeout_s=60))
    while not server.seen:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(ClientClosedError):
        await call
    assert await asyncio.to_thread(hang.cancelled.wait, 20)


async def test_cancelling_the_task_cancels_the_work(server: ScoringServer) -> None:
    """A cancelled task raises CancelledError, and the server stops working."""
    hang = Hang()
    server.script = [hang]
    async with AsyncRerankClient(server.target) as client:
        call = asyncio.create_task(client.rerank("query", ["a"], timeout_s=60))
        while not server.seen:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(hang.cancelled.wait, 20)
        assert len(await client.rerank("query", ["a"])) == 1


async def test_a_timeout_of_asyncio_works(server: ScoringServer) -> None:
    """asyncio.timeout around a call ends it as it ends anything else."""
    hang = Hang()
    server.script = [hang]
    async with AsyncRerankClient(server.target) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.rerank("query", ["a"])
    assert await asyncio.to_thread(hang.cancelled.wait, 20)


def test_an_unclosed_client_warns(server: ScoringServer) -> None:
    """A client that is forgotten without being closed gives a ResourceWarning."""
    with pytest.warns(ResourceWarning, match="unclosed <RerankClient"):
        RerankClient(server.target)


async def test_an_unclosed_async_client_warns(server: ScoringServer) -> None:
    """An asynchronous client that called something and was never closed gives a ResourceWarning."""
    client = AsyncRerankClient(server.target)
    await client.rerank("query", ["a"])
    channel = client._transport._connection.channel  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning, match="unclosed <AsyncRerankClient"):
        del client
    await channel.close()


@pytest.mark.parametrize("kind", [RerankClient, AsyncRerankClient])
def test_a_client_that_could_not_be_made_does_not_warn(kind: type[RerankClient]) -> None:
    """A constructor that raised leaves nothing to close."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="target"):
            kind("")
        gc.collect()


def test_the_context_managers_close(server: ScoringServer) -> None:
    """Leaving the with block closes the client."""
    with RerankClient(server.target) as client:
        client.rerank("query", ["a"])
    with pytest.raises(ClientClosedError):
        client.rerank("query", ["a"])


def test_an_async_client_may_be_made_before_the_loop(server: ScoringServer) -> None:
    """A client can be a module's global, and lives from one asyncio.run to the next."""
    client = AsyncRerankClient(server.target)
    for _ in range(3):
        assert len(asyncio.run(client.rerank("query", ["a"]))) == 1
    asyncio.run(client.close())


async def test_two_loops_at_once_are_refused(server: ScoringServer) -> None:
    """Using a client from a second loop while the first one runs says what to do."""
    async with AsyncRerankClient(server.target) as client:
        await client.rerank("query", ["a"])
        with pytest.raises(RuntimeError, match="one client for each loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.rerank("query", ["a"])))


def test_one_client_serves_many_threads(server: ScoringServer) -> None:
    """Threads may share a client; each gets the answer to its own question."""
    with RerankClient(server.target) as client, ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(lambda count: len(client.rerank("query", ["a"] * count)), range(1, 200)))
    assert counts == list(range(1, 200))


async def test_one_client_serves_many_tasks(server: ScoringServer) -> None:
    """Tasks may share a client; each gets the answer to its own question."""
    async with AsyncRerankClient(server.target) as client:
        rankings = await asyncio.gather(*(client.rerank("query", ["a"] * count) for count in range(1, 200)))
    assert [len(ranking) for ranking in rankings] == list(range(1, 200))


def test_nothing_is_sent_before_the_first_call(connect: Connect) -> None:
    """A client can be made while its server is down."""
    with ScoringServer() as server:
        port = server.port
    connect(f"127.0.0.1:{port}")


def test_an_interrupt_stops_the_work(server: ScoringServer) -> None:
    """An exception that reaches the waiting caller cancels the request on the server."""
    hang = Hang()
    arrived = threading.Event()

    def interrupt_when_it_arrives(
        request: wire.RerankRequest, context: grpc.ServicerContext
    ) -> wire.RerankResponse:
        arrived.set()
        return hang(request, context)

    server.script = [interrupt_when_it_arrives]
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert arrived.wait(timeout=20)
        signal.pthread_kill(main, signal.SIGINT)

    with RerankClient(server.target) as client:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.rerank("query", ["a"], timeout_s=60)
        thread.join()
        assert hang.cancelled.wait(timeout=20)

"""The two ends of a stream of the blocking client: threads that never wait for each other."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from rerank._errors import RerankError
from rerank._stream_events import GOODBYE_S, Answered, Asked, Broke, Event, SourceEnded, Surplus
from rerank._translate import served_by
from rerank.v1 import rerank_pb2 as wire

__all__ = ["Events", "ThreadedSource", "ThreadedStream", "next_event"]

Events = queue.SimpleQueue[Event]


class ThreadedStream:
    """One RerankStream call: a thread of gRPC's sends, one of ours receives."""

    def __init__(
        self,
        responses: Any,
        outgoing: "queue.SimpleQueue[wire.RerankStreamRequest | None]",
        generation: int,
        events: Events,
        explain: Callable[[grpc.RpcError | None], RerankError],
    ) -> None:
        self.generation = generation
        self._responses = responses
        self._outgoing = outgoing
        self._events = events
        self._explain = explain
        self._surplus = Surplus()
        self._reader = threading.Thread(target=self._read, name="rerank-stream-reader", daemon=True)
        self._reader.start()

    def send(self, request: wire.RerankStreamRequest) -> None:
        """Queue a request; gRPC takes it as fast as the server reads."""
        self._surplus.ask()
        self._outgoing.put(request)

    def finish(self) -> None:
        """Say that there is no more to come, and let the server end the call."""
        self._outgoing.put(None)
        self._reader.join(GOODBYE_S)

    def cut(self) -> None:
        """End the call now; the server stops working on it."""
        self._responses.cancel()
        self._outgoing.put(None)

    def _read(self) -> None:
        try:
            for response in self._responses:
                servers = served_by(self._responses.initial_metadata())
                self._events.put(Answered(self.generation, response, servers))
                if self._surplus.answer():
                    self._responses.cancel()  # the session makes an error of these answers
                    break
            error = self._explain(None)
        except grpc.RpcError as failed:
            error = self._explain(failed)
        self._events.put(Broke(self.generation, error))


class ThreadedSource:
    """Reads the caller's iterable on a thread of its own, a window ahead of the answers.

    The iterable may block, on a queue for example; answers must not wait for it.
    """

    def __init__(self, queries: Iterable[Any], events: Events, max_in_flight: int) -> None:
        self._queries = queries
        self._events = events
        self._window = threading.Semaphore(max_in_flight)
        self._stopped = False
        threading.Thread(target=self._read, name="rerank-stream-source", daemon=True).start()

    def allow_one_more(self) -> None:
        """Open the window by one query."""
        self._window.release()

    def stop(self) -> None:
        """Read no further; a thread that is blocked in the iterable ends when that returns."""
        self._stopped = True
        self._window.release()

    def _read(self) -> None:
        try:
            queries = iter(self._queries)
            while True:
                self._window.acquire()
                if self._stopped:
                    return
                try:
                    query = next(queries)
                except StopIteration:
                    break
                self._events.put(Asked(query))
        except BaseException as error:
            # Raised again where the caller iterates; a thread is no place to die unseen.
            self._events.put(SourceEnded(error))
        else:
            self._events.put(SourceEnded())


def next_event(events: Events, wait_s: float | None) -> Event | None:
    """Return the next event, or None if there is none in time."""
    try:
        return events.get(timeout=wait_s)
    except queue.Empty:
        return None

"""Somebody who uses the server properly all the while."""

import threading
from types import TracebackType
from typing import Self

from rerank import RerankClient, RerankError, RetryPolicy

from tests.fleet.chaos.workload import make_questions

__all__ = ["Witness"]

PAUSE_S = 0.01
# The default would do for one death of grpc.aio's server; here several may follow each other.
PATIENT = RetryPolicy(max_attempts=5, initial_backoff_s=0.1)


class Witness:
    """One proper call after the other on a thread of its own, each answer checked; a context manager."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness")
        self.answered = 0
        self.wrong = 0
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        questions = make_questions(20)
        with RerankClient(self._target, timeout_s=15, retry=PATIENT) as client:
            while not self._stop.wait(PAUSE_S):
                question = questions[self.answered % len(questions)]
                try:
                    ranking = client.rerank(question.query, question.documents)
                except RerankError as error:
                    self.errors.append(str(error))
                else:
                    self.answered += 1
                    self.wrong += not question.is_answered_by(ranking)

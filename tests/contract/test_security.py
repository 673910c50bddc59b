"""TLS, mutual TLS and API keys on a real server."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from deploy.local.certificate import CertificateFiles, make_certificate
from tests.support.calls import failure_of, request_of
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.tls_server import TlsServer, secure_channel
from tests.support.waiting import wait_until

SEARCH_KEY = "search-key-0123456789"
NIGHTLY_KEY = "nightly-key-0123456789"


def awaited(refusal: Callable[[], grpc.Call | None], what: str) -> grpc.Call:
    failure = wait_until(refusal, what)
    assert failure is not None
    return failure


def answers(channel: grpc.Channel, key: str | None = None) -> bool:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    return len(stub.Rerank(request_of("a"), timeout=10, metadata=metadata).results) == 1


def test_tls_lets_in_who_trusts_it_and_nobody_else(tmp_path: Path, certificate: CertificateFiles) -> None:
    """A client with the root is answered; plain text and other roots are not."""
    with TlsServer(tmp_path, certificate, client=certificate) as server:
        with secure_channel(server, certificate) as channel:
            assert answers(channel)
        stranger = make_certificate(tmp_path / "stranger")
        for channel in (grpc.insecure_channel(server.address), secure_channel(server, stranger)):
            with channel:
                assert failure_of(channel, request_of("a"), timeout_s=5).code() is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_asks_clients_for_a_certificate(tmp_path: Path, certificate: CertificateFiles) -> None:
    """One that the authority signed is let in; none and another's are not."""
    authority = ("--tls-client-authority", str(certificate.root))
    with TlsServer(tmp_path, certificate, *authority, client=certificate) as server:
        with secure_channel(server, certificate, client=certificate) as channel:
            assert answers(channel)
        stranger = make_certificate(tmp_path / "stranger")
        for client in (None, stranger):
            with secure_channel(server, certificate, client=client) as channel:
                assert failure_of(channel, request_of("a"), timeout_s=5).code() is grpc.StatusCode.UNAVAILABLE


def test_certificates_are_renewed_without_a_restart(tmp_path: Path) -> None:
    """New connections see the new files; a broken file changes nothing."""
    live = make_certificate(tmp_path / "live")
    old_root = live.root.read_bytes()
    with TlsServer(tmp_path, live, client=live) as server:
        live.certificate.write_text("not a certificate")
        renewed = make_certificate(tmp_path / "renewed")
        for name in ("root.crt", "server.key", "server.crt"):
            os.replace(renewed.root.parent / name, live.root.parent / name)
        with secure_channel(server, live) as channel:
            assert answers(channel)
        old = grpc.ssl_channel_credentials(old_root)
        with grpc.secure_channel(f"localhost:{server.port}", old) as channel:
            assert failure_of(channel, request_of("a"), timeout_s=5).code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[ServerProcess, Path]]:
    keys = tmp_path / "keys"
    keys.write_text(
        f"# who may call\nsearch {SEARCH_KEY}\nnightly {NIGHTLY_KEY} concurrency=1 tokens_per_minute=600\n"
    )
    with ServerProcess(
        tmp_path, "--api-keys-file", str(keys), "--simulated-tokens-per-second", "1000"
    ) as server:
        yield server, keys


def test_only_known_keys_are_answered_and_health_needs_none(keyed: tuple[ServerProcess, Path]) -> None:
    """No key and a wrong key are UNAUTHENTICATED, on every method."""
    server, _ = keyed
    assert server.health() == 1
    with grpc.insecure_channel(server.address) as channel:
        assert answers(channel, SEARCH_KEY)
        for metadata in (
            (),
            (("authorization", "Bearer wrong"),),
            (("authorization", f"Basic {SEARCH_KEY}"),),
        ):
            failure = failure_of(channel, request_of("a"), metadata=metadata)
            assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.RerankStream(iter([rerank_pb2.RerankStreamRequest(id="1")]), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_keys_change_without_a_restart(keyed: tuple[ServerProcess, Path]) -> None:
    """A removed key stops working, a new one starts; a broken file changes nothing."""
    server, keys = keyed
    new_key = "another-key-0123456789"
    with grpc.insecure_channel(server.address) as channel:
        keys.write_text("only-a-name\n")
        wait_until(
            lambda: answers(channel, SEARCH_KEY) and "not reloaded" in server.log.read_text(), "the log"
        )
        keys.write_text(f"other {new_key}\n")

        def refused() -> bool:
            try:
                return not answers(channel, SEARCH_KEY)
            except grpc.RpcError:
                return True

        wait_until(refused, "the old key to be refused")
        assert answers(channel, new_key)


def test_a_key_has_its_own_limits(keyed: tuple[ServerProcess, Path]) -> None:
    """Concurrency and tokens a minute end in RESOURCE_EXHAUSTED with pushback; others are not affected."""
    server, _ = keyed
    nightly = (("authorization", f"Bearer {NIGHTLY_KEY}"),)
    with grpc.insecure_channel(server.address) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        documents = [f"{'word ' * 90}{i}" for i in range(20)]

        def send() -> Any:
            return stub.Rerank.future(request_of(*documents), timeout=30, metadata=nightly)

        long = send()

        def refusal_of_a_second() -> grpc.Call | None:
            nonlocal long
            # The small call may have overtaken the large one and taken its place.
            if long.done() and long.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                long = send()
            return refusal()

        def refusal() -> grpc.Call | None:
            try:
                stub.Rerank(request_of("b"), timeout=10, metadata=nightly)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return error
            return None

        failure = awaited(refusal_of_a_second, "the key's one place to be taken")
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit is 1" in (failure.details() or "")
        assert answers(channel, SEARCH_KEY)
        long.result()
        failure = awaited(refusal, "the tokens to be used up")
        assert "600 tokens a minute" in (failure.details() or "")
        pushback = dict(failure.trailing_metadata() or ())["grpc-retry-pushback-ms"]
        assert int(pushback) > 10_000
        assert answers(channel, SEARCH_KEY)


def test_no_key_is_ever_logged_or_answered(keyed: tuple[ServerProcess, Path]) -> None:
    """Neither good nor bad keys appear in the log or in an error."""
    server, keys = keyed
    wrong = "wrong-key-0123456789"
    with grpc.insecure_channel(server.address) as channel:
        answers(channel, SEARCH_KEY)
        failure = failure_of(channel, request_of("a"), metadata=(("authorization", f"Bearer {wrong}"),))
        keys.write_text(f"search {SEARCH_KEY} nonsense\n")
        wait_until(
            lambda: answers(channel, SEARCH_KEY) and "not reloaded" in server.log.read_text(), "the log"
        )
    said = server.log.read_text() + str(failure.details()) + str(failure.trailing_metadata())
    assert not any(key in said for key in (SEARCH_KEY, NIGHTLY_KEY, wrong))


def test_concurrent_callers_keep_their_names(keyed: tuple[ServerProcess, Path]) -> None:
    """One caller's limit is never charged to another that calls at the same time."""
    server, _ = keyed
    failures: list[Exception] = []

    def call() -> None:
        try:
            with grpc.insecure_channel(server.address) as channel:
                for _ in range(10):
                    answers(channel, SEARCH_KEY)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--api-keys-file", "/nowhere"), "--api-keys-file /nowhere"),
        (("--tls-certificate", "/nowhere"), "--tls-certificate and --tls-key go together"),
        (("--tls-certificate", "/nowhere", "--tls-key", "/nowhere"), "/nowhere"),
        (("--tls-client-authority", "/nowhere"), "--tls-client-authority: needs"),
        (("--tls-certificate", "{garbage}", "--tls-key", "{key}"), "--tls-certificate {garbage}: holds no"),
        (("--tls-certificate", "{certificate}", "--tls-key", "{garbage}"), "--tls-key {garbage}: holds no"),
        (
            (
                "--tls-certificate",
                "{certificate}",
                "--tls-key",
                "{key}",
                "--tls-client-authority",
                "{garbage}",
            ),
            "--tls-client-authority {garbage}: holds no",
        ),
        (("--api-keys-file", "{pipe}"), "--api-keys-file {pipe}: is not a regular file"),
        (("--api-keys-file", "/dev/zero"), "--api-keys-file /dev/zero: is not a regular file"),
        (("--api-keys-file", "{binary}"), "--api-keys-file {binary}: is not text"),
        (("--api-keys-file", "{huge}"), "--api-keys-file {huge}: is larger than"),
        (("--api-keys-file", "{limits}"), "--api-keys-file {limits}, line 1: after the key come"),
    ],
)
def test_wrong_files_are_one_clear_line(
    tmp_path: Path, certificate: CertificateFiles, options: tuple[str, ...], said: str
) -> None:
    """Before a model is loaded."""
    files = {name: tmp_path / name for name in ("garbage", "pipe", "binary", "huge", "limits")}
    files["garbage"].write_text("garbage")
    os.mkfifo(files["pipe"])
    files["binary"].write_bytes(b"\xff\xfe")
    files["huge"].touch()
    os.truncate(files["huge"], 10_000_000_000)
    files["limits"].write_text(f"search {SEARCH_KEY} concurrency={'9' * 5000}\n")
    named = {name: str(path) for name, path in files.items()}
    named |= {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    process = ServerProcess(tmp_path, *(option.format(**named) for option in options), port=free_port())
    process.start()
    assert process.process.wait(30) == 2
    (line,) = process.log.read_text().splitlines()
    assert line.startswith("error: ")
    assert said.format(**named) in line


def test_a_key_file_that_becomes_a_pipe_stops_nobody(keyed: tuple[ServerProcess, Path]) -> None:
    """The keys stay as they were, and the log says why."""
    server, keys = keyed
    with grpc.insecure_channel(server.address) as channel:
        keys.unlink()
        os.mkfifo(keys)
        wait_until(lambda: "is not a regular file" in server.log.read_text(), "the log to say why")
        assert answers(channel, SEARCH_KEY)


def test_a_hundred_thousand_keys_make_no_call_wait(tmp_path: Path) -> None:
    """Neither looking one up nor reading them again."""
    keys = tmp_path / "keys"
    many = "".join(f"caller{number} {number:032d}\n" for number in range(100_000))
    keys.write_text(many)
    with (
        ServerProcess(tmp_path, "--api-keys-file", str(keys)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert answers(channel, f"{7:032d}")
        keys.write_text(f"search {SEARCH_KEY}\n{many}")
        waits_s = []

        def reloaded() -> bool:
            begun_s = time.monotonic()
            answers(channel, f"{7:032d}")
            waits_s.append(time.monotonic() - begun_s)
            return "API keys reloaded" in server.log.read_text()

        wait_until(reloaded, "the keys to be read again")
        assert answers(channel, SEARCH_KEY)
    # Reading them on the event loop takes seconds; comparing with each, some 30 ms a call.
    assert max(waits_s) < 1
    assert min(waits_s) < 0.02


def test_a_key_that_was_removed_is_not_let_in_after_a_pause(keyed: tuple[ServerProcess, Path]) -> None:
    """The file is looked at while nobody calls: the first call after hours sees its present keys."""
    server, keys = keyed
    keys.write_text(f"nightly {NIGHTLY_KEY}\n")
    wait_until(lambda: "API keys reloaded" in server.log.read_text(), "the change to be noticed")
    with grpc.insecure_channel(server.address) as channel:
        failure = failure_of(channel, request_of("a"), metadata=(("authorization", f"Bearer {SEARCH_KEY}"),))
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_certificate_about_to_expire_is_said_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the date, as a warning."""
    monkeypatch.setattr("deploy.local.certificate.VALID_DAYS", 10)
    soon = make_certificate(tmp_path / "soon")
    with TlsServer(tmp_path, soon, client=soon) as server:
        wait_until(lambda: "about to expire" in server.log.read_text(), "the warning")

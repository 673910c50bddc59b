"""What the gate and the renderer take for a server, and what the gate takes for a list of them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nginx.render import is_server_address
from server.errors import ConfigurationError
from server.healthgate.addresses import MAX_SERVERS, is_address, read_servers, split

GOOD = [
    "a:1",
    "10.0.0.1:65535",
    "[::1]:50051",
    "[2001:db8::1.2.3.4]:80",
    "gpu_7.rack-2.example.:50051",
    "1a:1",
]
BAD = [
    *("a:1; evil", "a", "a:b", "a:1\n", "", "a b:1", "unix:/x", "[a]:1", "[::1%eth0]:1", "::1:80"),
    *("a:0", "a:99999", "a:65536", "a:080", "a:-1", ":1", ".:1", "a..b:1", "-a:1", "a-:1", f"{'a' * 64}:1"),
    *("256.0.0.1:1", "1.2.3:1", "1.2.3.4.5:1", "01.2.3.4:1", "a.1:1", f"{'a.' * 127}b:1", "ä:1", "a:１"),
]


@pytest.mark.parametrize("rule", [is_address, is_server_address])
def test_good_addresses_are_taken(rule: Callable[[str], bool]) -> None:
    """Names, IPv4 and IPv6 with a port."""
    assert [each for each in GOOD if not rule(each)] == []


@pytest.mark.parametrize("text", BAD)
def test_nothing_but_an_address_gets_into_the_configuration(text: str) -> None:
    """A list of servers is no way to write Nginx directives, nor ones that it refuses."""
    assert not is_address(text)
    assert not is_server_address(text) or text.startswith("unix:")


@given(
    st.text("0129az.-_:[]", max_size=24) | st.from_regex(r"[0-9a-z.\[\]:-]{1,20}:[0-9]{1,6}", fullmatch=True)
)
def test_the_gate_and_the_renderer_have_one_rule(text: str) -> None:
    """They can't share the code: render.py runs alone."""
    assert is_address(text) == is_server_address(text)


def test_an_address_has_a_host_a_port_and_perhaps_a_name() -> None:
    """Names have to be resolved, addresses don't."""
    assert split("gpu-1:50051") == ("gpu-1", 50051, True)
    assert split("10.0.0.1:80") == ("10.0.0.1", 80, False)
    assert split("[::1]:80") == ("::1", 80, False)


def test_a_list_has_comments_and_each_server_once(tmp_path: Path) -> None:
    """What is no address is told apart."""
    path = tmp_path / "servers"
    path.write_bytes(b"\xef\xbb\xbfa:1  # the first\r\n\n# none\nb:2\na:1\nc:0\n")
    assert read_servers(path) == (["a:1", "b:2"], ["c:0"])


def test_what_is_no_list_says_why(tmp_path: Path) -> None:
    """Not there, a folder, a FIFO, not UTF-8, endless, empty: an error at once, and no descriptor is left."""
    path = tmp_path / "servers"
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    def complaint() -> str:
        with pytest.raises(ConfigurationError) as raised:
            read_servers(path)
        return str(raised.value)

    assert "No such file" in complaint()
    path.mkdir()
    assert "not a regular file" in complaint()
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in complaint()
    path.unlink()
    for content, reason in (
        (b"a:1\n\xff\xfe", "not UTF-8 at byte 4"),
        (b"# " + b"x" * (1 << 20), "larger than 1,048,576 bytes"),
        (b"\n# nobody\n", "lists no server"),
        (
            b"".join(b"a:%d\n" % port for port in range(1, MAX_SERVERS + 2)),
            "1,001 servers; 1,000 are the most",
        ),
    ):
        path.write_bytes(content)
        assert reason in complaint()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors

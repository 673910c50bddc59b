"""The renderer of the Nginx templates, on its command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nginx.render import RenderError, layers, main, render, upstream_servers, variables_of
from tests.support.child_process import REPOSITORY

REQUIRED = {"TLS_CERTIFICATE": "/tls.crt", "TLS_CERTIFICATE_KEY": "/tls.key"}


@pytest.mark.parametrize("layer", layers())
def test_defaults_fill_what_was_not_given(layer: str) -> None:
    """With a certificate, where there is TLS, every template renders completely."""
    text = render(layer, REQUIRED if layer == "l7" else {})
    assert "${" not in text
    assert "listen 443" in text
    assert ('"/tls.crt"' in text) == (layer == "l7")


@pytest.mark.parametrize("layer", layers())
def test_every_variable_is_explained(layer: str) -> None:
    """Each variable of each template has a sentence in defaults.env."""
    assert all(variable.explanation.endswith(".") for variable in variables_of(layer).values())


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "needs a value for TLS_CERTIFICATE=..., TLS_CERTIFICATE_KEY=..."),
        ({**REQUIRED, "LISTNE": "8443"}, "has no variable LISTNE; it has LISTEN"),
        ({**REQUIRED, "LISTEN": "443; evil on"}, "LISTEN: '443; evil on' contains ';'"),
        ({**REQUIRED, "LISTEN": "443\n"}, "LISTEN"),
    ],
)
def test_mistakes_are_refused_by_name(values: dict[str, str], complaint: str) -> None:
    """Missing, unknown and dangerous values are errors that name the variable."""
    with pytest.raises(RenderError, match=re.escape(complaint)):
        render("l7", values)


def test_servers_are_listed_without_passive_checks() -> None:
    """Every member comes with max_fails=0, and an empty or broken list is refused."""
    assert upstream_servers(["10.0.0.1:50051", "[::1]:50052"]) == (
        "server 10.0.0.1:50051 max_fails=0;\nserver [::1]:50052 max_fails=0;\n"
    )
    with pytest.raises(RenderError, match="at least one server"):
        upstream_servers([])
    with pytest.raises(RenderError, match="write host:port"):
        upstream_servers(["10.0.0.1"])


def test_the_command_line_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes nginx.conf and the list of servers, and says where."""
    output = tmp_path / "made"
    assert main(["l4", "LISTEN=8443", "--output", str(output), "--server", "a:1", "--server", "b:2"]) == 0
    assert capsys.readouterr().out.strip() == str(output / "nginx.conf")
    assert (output / "upstream_servers.conf").read_text().count("server ") == 2


def test_the_command_line_says_what_is_wrong_in_one_line() -> None:
    """A mistake is one line on standard error and exit code 2."""
    command = [sys.executable, "nginx/render.py", "l7", "--output", os.devnull, "PORT=1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("render.py: l7 has no variable PORT")
    assert result.stderr.count("\n") == 1


def test_help_teaches_the_variables() -> None:
    """`--help` names every variable and shows a whole command."""
    command = [sys.executable, "nginx/render.py", "--help"]
    text = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(name in text for layer in layers() for name in variables_of(layer))
    assert "--server 10.0.0.1:50051" in text

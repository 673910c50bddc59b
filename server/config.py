"""Every option of the server, validated once.

One frozen object. Each field is a command-line option and an environment
variable: `drain_delay_s` is `--drain-delay` and `RERANK_DRAIN_DELAY` (seconds
are the unit of every duration on the command line). The command line wins over
the environment, the environment over the default.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server import __version__
from server.errors import ConfigurationError

__all__ = ["DEFAULT_MODEL", "MIB", "Settings", "SimulatedModelSettings", "read_settings"]

DEFAULT_MODEL = "BAAI/bge-reranker-v2-m3"
ENVIRONMENT_PREFIX = "RERANK_"
MIB = 1024 * 1024
DAY_S = 24 * 3600
MAX_TOKENS = 2**20
"""Of a pair and of a batch; what no device holds."""
MAX_COUNT = 10**9
MAX_SHOWN_CHARACTERS = 100

_EPILOGUE = f"""\
Every option is also an environment variable: --token-budget is {ENVIRONMENT_PREFIX}TOKEN_BUDGET.

examples:
  python -m server --port 50051 --device cuda:0
  python -m server --port 50051 --http-port 8080              gRPC, and HTTP beside it
  python -m server --device cpu --model ms-marco-MiniLM-L-12-v2      a small model, no download
  python -m server --model ./my-checkpoint --max-tokens 1024
  python -m server quantize --model ms-marco-MiniLM-L-12-v2          then serve it with --dtype int8
  python -m server --model simulated --simulated-tokens-per-second 20000
"""


def _option(group: str, default: Any, help_text: str, **constraints: Any) -> Any:
    """Declare one option: the group under which `--help` shows it, and what it says there."""
    return Field(default=default, description=help_text, json_schema_extra={"group": group}, **constraints)


class SimulatedModelSettings(BaseModel):
    """How the `simulated` model behaves."""

    model_config = ConfigDict(frozen=True)
    tokens_per_second: float
    startup_s: float
    max_tokens: int
    memory_tokens: int = 0
    """Batches above this run out of memory; 0 never."""


class Settings(BaseSettings):
    """The server's configuration; frozen, and valid once it exists."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = _option(
        "serving", "0.0.0.0", "address to listen on; use :: for IPv6 as well", pattern=r"^[!-~]{1,255}$"
    )
    port: int = _option("serving", 50051, "port of the gRPC server", ge=0, le=65535)
    server_name: str = _option(
        "serving",
        "",
        "name under which answers and logs mention this server (default: HOST:PORT); "
        "up to 128 characters of ASCII without spaces",
        # It travels in metadata and in headers.
        pattern=r"^[!-~]{0,128}$",
    )
    reflection: bool = _option("serving", True, "serve gRPC reflection, which grpcurl needs")
    max_connection_age_s: float = _option(
        "serving",
        300,
        "age at which connections are renewed, so that clients spread anew; 0 never",
        ge=0,
        le=7 * DAY_S,
    )
    metrics_port: int = _option("serving", 0, "port for Prometheus metrics; 0 serves none", ge=0, le=65535)
    metrics_require_key: bool = _option(
        "serving",
        True,
        "where API keys are configured, --metrics-port asks for one too; "
        "Prometheus sends it with authorization and credentials_file",
    )

    http_port: int = _option(
        "http", 0, "port for HTTP and JSON (Cohere, Jina, TEI and others); 0 serves none", ge=0, le=65535
    )
    playground: bool = _option("http", True, "serve the playground, a page to try queries on, at /")
    http_return_documents: bool = _option(
        "http", False, "echo documents to callers who don't say whether they want them"
    )
    http_check_model: bool = _option(
        "http",
        False,
        "refuse requests that name another model; without it they are answered by the model that is served, "
        "since many clients insist on a name",
    )
    http_max_connections: int = _option(
        "http",
        1000,
        "connections open at once, at most three quarters of the descriptors that the process may open; "
        "the one that has waited longest for a request makes room for a new one, or else the slowest",
        ge=1,
        le=10**6,
    )
    http_head_timeout_s: float = _option(
        "http",
        10,
        "how long a connection may take to send the path and headers of a request, TLS' handshake included",
        ge=0.1,
        le=DAY_S,
    )
    http_body_timeout_s: float = _option(
        "http", 30, "how long a request or its answer may stand still on its way", ge=0.1, le=DAY_S
    )

    model: str = _option(
        "model",
        DEFAULT_MODEL,
        "hub id, checkpoint folder, ms-marco-MiniLM-L-12-v2 (small, needs no hub) or simulated",
        min_length=1,
    )
    revision: str = _option("model", "", "branch, tag or commit on the hub (default: main)")
    device: str = _option(
        "model",
        "auto",
        "auto (the first GPU, else the CPU), cpu, cuda or cuda:N",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = _option(
        "model",
        "auto",
        "precision of the weights: auto is float16 or bfloat16 on a GPU and float32 on the CPU",
    )
    max_tokens: int = _option(
        "model", 8192, "most tokens of one pair; lowered to what the model can read", ge=8, le=MAX_TOKENS
    )
    threads: int = _option("model", 0, "CPU threads for the model; 0 is one per core", ge=0, le=1024)
    trust_remote_code: bool = _option("model", False, "run Python code that comes with the checkpoint")

    token_budget: int = _option(
        "engine",
        0,
        "tokens of one batch; 0 lets the model choose and tunes it at warm-up on a GPU",
        ge=0,
        le=MAX_TOKENS,
    )
    scheduling: Literal["fair", "fifo"] = _option(
        "engine", "fair", "fair: who got least goes first; fifo: first come, first served, for comparison"
    )
    max_queued_tokens: int = _option(
        "engine", 4_000_000, "tokens that may wait before requests are refused", ge=1, le=10**12
    )
    queue_share: float = _option(
        "engine",
        0.25,
        "share of the queue that one request may hold; a larger one is queued in parts, as room appears",
        ge=0.001,
        le=1,
    )
    pair_cache_mib: int = _option(
        "engine",
        128,
        "memory for scores of pairs that were seen before; 0 switches the cache off",
        ge=0,
        le=MIB,
    )
    stuck_after_s: float = _option(
        "engine",
        120,
        "one batch longer than this means a dead device: the server exits; 0 never",
        ge=0,
        le=DAY_S,
    )

    max_documents: int = _option("limits", 4096, "documents in one request", ge=1, le=10**6)
    max_request_mib: int = _option("limits", 16, "size of one request", ge=1, le=1024)
    receiving_mib: int = _option(
        "limits",
        128,
        "memory for HTTP bodies that arrive, and for gRPC messages that have arrived, until they are parsed; "
        "64 KiB of each are free",
        ge=1,
        le=MIB,
    )
    open_requests_mib: int = _option(
        "limits",
        512,
        "memory for the texts of requests that are worked on; 64 KiB of each are free",
        ge=1,
        le=MIB,
    )
    max_query_kib: int = _option("limits", 64, "size of one query", ge=1, le=MIB)
    max_windows_per_document: int = _option(
        "limits", 64, "windows of one document with TRUNCATION_CHUNK", ge=1, le=10**6
    )
    max_stream_queries: int = _option(
        "limits", 64, "queries of one RerankStream that are worked on at once", ge=1, le=10_000
    )

    tls_certificate: str = _option("security", "", "PEM file of the server's certificate chain; enables TLS")
    tls_key: str = _option("security", "", "PEM file of its private key")
    tls_client_authority: str = _option(
        "security", "", "PEM file of an authority; only clients with a certificate of it may connect"
    )
    api_keys_file: str = _option(
        "security", "", "file of API keys, lines of NAME KEY; every call but health then needs one"
    )
    api_key_concurrency: int = _option(
        "security", 0, "queries at once for each key; 0 is unlimited", ge=0, le=MAX_COUNT
    )
    api_key_tokens_per_minute: int = _option(
        "security", 0, "tokens a minute for each key; 0 is unlimited", ge=0, le=10**12
    )

    drain_delay_s: float = _option(
        "lifecycle",
        5,
        "after SIGTERM: how long to go on answering while health says NOT_SERVING",
        ge=0,
        le=DAY_S,
    )
    drain_grace_s: float = _option(
        "lifecycle", 60, "then: how long the accepted requests may take to finish", ge=0, le=DAY_S
    )

    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "logging", "info", "least severe to log"
    )
    log_format: Literal["auto", "console", "json"] = _option(
        "logging", "auto", "auto is console on a terminal and json otherwise"
    )
    log_requests: bool = _option("logging", True, "one line for each answered request")

    simulated_tokens_per_second: float = _option(
        "simulated model", 20_000, "how fast the simulated device is", ge=0.001, le=1e12
    )
    simulated_startup_s: float = _option("simulated model", 0, "how long it takes to load", ge=0, le=DAY_S)

    simulated_memory_tokens: int = _option(
        "simulated model", 0, "batches above this run out of memory; 0 never", ge=0, le=MAX_COUNT
    )

    @property
    def max_request_bytes(self) -> int:
        """Largest accepted request, in bytes."""
        return self.max_request_mib * MIB

    @property
    def simulated(self) -> SimulatedModelSettings:
        """The part that concerns the simulated model."""
        return SimulatedModelSettings(
            tokens_per_second=self.simulated_tokens_per_second,
            startup_s=self.simulated_startup_s,
            max_tokens=self.max_tokens,
            memory_tokens=self.simulated_memory_tokens,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values only from `read_settings`, which knows the option names that users see."""
        return (init_settings,)


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read options from the command line, then the environment, then the defaults.

    Raises:
        ConfigurationError: a value is wrong; the message names the option and the value.
        SystemExit: `--help`, `--version`, or an unknown option.
    """
    environment = os.environ if environment is None else environment
    given = {
        name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None
    }
    origin = {name: _flag(name) for name in given}
    for name in Settings.model_fields:
        variable = _variable(name)
        if name not in given and environment.get(variable, "") != "":
            given[name] = environment[variable]
            origin[name] = variable
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        # A pattern means nothing to a reader; the option's own description does.
        described = first["type"] == "string_pattern_mismatch"
        why = f"use {Settings.model_fields[name].description}" if described else _readable(first["msg"])
        shown = repr(given.get(name))
        if len(shown) > MAX_SHOWN_CHARACTERS:
            shown = f"{shown[:MAX_SHOWN_CHARACTERS]}…"
        raise ConfigurationError(f"{origin.get(name, _flag(name))}: {shown} is not valid: {why}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve a cross-encoder over gRPC: one server per device.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rerank-server {__version__}")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in Settings.model_fields.items():
        group_name = _group(field)
        group = groups.setdefault(group_name, parser.add_argument_group(group_name))
        help_text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(
                _flag(name),
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=f"{help_text} (default: {'yes' if field.default else 'no'})",
            )
        else:
            shown = "" if field.default == "" else f" (default: {field.default})"
            group.add_argument(
                _flag(name), dest=name, default=None, metavar=_metavar(field), help=help_text + shown
            )
    return parser


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "other"


def _metavar(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", None)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    if field.annotation is int:
        return "N"
    return "X" if field.annotation is float else "TEXT"


def _public_name(name: str) -> str:
    return name.removesuffix("_s")


def _flag(name: str) -> str:
    return "--" + _public_name(name).replace("_", "-")


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + _public_name(name).upper()


def _readable(message: str) -> str:
    return message[:1].lower() + message[1:]

"""The code in the SDK's README runs."""

import asyncio
import builtins
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rerank

from deploy.local.certificate import CertificateFiles
from tests.sdk.scoring_server import ScoringServer

README = Path(__file__).parents[2] / "sdk" / "README.md"


@dataclass
class Article:
    title: str
    body: str


@dataclass
class Row:
    id: int
    question: str
    candidates: list[str] = field(default_factory=list)


def test_every_block_of_code_runs(certificate: CertificateFiles, tmp_path: Path) -> None:
    """Each block of the README does what it says against a real server."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    saved: dict[int, Any] = {}
    with ScoringServer() as server:
        names: dict[str, Any] = {name: getattr(rerank, name) for name in rerank.__all__}
        names |= {
            "question": "what do pandas eat?",
            "articles": [Article("Pandas", "Pandas eat bamboo."), Article("Cats", "Cats sleep.")],
            "rows": [Row(1, "q", ["a", "b"])],
            "save": saved.__setitem__,
            "vault": SimpleNamespace(read=lambda name: "key"),
        }
        for block in blocks:
            with rerank.RerankClient(server.target) as client:
                run(block.replace("localhost:50051", server.target), names | {"client": client}, certificate)
    assert saved.keys() == {1}


def test_the_table_of_errors_is_complete() -> None:
    """The README lists every error with the built-in that it also is."""
    text = README.read_text()
    for name in rerank.__all__:
        kind = getattr(rerank, name)
        if isinstance(kind, type) and issubclass(kind, rerank.RerankError) and kind is not rerank.RerankError:
            [row] = re.findall(rf"^\| `{name}` \|([^|]*)\|", text, flags=re.MULTILINE)
            for builtin in re.findall(r"`(\w+)`", row):
                assert issubclass(kind, getattr(builtins, builtin))


def run(block: str, names: dict[str, Any], certificate: CertificateFiles) -> None:
    block = block.replace("ca.pem", str(certificate.root))
    if "await" in block:
        block = f"async def main():\n{textwrap.indent(block, '    ')}\nasyncio.run(main())\n"
        names["asyncio"] = asyncio
    exec(compile(block, str(README), "exec"), names)
    for name, defined in names.items():
        if name.startswith("test_"):
            defined()
    names["client"].close()  # what the block made, if it made one

"""Generate the stubs in sdk/rerank/v1 from the contract, or check that they are fresh.

The messages of TEI's interface, which the server speaks too, are made in the same way.

    python sdk/generate.py            write them
    python sdk/generate.py --check    exit 1 if they differ from what would be written

The generator is pinned and lives in a virtual environment of its own, which is made in
.cache/proto-tools on first use: it is older than what the project runs on. Code that
protobuf 6 generated is accepted by the runtimes of protobuf 6 and 7, and code for grpcio
1.72.1 by every later one, so the oldest generator serves the most people.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TOOLS = ("grpcio-tools==1.72.1", "mypy-protobuf==3.6.0")

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("rerank/v1/rerank.proto")
STUBS = ROOT / "sdk" / PROTO.parent
TEI_PROTO = Path("tei/v1/tei.proto")
TEI_STUBS = ROOT / "server" / "transport" / TEI_PROTO.parent
TOOLS_FOLDER = ROOT / ".cache" / "proto-tools"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate the stubs.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if they differ")
    arguments = parser.parse_args()
    status = 0
    for proto, stubs in ((PROTO, STUBS), (TEI_PROTO, TEI_STUBS)):
        with tempfile.TemporaryDirectory() as folder:
            generated = generate(ensure_tools(), Path(folder), proto)
        if stubs == TEI_STUBS:
            # Its services' stubs would import a top-level package `tei`; the server needs the messages alone.
            generated = {name: content for name, content in generated.items() if "_pb2_grpc" not in name}
        if arguments.check:
            status = max(status, check(generated, stubs))
            continue
        for name, content in generated.items():
            (stubs / name).write_bytes(content)
        print(f"wrote {', '.join(sorted(generated))} to {stubs.relative_to(ROOT)}")
    return status


def ensure_tools() -> Path:
    """Return the folder of the generator's programs, installing them if they aren't there."""
    programs = TOOLS_FOLDER / "bin"
    # Written last, so a half-made environment is made again; its text is what it holds.
    mark = TOOLS_FOLDER / "installed.txt"
    wanted = "\n".join(TOOLS)
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {', '.join(TOOLS)} into {TOOLS_FOLDER.relative_to(ROOT)}", file=sys.stderr)
        venv.create(TOOLS_FOLDER, clear=True, with_pip=True)
        # grpcio-tools looks its own files up with pkg_resources, which newer setuptools lack.
        install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "setuptools<81", *TOOLS]
        subprocess.run(install, check=True)
        mark.write_text(wanted)
    return programs


def generate(programs: Path, folder: Path, proto: Path = PROTO) -> dict[str, bytes]:
    """Return the generated files by name."""
    command = [
        str(programs / "python"),
        "-m",
        "grpc_tools.protoc",
        "-Iproto",
        f"--python_out={folder}",
        f"--mypy_out=quiet:{folder}",
        f"--grpc_python_out={folder}",
        f"--mypy_grpc_out=quiet:{folder}",
        str(proto),
    ]
    # protoc finds its plugins, protoc-gen-mypy and protoc-gen-mypy_grpc, on the PATH.
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PATH": path})
    return {file.name: file.read_bytes() for file in (folder / proto.parent).iterdir()}


def check(generated: dict[str, bytes], stubs: Path = STUBS) -> int:
    """Compare with what is checked in, and say which files differ."""
    present = {file.name for file in stubs.glob("*_pb2*.py*")}
    stale = sorted(
        name
        for name in present | set(generated)
        if name not in present or (stubs / name).read_bytes() != generated.get(name)
    )
    if stale:
        folder = stubs.relative_to(ROOT)
        print(f"{folder}: {', '.join(stale)} not fresh; run: python sdk/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

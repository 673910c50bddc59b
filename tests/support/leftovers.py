"""Which processes belong to a folder, to see that none is left."""

from pathlib import Path

__all__ = ["processes_of"]


def processes_of(folder: Path) -> dict[int, str]:
    """Command line by process id of all that name `folder` or hold a file in it open.

    Only on Linux. A process is known by its arguments, by its environment, or by its
    open files, since Nginx writes over the first two.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
            files = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:
            continue  # it ended just now, or is somebody else's
        named = str(folder).encode() in arguments + environment
        if arguments and (named or any(file.startswith(f"{folder}/") for file in files)):
            found[int(process.name)] = arguments.replace(b"\0", b" ").decode(errors="replace").strip()
    return found

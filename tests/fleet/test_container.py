"""The container image: what it copies exists, what it sets is understood, and nobody starts it as root."""

import json
import re
from pathlib import Path

from server.config import read_settings
from tests.support.child_process import REPOSITORY

DOCKERFILE = REPOSITORY / "deploy" / "container" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) in order, without comments."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    lines = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return [(name, words.strip()) for name, _, words in lines]


def of_the_image() -> list[tuple[str, str]]:
    """The instructions of the last stage, which is what runs."""
    found = instructions()
    last = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def test_it_runs_as_a_numbered_user_that_is_not_root() -> None:
    """Kubernetes can tell from a number alone; nothing after it goes back."""
    users = [words for name, words in of_the_image() if name == "USER"]
    assert len(users) == 1
    user, group = map(int, users[0].split(":"))
    assert min(user, group) >= 1000
    assert f"--uid {user}" in next(words for name, words in of_the_image() if "useradd" in words)


def test_the_server_understands_what_the_image_sets() -> None:
    """The environment's options exist, and the command is the server."""
    sets = " ".join(words for name, words in of_the_image() if name == "ENV")
    environment = dict(word.split("=", 1) for word in sets.split())
    settings = read_settings([], environment)
    assert (settings.host, settings.port, settings.log_format) == ("0.0.0.0", 50051, "json")
    entry = json.loads(next(words for name, words in of_the_image() if name == "ENTRYPOINT"))
    assert entry == ["python", "-m", "server"]
    assert [words for name, words in of_the_image() if name == "EXPOSE"] == [str(settings.port)]


def test_everything_that_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    """.dockerignore leaves out all but what it names."""
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        Path(source).name
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    }
    assert copied == sent
    assert all((REPOSITORY / name).exists() for name in copied)

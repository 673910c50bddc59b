"""What the gate writes for Nginx, and whom it signals."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.healthgate.nginx import Nginx, reload_nginx


def test_the_file_lists_everybody_and_changes_only_when_it_must(tmp_path: Path) -> None:
    """Servers that are out are marked down with the reason; another reason is no reason to write."""
    path = tmp_path / "upstream_servers.conf"
    nginx = Nginx(path, tmp_path / "nginx.pid")
    nginx.tell({"10.0.0.1:1": "", "10.0.0.2:2": "not serving"}, 0.0)
    written = "server 10.0.0.1:1 max_fails=0;\nserver 10.0.0.2:2 max_fails=0 down;  # not serving\n"
    assert path.read_text() == written
    nginx.tell({"10.0.0.1:1": "", "10.0.0.2:2": "no answer"}, 1.0)
    assert path.read_text() == written
    nginx.tell({"10.0.0.1:1": "", "10.0.0.2:2": ""}, 2.0)
    assert "down" not in path.read_text()


@pytest.mark.parametrize("content", ["", "nginx", "-1", "0", "99999999"])
def test_a_pid_file_without_a_process_is_an_error(tmp_path: Path, content: str) -> None:
    """Above all -1, which is everybody."""
    pid_file = tmp_path / "nginx.pid"
    pid_file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"--nginx-pid-file .*nginx\.pid"):
        reload_nginx(pid_file)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("title", ["sleep", "php-fpm: master process (/etc/php/php-fpm.conf)"])
def test_a_process_that_is_not_nginx_gets_no_signal(tmp_path: Path, title: str) -> None:
    """The pid file of an Nginx that was killed stays behind, and its number may be somebody else's now."""
    pid_file = tmp_path / "nginx.pid"
    with subprocess.Popen([title, "60"], executable=shutil.which("sleep")) as bystander:
        pid_file.write_text(f"{bystander.pid}\n")
        try:
            with pytest.raises(ConfigurationError, match="is not Nginx's master"):
                reload_nginx(pid_file)
        finally:
            bystander.terminate()
        assert bystander.wait() == -15

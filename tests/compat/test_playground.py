"""The playground in a real browser."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compat.browser import Browser
from tests.compat.http_server import HttpServerProcess

# Where screenshots are kept for a person to look at; a folder of the test run otherwise.
SCREENSHOTS = os.environ.get("RERANK_SCREENSHOTS", "")
ORDER = "[...document.querySelectorAll('#results .notes')].map(n => n.firstChild?.textContent ?? null)"
SCORES = "[...document.querySelectorAll('#results .score')].map(s => parseFloat(s.textContent))"
WIDTH_FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServerProcess]:
    options = ("--max-tokens", "24")
    with HttpServerProcess(tmp_path_factory.mktemp("playground"), *options, name="gpu-0") as process:
        yield process


def keep(browser: Browser, name: str, folder: Path) -> None:
    browser.screenshot(Path(SCREENSHOTS or folder) / f"{name}.png")


def test_documents_move_into_order_by_keyboard_alone(playground: HttpServerProcess, tmp_path: Path) -> None:
    """Ctrl+Enter ranks; the best is first, with its bar, its score, its mark and the times."""
    with Browser(tmp_path) as browser:
        browser.open(playground.url + "/")
        browser.wait("document.querySelector('#fleet li')?.textContent.includes('gpu-0')")
        browser.evaluate("document.getElementById('query').focus()")
        browser.press("Enter", control=True)
        browser.wait("!document.getElementById('facts').hidden")
        assert browser.evaluate(ORDER)[0] == "was 2"
        scores = browser.evaluate(SCORES)
        assert scores == sorted(scores, reverse=True)
        assert 0 < scores[0] <= 1
        assert "not all of it was read" in browser.evaluate("document.querySelector('.cut').textContent")
        browser.wait("parseFloat(document.querySelector('.fill').style.width) > 50")
        assert "served by" in browser.evaluate("document.getElementById('facts').textContent")
        browser.wait("document.getAnimations().length === 0")
        keep(browser, "light", tmp_path)
        browser.evaluate("document.querySelector('[name=scale]').focus()")
        browser.press("ArrowRight")
        browser.wait(f"{SCORES}[0] > 1")


def test_edits_and_samples_start_anew(playground: HttpServerProcess, tmp_path: Path) -> None:
    """What was ranked is not shown for what is typed now; errors are told in the server's words."""
    with Browser(tmp_path) as browser:
        browser.open(playground.url + "/#rank")
        browser.wait("!document.getElementById('facts').hidden")
        browser.evaluate("sample.value = 'Languages'; sample.dispatchEvent(new Event('change'))")
        assert browser.evaluate(ORDER) == [None] * 5
        browser.evaluate("query.value = '  '; rank()")
        browser.wait("message.textContent.includes('query: must not be blank')")


def test_requests_can_be_copied_for_three_tools(playground: HttpServerProcess, tmp_path: Path) -> None:
    """curl, grpcurl and Python, with quotes that a shell survives."""
    with Browser(tmp_path) as browser:
        browser.open(playground.url + "/")
        browser.evaluate('query.value = "what\'s up"; edited(); copying.open = true')
        assert "what'\\''s up" in browser.evaluate("document.getElementById('snippet').textContent")
        for name, words in (("grpcurl", "rerank.v1.RerankService/Rerank"), ("python", "RerankClient(")):
            browser.evaluate(f"document.querySelector('[data-snippet={name}]').click()")
            assert words in browser.evaluate("document.getElementById('snippet').textContent")


def test_it_fits_a_phone_in_the_dark(playground: HttpServerProcess, tmp_path: Path) -> None:
    """Nothing sticks out, and the page is dark."""
    with Browser(tmp_path, width=500, height=1500, dark=True) as browser:
        browser.open(playground.url + "/#rank")
        browser.wait("!document.getElementById('facts').hidden")
        assert browser.evaluate(WIDTH_FITS)
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 19, 24)"
        browser.wait("document.getAnimations().length === 0")
        keep(browser, "dark-phone", tmp_path)


def test_it_asks_nobody_else(playground: HttpServerProcess) -> None:
    """The page carries all it needs, and its policy forbids the rest."""
    answer = httpx.get(playground.url + "/", trust_env=False)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then / leads to the documentation."""
    with HttpServerProcess(tmp_path, "--no-playground") as server:
        answer = httpx.get(server.url + "/", trust_env=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "docs")

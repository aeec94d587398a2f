"""The page at / in a real browser, where there is one."""

import shutil

import pytest

from scripts.browser import Browser

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no Chromium is on the PATH, which shows the page"),
]
ANSWER = "document.querySelector('.answer')?.textContent.length ?? 0"
PAINTED = """(() => {
  const canvas = document.getElementById('experts');
  if (canvas.hidden) return 0;
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return data.filter((value, i) => i % 4 === 3 && value > 0).length;
})()"""


@pytest.fixture
def page(start_server, tmp_path):
    url, _ = start_server()
    with Browser(PROGRAM, tmp_path) as browser:
        browser.open(url)
        browser.wait("document.getElementById('name').textContent === 'demo'")
        yield browser


def send(page, text, most):
    page.evaluate(f"document.getElementById('max_tokens').value = {most}")
    page.evaluate(f"document.getElementById('text').value = {text!r}")
    page.evaluate("document.getElementById('send').click()")


def test_an_answer_is_written_bit_by_bit_and_stopped(page):
    send(page, "Once upon a time", 240)
    first = page.wait(ANSWER)
    assert page.evaluate("document.getElementById('send').textContent") == "Stop"
    later = page.wait(f"{ANSWER} > {first} ? {ANSWER} : 0")
    page.evaluate("document.getElementById('send').click()")
    page.wait("document.getElementById('send').textContent === 'Send'")
    stopped = page.evaluate(ANSWER)
    assert later <= stopped
    page.wait("document.getElementById('now').textContent.includes('answers being written0')")
    assert page.evaluate(ANSWER) == stopped
    assert page.evaluate("document.querySelectorAll('.error').length") == 0
    assert page.evaluate("document.querySelector('.user').textContent") == "Once upon a time"


def test_experts_are_painted_once_tokens_were_written(page, demo_model):
    send(page, "The fox", 20)
    assert page.wait(PAINTED) >= demo_model.hparams.n_layer
    size = page.evaluate(
        "[document.getElementById('experts').width, document.getElementById('experts').height]"
    )
    assert size == [demo_model.hparams.n_expert, demo_model.hparams.n_layer]


def test_what_the_server_refuses_is_shown(page):
    send(page, "fox " * 400, 10)
    assert "the context holds 256" in page.wait("document.querySelector('.error')?.textContent")

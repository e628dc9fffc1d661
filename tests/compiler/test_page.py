"""The page at / in a headless browser: a person types, presses the button and sees answers."""

import json
import shutil
import threading
import time

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from intformer.runtime.edge import predict
from intformer.serve.app import application
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import Exact, plain

TEXTS = [" ".join(text.split()[:8]) for text in small_tokenizer.SENTENCES[50:53]]
SHAPE = {"hidden": 16, "heads": 2, "layers": 1, "ffn": 16}
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="this machine lacks packages chromium, chromium-driver"
    ),
]


class Library(Exact):
    """A float model in a library's place."""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    made = tmp_path_factory.mktemp("served")
    plain(made / "embedder", **SHAPE)
    plain(made / "ranker", "sequence-classification", labels=1, **SHAPE)
    return {
        "embedder": Library(made / "embedder", "sentence-embedding"),
        "<ranker>": Library(made / "ranker"),
    }


@pytest.fixture(scope="module")
def address(libraries):
    config = uvicorn.Config(application(libraries, key="sesame"), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return Page(browser)


class Page:
    """What a person does on it."""

    def __init__(self, browser):
        self.browser = browser

    def at(self, name):
        return self.browser.find_element(By.ID, name)

    def asks(self, model, texts, pairs=None, key="sesame"):
        """Fill the form in and send it; return what is shown then."""
        Select(self.at("model")).select_by_value(model)
        fields = {"texts": texts, "key": [key], **({} if pairs is None else {"pairs": pairs})}
        for name, lines in fields.items():
            self.at(name).clear()
            self.at(name).send_keys("\n".join(lines))
        self.browser.find_element(By.TAG_NAME, "button").click()
        shown = WebDriverWait(self.browser, 20).until(lambda _: self.at("answer").text)
        return json.loads(shown)


def test_vectors(page, libraries):
    shown = page.asks("embedder", TEXTS)
    wanted = list(predict(libraries["embedder"], TEXTS))
    assert len(shown) == len(TEXTS)
    for row, vector in zip(shown, wanted, strict=True):
        assert row[:8] == pytest.approx(vector[:8].tolist(), rel=1e-5)
        assert row[8] == "... 16 numbers"
    errors = [one for one in page.browser.get_log("browser") if "favicon" not in one["message"]]
    assert not errors


def test_pairs(page, libraries):
    """The second field is there for models that take two texts."""
    pairs = page.at("pairs")
    Select(page.at("model")).select_by_value("embedder")
    assert not pairs.is_displayed()
    Select(page.at("model")).select_by_value("<ranker>")
    assert pairs.is_displayed()
    found = page.asks("<ranker>", TEXTS[:1], TEXTS[1:2])
    wanted = predict(libraries["<ranker>"], TEXTS[:1], TEXTS[1:2])
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted])


def test_refusals_are_shown(page):
    assert page.asks("embedder", TEXTS, key="wrong")["error_type"] == "Unauthorized"


def test_swagger_is_a_click_away(page):
    page.browser.find_element(By.LINK_TEXT, "API").click()
    assert page.browser.current_url.endswith("/docs")

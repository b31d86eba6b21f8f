"""The report as its reader meets it: opened in a real, headless Chromium, from the disk."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command import SMALL, fsad, read_scores, write_parts
from PIL import Image

from fsad import report

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1300,900"),
    # Chromium itself is to keep off the network, too.
    *("--disable-quic", "--disable-sync", "--disable-background-networking"),
    "--disable-component-update",
)


class Browser:
    """Chromium, driven through the pipe of its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
        if chromium is None:
            pytest.fail("Chromium is needed to open the report: apt-get install chromium")
        its_in, self.out = os.pipe()
        self.into, its_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4: make room there.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (its_in, its_out)]
        command = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'
        arguments = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, chromium, *arguments],
            pass_fds=high,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for fd in (its_in, its_out, *high):
            os.close(fd)
        self.buffer, self.count, self.session = b"", 0, None
        self.events: list[dict] = []

    def call(self, method: str, **params) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.into], [], [], 60)[0], "Chromium does not answer"
            piece = os.read(self.into, 1 << 20)
            assert piece, "Chromium has ended"
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path) -> None:
        """Open a file in a new tab and wait until it is laid out; `events` holds what it did."""
        self.session, self.events = None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def __call__(self, expression: str):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + 30
        while not self(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        box = self(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def press(self, key: str) -> None:
        codes = {"Backspace": 8, "ArrowRight": 39}
        extra = {"text": key} if len(key) == 1 else {"windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **extra)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def text(self, selector: str) -> list[str]:
        return self(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def happened(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driven = Browser(tmp_path_factory.mktemp("profile"))
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The output of `fsad detect` on a few parts, one of them in a folder with a hostile name."""
    root = tmp_path_factory.mktemp("report")
    write_parts(root / "normal", 4, kind="weave")
    write_parts(root / "images", 3, kind="weave", seed=1)
    write_parts(root / "images/bad", 3, kind="weave", seed=2, defective=True)
    hostile = root / "images/<script>alert(1)<"
    hostile.mkdir()
    shutil.copy(root / "images/bad/00.png", hostile / "script>.png")
    (root / "images/broken <b>.png").write_text("text")
    model = root / "part.fsad"
    done = fsad("adapt", "--normal", root / "normal", "-o", model, *SMALL)
    assert done.returncode == 0, done.stderr
    done = fsad("detect", "--model", model, "--images", root / "images", "-o", root / "out")
    assert done.returncode == 3, done.stderr
    return root / "out"


def number(shown: str) -> float:
    return float(shown)


def visible(browser: Browser, selector: str = ".item .overlay") -> bool:
    return browser(f"getComputedStyle(document.querySelector('{selector}')).display") != "none"


def test_scores_are_read_and_the_overlay_is_switched(browser, results):
    browser.open(results / "report.html")
    expected = sorted(read_scores(results).items(), key=lambda entry: -entry[1][0])
    assert browser.text(".item .name") == [image for image, _ in expected]
    for shown, (_, (score, _)) in zip(browser.text(".item .score"), expected, strict=True):
        assert number(shown) == pytest.approx(score, rel=1e-3)
    for shown, (_, (_, anomalous)) in zip(browser.text(".item .verdict"), expected, strict=True):
        assert ("anomalous" in shown) == anomalous
    assert visible(browser)
    browser.click("#overlay")
    assert not visible(browser)
    assert browser("document.querySelector('#overlay').getAttribute('aria-pressed')") == "false"
    browser.press("o")
    assert visible(browser)


def test_pictures_are_really_drawn(browser, results):
    browser.open(results / "report.html")
    loaded = """Promise.all([...document.querySelectorAll('.item image')].map(i => new Promise(done => {
        const probe = new Image();
        probe.onload = () => done(probe.naturalWidth); probe.onerror = () => done(0);
        probe.src = i.getAttribute('href'); })))"""
    result = browser.call("Runtime.evaluate", expression=loaded, awaitPromise=True, returnByValue=True)
    widths = result["result"]["value"]
    assert len(widths) == 2 * len(browser.text(".item")) and min(widths) > 0
    picture = browser.call("Page.captureScreenshot", format="png")["data"]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).std() > 10


def test_hostile_names_are_only_text_and_no_network_is_asked(browser, results):
    browser.open(results / "report.html")
    assert "<script>alert(1)</script>.png" in browser.text(".item .name")
    assert browser("document.querySelectorAll('script').length") == 2
    assert browser.text("#unreadable b") == []
    assert "broken <b>.png" in browser.text("#unreadable li")[0]
    assert not browser.happened("Page.javascriptDialogOpening", "Runtime.exceptionThrown")
    assert not browser.happened("Log.entryAdded")
    asked = [event["request"]["url"] for event in browser.happened("Network.requestWillBeSent")]
    assert all(url.startswith(("file:", "data:")) for url in asked) and asked


def test_filters_search_and_enlarging(browser, results):
    browser.open(results / "report.html")
    bad = [image for image, (_, anomalous) in read_scores(results).items() if anomalous]
    assert 0 < len(bad) < 7
    browser.click("[data-show=anomalous]")
    assert sorted(browser.text(".item .name")) == sorted(bad)
    browser.click("[data-show=all]")
    browser.click("#search")
    for key in "bad/":
        browser.press(key)
    browser.press("o")  # typed, not a command
    assert browser.text(".item") == [] and visible(browser, "body")
    browser.press("Backspace")
    browser.wait("document.querySelectorAll('.item').length === 3")
    first, second, _ = browser.text(".item .name")
    browser.click(".item button")
    assert browser("document.querySelector('dialog').open")
    assert browser.text("#large-name") == [first]
    browser.press("ArrowRight")
    assert browser.text("#large-name") == [second]
    browser.click("#close")
    assert not browser("document.querySelector('dialog').open")


def test_the_header_says_what_the_scores_rest_on(browser, results):
    browser.open(results / "report.html")
    stored = json.loads((results / "scores.json").read_text())
    assert browser.text("#threshold") == [stored["threshold"]["sentence"]]
    assert "4, kept as" in " ".join(browser.text("#about dd"))
    assert browser.text("#figures dt")[0] == "pictures" and browser.text("#figures dd")[0] == "7"
    bars = browser(
        "[...document.querySelectorAll('#histogram rect title')].map(t => +t.textContent.split(' ')[0])"
    )
    assert sum(bars) == 7
    assert browser("document.querySelectorAll('#histogram .limit').length") == 1


def write_many(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.random((40, 60, 3), dtype=np.float32)
    jpeg, png = report.thumbnails(picture, picture[:, :, 0], 0.9, True)
    row = {"width": 60, "height": 40, "regions": []}
    items = [
        report.ReportItem(
            {**row, "image": f"{i:05}.png", "score": float(score), "anomalous": bool(score > 1)}, jpeg, png
        )
        for i, score in enumerate(rng.gamma(2, 0.3, count))
    ]
    report.write_report(path, items, {"value": 1.0, "sentence": "A threshold."}, {"Model": "none"})


def test_thousands_of_pictures_stay_quick(browser, tmp_path):
    write_many(tmp_path / "report.html", 5000)
    start = time.monotonic()
    browser.open(tmp_path / "report.html")
    assert time.monotonic() - start < 20
    drawn = len(browser.text(".item"))
    assert 0 < drawn < 300
    browser("scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"document.querySelectorAll('.item').length > {drawn}")
    assert "5000 of 5000" in browser.text("#count")[0]
    assert not browser.happened("Runtime.exceptionThrown")


def test_one_picture_is_enough(browser, tmp_path):
    write_many(tmp_path / "report.html", 1)
    browser.open(tmp_path / "report.html")
    assert len(browser.text(".item")) == 1 and len(browser.text("#histogram rect")) == 1


def test_regions_are_the_connected_pixels_above_the_threshold():
    anomaly_map = np.zeros((8, 10), np.float32)
    anomaly_map[1:3, 2:6] = 2
    anomaly_map[3, 6] = 5  # touches by a corner
    anomaly_map[7, 0] = 1.5
    anomaly_map[7, 9] = 1  # not above
    first, second = report.find_regions(anomaly_map, 1.0, (16, 40))
    assert first == report.Region(x=8, y=2, width=20, height=6, area=72, peak=5)
    assert second == report.Region(x=0, y=14, width=4, height=2, area=8, peak=1.5)
    assert report.find_regions(np.zeros((3, 3)), 0.5, (1, 1)) == []


def test_overlays_colour_only_what_is_near_the_threshold():
    picture = np.full((20, 20, 3), 0.5, np.float32)
    anomaly_map = np.zeros((20, 20), np.float32)
    anomaly_map[:, 10:] = 3
    drawn = np.asarray(report.overlay_image(picture, anomaly_map, 1.0, []))
    assert (drawn[:, :8] == 128).all()
    assert (drawn[:, 12:, 0] > 160).all() and (drawn[:, 12:, 1] < 100).all()
    huge = report.overlay_image(np.zeros((10, 3000, 3), np.float32), anomaly_map, 1.0, [])
    assert huge.size == (1024, 3)
    tiny = report.overlay_image(picture[:1, :1], anomaly_map, 1.0, [report.Region(0, 0, 1, 1, 1, 3.0)])
    assert tiny.size == (1, 1)

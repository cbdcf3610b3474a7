"""A headless browser: Debian's Chromium, controlled by chromedriver."""

import contextlib
import json
import os
import shutil

import pytest

BINARIES = ("chromium", "chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1600,1200")  # fmt: skip


def require_browser() -> None:
    """Fail in CI without the browser; elsewhere skip the test with a message."""
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if not missing:
        return
    message = (
        f"NOT TESTED, {' and '.join(missing)} not found: `make browser` (Debian, as root), or install them, and test again"
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def browser(profile):
    """A driver whose Chromium keeps all its files in the new folder `profile`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(120)
        yield driver
    finally:
        driver.quit()


def requested(driver) -> list[str]:
    """URLs that the pages have requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

"""Pages that scripts make, in the Chromium of the machine."""

from __future__ import annotations

import shutil
import sys

import pytest

from ml_filter.errors import ConfigError
from tests.downstream.fetching.site import PROSE, article

needs_chromium = pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), reason="needs Chromium"
)
SCRIPTED = """<html lang="en"><head><title>Loading</title></head><body><script>
fetch('/data').then(answer => answer.text()).then(text => {
  document.title = 'Ready';
  document.body.innerHTML = '<nav><a href="/next">next</a></nav><article><p>' + text + '</p></article>';
});</script><img src="/picture.png"></body></html>"""


@needs_chromium
@pytest.mark.slow
def test_scripts_make_the_page_and_rules_and_limits_stay(site, fetch):
    site.pages |= {"/robots.txt": "User-agent: *\nDisallow: /private\n", "/": SCRIPTED, "/data": PROSE * 4}
    site.pages |= {"/next": article("next"), "/missing": (404, {}, b""), "/moved": (302, {"Location": "/private"}, b"")}
    urls = [site.url(path) for path in ("/", "/missing", "/moved", "/private/x")]
    result = fetch(urls=urls, browser=True, depth=1, timeout_s=20)
    rows = {row["url"].rpartition("/")[2]: row for row in result.rows}
    assert sorted(rows) == ["", "next"]
    assert (rows[""]["title"], rows[""]["text"].startswith("The heart pumps")) == ("Ready", True)
    assert result.reasons == {"missing": "http_status", "moved": "robots_denied", "private/x": "robots_denied"}
    assert "/picture.png" not in site.asked
    assert not any(path.startswith("/private") for path in site.asked)
    assert "ml_filter/" in site.headers[1]["User-Agent"]
    assert site.counts["/"] == 1


@needs_chromium
@pytest.mark.slow
def test_a_browser_is_kept_from_private_addresses(site, fetch):
    site.pages["/"] = article("home")
    result = fetch(urls=[site.url()], browser=True, allow_local=False, retries=0)
    assert {*result.reasons.values()} == {"private_address"}
    assert site.asked == []


def test_without_playwright_one_line_says_what_to_install(site, fetch, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright", None)
    monkeypatch.setitem(sys.modules, "playwright.async_api", None)
    with pytest.raises(ConfigError, match="browser needs Playwright: pip install playwright"):
        fetch(urls=[site.url()], browser=True)

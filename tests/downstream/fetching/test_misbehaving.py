"""What a site may do wrong or ask for, over real connections."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from itertools import pairwise

import pytest
from aiohttp import web

from tests.annotation.test_tls import Authority
from tests.downstream.fetching.site import Site, article, cut_off, endless
from tests.pdfs import pdf


def test_robots_txt_decides_what_is_fetched_and_is_read_once(site, fetch):
    site.pages["/robots.txt"] = "User-agent: *\nDisallow: /\n\nUser-agent: ml_filter\nDisallow: /private\nAllow: /\n"
    for path in ("/a", "/b", "/private/c"):
        site.pages[path] = article(path)
    result = fetch(urls=[site.url(path) for path in ("/a", "/b", "/private/c")])
    assert result.urls == ["/a", "/b"]
    assert result.reasons == {"private/c": "robots_denied"}
    assert site.asked.count("/robots.txt") == 1
    assert site.asked[0] == "/robots.txt"
    assert "ml_filter/" in site.headers[0]["User-Agent"]
    assert "me@example.org" in site.headers[0]["User-Agent"]


@pytest.mark.parametrize(("status", "reason"), [(404, None), (403, None), (500, "robots_unavailable")])
def test_a_robots_txt_that_fails_allows_all_or_nothing_as_rfc_9309_says(site, fetch, status, reason):
    site.pages["/robots.txt"] = (status, {}, b"")
    site.pages["/a"] = article("a")
    result = fetch(urls=[site.url("/a")], retries=0)
    assert result.reasons == ({"a": reason} if reason else {})
    assert ("/a" in site.asked) == (reason is None)


def test_the_crawl_delay_is_kept_and_one_that_is_too_long_is_a_denial(site, fetch, tmp_path):
    site.pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 0.2\n"
    for path in ("/a", "/b", "/c"):
        site.pages[path] = article(path)
    urls = [site.url(path) for path in ("/a", "/b", "/c")]
    fetch(urls=urls)
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(site.times[1:]))
    site.pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 5\n"
    assert {*fetch(urls=urls, max_wait_s=1, output=tmp_path / "other").reasons.values()} == {"robots_denied"}


def test_429_is_asked_again_after_the_time_that_it_names(site, fetch):
    calls = []

    async def answer(request: web.Request) -> web.Response:
        calls.append(time.monotonic())
        if len(calls) == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.Response(text=article("a"), content_type="text/html")

    site.pages["/a"] = answer
    assert fetch(urls=[site.url("/a")]).urls == ["/a"]
    assert calls[1] - calls[0] >= 1


def test_a_host_that_asks_for_more_patience_is_left_to_the_next_run(site, fetch):
    site.pages["/a"] = (429, {"Retry-After": "3600"}, b"")
    site.pages["/b"] = (503, {"Retry-After": "3600"}, b"")
    site.pages["/c"] = article("c")
    urls = [site.url(path) for path in ("/a", "/b", "/c")]
    assert fetch(urls=urls).rows == []
    assert site.counts == {"/a": 1}
    site.pages["/a"] = site.pages["/b"] = article("ab")
    result = fetch(urls=urls)
    assert result.urls == ["/a", "/b", "/c"]
    assert result.figures["pending"] == 0


def test_a_redirect_to_a_host_that_asks_for_patience_costs_one_document(site, fetch):
    site.pages |= {"/a": (302, {"Location": site.url("/b").replace("127.0.0.1", "localhost")}, b""), "/c": article("c")}
    site.pages["/b"] = (429, {"Retry-After": "3600"}, b"")
    result = fetch(urls=[site.url("/a"), site.url("/c")])
    assert (result.urls, result.reasons) == (["/c"], {"a": "http_status"})


def test_429_without_a_time_backs_off_and_gives_the_host_up_for_this_run(site, fetch):
    site.pages["/a"] = (429, {}, b"")
    site.pages["/b"] = article("b")
    assert fetch(urls=[site.url("/a"), site.url("/b")], retries=2).rows == []
    assert site.counts == {"/a": 3}


def test_a_failure_that_passes_is_repeated_and_one_that_stays_is_a_reject(site, fetch):
    answers = iter([(503, {}, b""), (200, {"Content-Type": "text/html"}, article("a").encode())])

    async def answer(request: web.Request) -> web.Response:
        status, headers, body = next(answers)
        return web.Response(status=status, headers=headers, body=body)

    site.pages |= {"/a": answer, "/b": (500, {}, b""), "/c": cut_off(b"x" * 1000, 500), "/d": (404, {}, b"")}
    result = fetch(urls=[site.url(path) for path in ("/a", "/b", "/c", "/d")])
    assert result.urls == ["/a"]
    assert result.rejects["b"] == ("http_status", "500 Internal Server Error")
    assert result.reasons == {"b": "http_status", "c": "truncated", "d": "http_status"}
    assert site.counts == {"/a": 2, "/b": 2, "/c": 2, "/d": 1}


def test_redirects_are_followed_to_a_limit_and_each_is_checked(site, fetch):
    def to(target: str, status: int = 302) -> tuple:
        return status, {"Location": target}, b""

    site.pages |= {"/robots.txt": "User-agent: *\nDisallow: /secret\n", "/end": article("end")}
    site.pages |= {"/a": to("/b", 301), "/b": to(site.url("/end"), 307), "/loop": to("/back"), "/back": to("/loop")}
    site.pages |= {"/denied": to("/secret"), "/file": to("file:///etc/passwd"), "/key": to("http://me:pw@127.0.0.1/")}
    site.pages |= {f"/{n}": to(f"/{n + 1}") for n in range(9)}
    paths = ("/a", "/loop", "/denied", "/file", "/key", "/0")
    result = fetch(urls=[site.url(path) for path in paths], max_redirects=4)
    assert result.urls == ["/end"]
    assert result.reasons == {
        "loop": "redirect_loop",
        "denied": "robots_denied",
        "file": "bad_url",
        "key": "bad_url",
        "0": "too_many_redirects",
    }
    assert "/secret" not in site.asked


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[fec0::1]", "169.254.169.254", "10.0.0.1"]
)
def test_private_addresses_are_not_asked(site, fetch, host):
    site.pages["/a"] = article("a")
    result = fetch(urls=[f"http://{host}:{site.port}/a"], allow_local=False, retries=0)
    assert result.rows == []
    assert {*result.reasons.values()} == {"private_address"}
    assert site.asked == []


def test_a_huge_body_is_cut_off_and_not_held(site, fetch):
    site.pages |= {"/endless": endless(site), "/a": article("a")}
    site.pages["/declared"] = (200, {}, b"x" * 2_000_000)
    site.pages["/bomb"] = (
        200,
        {"Content-Encoding": "gzip", "Content-Type": "text/html"},
        gzip.compress(b"a" * 300_000_000, 9),
    )
    tracemalloc.start()
    result = fetch(urls=[site.url(path) for path in ("/endless", "/declared", "/bomb", "/a")], max_response_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.urls == ["/a"]
    assert result.reasons == {"endless": "too_large", "declared": "too_large", "bomb": "too_large"}
    assert peak < 30_000_000
    assert site.counts["/endless"] == 1


def test_a_server_that_trickles_is_given_up(site, fetch):
    site.pages |= {"/slow": endless(site, b"x", 0.05), "/a": article("a")}
    result = fetch(urls=[site.url("/slow"), site.url("/a")], timeout_s=0.5)
    assert (result.urls, result.reasons) == (["/a"], {"slow": "timeout"})


def test_a_wrong_charset_does_not_damage_the_text(site, fetch):
    text = article("Käse für Ærø").encode()
    site.pages["/says-latin"] = (200, {"Content-Type": "text/html; charset=iso-8859-1"}, text)
    site.pages["/says-utf8"] = (200, {"Content-Type": "text/html; charset=utf-8"}, article("Käse").encode("latin-1"))
    site.pages["/unknown"] = (200, {"Content-Type": "text/html; charset=klingon"}, text)
    result = fetch(urls=[site.url(path) for path in ("/says-latin", "/says-utf8", "/unknown")])
    texts = {row["url"].rpartition("/")[2]: row["text"] for row in result.rows}
    assert texts["says-latin"].startswith("Käse für Ærø")
    assert texts["unknown"].startswith("Käse für Ærø")
    assert "K" in texts["says-utf8"]


def test_pdfs_are_documents_and_bad_ones_are_rejects(site, fetch):
    site.pages |= {"/good.pdf": pdf(["Cells divide by mitosis."], title="Cells"), "/broken.pdf": pdf(["x"])[:200]}
    site.pages |= {"/secret.pdf": pdf(["x"], password="x"), "/scan.pdf": pdf([])}
    site.pages["/huge.pdf"] = b"%PDF-1.7" + b"x" * 2_000_000
    site.pages["/error.pdf"] = (200, {"Content-Type": "application/pdf"}, b"<html>sorry</html>")
    names = ("good", "broken", "secret", "scan", "huge", "error")
    result = fetch(urls=[site.url(f"/{name}.pdf") for name in names], max_response_bytes=2**20)
    [row] = result.rows
    assert (row["text"], row["title"], row["source"]) == ("Cells divide by mitosis.", "Cells", "web")
    assert result.reasons == {
        "broken.pdf": "extraction_failed",
        "secret.pdf": "encrypted",
        "scan.pdf": "no_main_text",
        "huge.pdf": "too_large",
        "error.pdf": "extraction_failed",
    }


def test_what_is_not_text_is_a_reject(site, fetch):
    site.pages["/image"] = (200, {"Content-Type": "image/png"}, b"\x89PNG")
    site.pages["/empty"] = (200, {"Content-Type": "text/html"}, b"")
    result = fetch(urls=[site.url("/image"), site.url("/empty"), "http://127.0.0.1:1/a"], retries=0)
    assert result.reasons == {"image": "no_main_text", "empty": "no_main_text", "a": "robots_unavailable"}


def test_a_proxy_of_the_environment_gets_the_requests_and_no_private_address(site, fetch, monkeypatch):
    async def forward(request: web.Request) -> web.Response:
        return web.Response(text=article(request.path), content_type="text/html")

    site.pages["/page"] = forward
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.port}")
    monkeypatch.setenv("no_proxy", "")
    urls = ["http://pages.example/page", "http://10.0.0.1/page", "http://localhost/page"]
    result = fetch(urls=urls, allow_local=False)
    assert [row["url"] for row in result.rows] == ["http://pages.example/page"]
    assert [reason for reason, _ in result.rejects.values()] == ["private_address"]
    assert set(site.asked) == {"/robots.txt", "/page"}
    assert {headers["Host"] for headers in site.headers} == {"pages.example"}


def test_a_certificate_of_an_unknown_authority_is_a_reject_until_the_bundle_has_it(fetch, tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    site = Site(authority.context())
    site.pages["/a"] = article("a")
    try:
        result = fetch(urls=[site.url("/a")], output=tmp_path / "unknown")
        assert [(reason, "ML_FILTER_CA_BUNDLE" in detail) for reason, detail in result.rejects.values()] == [
            ("robots_unavailable", True)
        ]
        monkeypatch.setenv("ML_FILTER_CA_BUNDLE", str(authority.bundle))
        assert fetch(urls=[site.url("/a")]).urls == ["/a"]
    finally:
        site.close()

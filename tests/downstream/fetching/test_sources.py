"""Sitemaps, feeds, links, arXiv and GitHub: what each source asks for and what becomes of it."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile

import pytest
from aiohttp import web

from ml_filter.errors import ConfigError
from tests.downstream.fetching.site import article, with_etag
from tests.pdfs import pdf

ATOM = "http://www.w3.org/2005/Atom"


def sitemap(*urls: str, kind: str = "url", lastmod: str = "") -> str:
    root = "urlset" if kind == "url" else "sitemapindex"
    changed = f"<lastmod>{lastmod}</lastmod>" if lastmod else ""
    entries = "".join(f"<{kind}><loc>{url}</loc>{changed}</{kind}>" for url in urls)
    return f'<?xml version="1.0"?><{root} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{root}>'


def test_an_index_of_sitemaps_is_found_by_robots_txt_and_read_plain_compressed_and_as_lines(site, fetch):
    site.pages |= {f"/{name}": article(name) for name in "abc"}
    site.pages["/robots.txt"] = f"User-agent: *\nAllow: /\nSitemap: {site.url('/index.xml')}\n"
    names = ("/1.xml", "/2.xml.gz", "/3.txt")
    site.pages["/index.xml"] = sitemap(*map(site.url, names), kind="sitemap")
    site.pages["/1.xml"] = sitemap(site.url("/a"), site.url("/a#part"), "https://elsewhere.example/x", "ftp://x/y")
    site.pages["/2.xml.gz"] = gzip.compress(sitemap(site.url("/b")).encode())
    site.pages["/3.txt"] = f"{site.url('/c')}\n"
    result = fetch(sitemaps=[site.url()])
    assert result.urls == ["/a", "/b", "/c"]
    assert {row["source"] for row in result.rows} == {"sitemap"}
    assert result.reasons == {"x": "other_site", "y": "bad_url"}


def test_a_line_of_a_text_sitemap_may_lie_in_two_pieces():
    from ml_filter.downstream.fetching.config import FetchConfig
    from ml_filter.downstream.fetching.items import Request, Response
    from ml_filter.downstream.fetching.sources import sitemaps

    urls = [f"https://example.org/{'x' * 40}/{number}" for number in range(3000)]
    for last in ("", "\n"):
        response = Response("https://example.org/sitemap.txt", ("\n".join(urls) + last).encode(), {})
        request = Request(response.url, sitemaps.HANDLER, "sitemap", depth=3)
        config = FetchConfig(sitemaps=[response.url], contact="me@example.org")
        assert [item.url for item in sitemaps.read(request, response, config)] == urls


def test_a_host_without_robots_txt_has_its_sitemap_at_the_usual_place(site, fetch):
    site.pages |= {"/sitemap.xml": sitemap(site.url("/a")), "/a": article("a")}
    result = fetch(sitemaps=[site.url()])
    assert (result.urls, result.rejects) == (["/a"], {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"<urlset>" + b" " * 60_000_000), "too_large"),
        (b"<urlset>" + b"<url><loc>http://127.0.0.1/</loc></url>" * 50_001, "too_long"),
        (b"<html><body>Not found</body></html>", "not_a_sitemap"),
        (gzip.compress(sitemap("http://127.0.0.1/x").encode())[:60], "truncated"),
    ],
    ids=["gzip", "addresses", "html", "cut off"],  # gzip writes the time, which would be part of the name
)
def test_a_sitemap_bomb_is_a_reject_and_costs_one_request(site, fetch, content, reason):
    site.pages |= {"/map.xml": content, "/a": article("a")}
    result = fetch(sitemaps=[site.url("/map.xml")], urls=[site.url("/a")], budget={"requests": 3})
    assert reason in result.reasons.values()
    assert "/a" in result.urls


def test_an_index_that_names_itself_or_goes_on_for_ever_ends(site, fetch):
    async def index(request):
        number = int(request.path.strip("/").removesuffix(".xml"))
        names = [site.url(f"/{number}.xml"), site.url(f"/{number + 1}.xml")]
        return web.Response(text=sitemap(*names, kind="sitemap"), content_type="application/xml")

    site.pages |= {f"/{number}.xml": index for number in range(10)} | {"/a": article("a")}
    result = fetch(sitemaps=[site.url("/0.xml")], urls=[site.url("/a")])
    assert result.urls == ["/a"]
    assert {*result.reasons.values()} == {"too_deep"}
    assert len(site.counts) < 6


RSS = """<?xml version="1.0"?><rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/"><channel>
<title>News</title><link>/</link><language>de</language>
<item><title>One &amp; only</title><link>{one}</link><pubDate>Sat, 28 Nov 2026 10:00:00 +0100</pubDate></item>
<item><title><![CDATA[Two]]></title><guid>{two}</guid><dc:date>2026-11-28</dc:date></item>
<item><title>None</title></item></channel></rss>"""


def test_rss_and_atom_name_pages_with_titles_dates_and_licences(site, fetch):
    site.pages |= {f"/{name}": article(name) for name in ("one", "two", "three")}
    site.pages["/rss.xml"] = RSS.format(one=site.url("/one"), two=site.url("/two"))
    site.pages["/atom.xml"] = (
        f'<feed xmlns="{ATOM}"><entry><title>Three</title><updated>2026-11-29T00:00:00Z</updated>'
        '<link rel="self" href="/self"/><link href="three"/><link rel="license" href="https://cc.example/by"/>'
        "<content type='xhtml'><div>deep <link href='/no'/></div></content></entry></feed>"
    )
    result = fetch(feeds=[site.url("/rss.xml"), site.url("/atom.xml")])
    rows = {row["url"].rpartition("/")[2]: row for row in result.rows}
    assert sorted(rows) == ["one", "three", "two"]
    assert (rows["one"]["title"], rows["one"]["published"]) == ("One & only", "2026-11-28T09:00:00+00:00")
    assert (rows["two"]["title"], rows["two"]["language"]) == ("Two", "de")
    assert (rows["three"]["license"], rows["three"]["language"]) == ("https://cc.example/by", "en")
    assert result.reasons == {"rss.xml": "bad_url"}


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("link", ["<link>&l9;</link>", '<link href="&l9;"/>', "<link>&file;</link>"])
def test_a_feed_cannot_expand_entities_or_read_files(site, fetch, link, tmp_path):
    (tmp_path / "secret").write_text("http://127.0.0.1/secret")
    entities = f'<!ENTITY l0 "ha">{LAUGHS}<!ENTITY file SYSTEM "file://{tmp_path}/secret">'
    site.pages["/bomb.xml"] = f"<!DOCTYPE rss [{entities}]><rss><channel><item>{link}</item></channel></rss>"
    site.pages["/a"] = article("a")
    result = fetch(feeds=[site.url("/bomb.xml")], urls=[site.url("/a")])
    assert result.urls == ["/a"]
    assert site.counts == {"/bomb.xml": 1, "/a": 1}


def test_a_feed_or_sitemap_that_is_cut_off_gives_what_is_before_and_is_read_again(site, fetch):
    site.pages |= {f"/{name}": article(name) for name in ("one", "two", "three", "four")}
    rss = RSS.format(one=site.url("/one"), two=site.url("/two"))
    urls = sitemap(site.url("/three"), site.url("/four"))
    site.pages |= {
        "/rss.xml": with_etag(rss.partition("<item><title><!")[0] + "<item><link"),
        "/map.xml": with_etag(urls.partition("/four")[0]),
        "/f.xml": "<html><p>moved</p></html>",
    }
    settings = {"feeds": [site.url("/rss.xml"), site.url("/f.xml")], "sitemaps": [site.url("/map.xml")]}
    result = fetch(**settings)
    assert result.urls == ["/one", "/three"]
    assert result.reasons == {"rss.xml": "truncated", "map.xml": "truncated", "f.xml": "not_a_feed"}
    site.pages |= {"/rss.xml": with_etag(rss), "/map.xml": with_etag(urls)}
    assert fetch(**settings).urls == ["/four", "/one", "/three", "/two"]


def test_a_feed_with_tags_that_do_not_match_is_whole(site, fetch):
    site.pages |= {"/one": article("one"), "/two": article("two")}
    rss = RSS.format(one=site.url("/one"), two=site.url("/two")).replace("<title>News", "<p><title>News")
    site.pages["/rss.xml"] = rss.replace("<item><title>None</title></item>", "")
    result = fetch(feeds=[site.url("/rss.xml")])
    assert (result.urls, result.rejects) == (["/one", "/two"], {})


def test_an_entry_with_more_fields_than_any_needs_ends_the_feed(site, fetch):
    site.pages |= {"/one": article("one"), "/two": article("two")}
    rss = RSS.format(one=site.url("/one"), two=site.url("/two")).replace(
        "<item><title><!", f"<item>{'<a/>' * 20_000}<title><!"
    )
    site.pages["/rss.xml"] = rss
    result = fetch(feeds=[site.url("/rss.xml")])
    assert (result.urls, result.reasons) == (["/one"], {"rss.xml": "too_long"})


def test_a_paper_may_have_thousands_of_authors(site, fetch):
    listed = papers(site, "2611.1v1", total=1).replace("<title>", "<author><name>A</name></author>" * 5000 + "<title>")
    site.pages["/api"] = listed
    assert len(fetch(arxiv=arxiv(site, content="abstract")).rows) == 1


def test_links_are_followed_to_a_depth_within_the_host(site, fetch, tmp_path):
    site.pages["/"] = article("home", "/a", "b?x=1#top", "mailto:me@example.org", "https://elsewhere.example/", "/a")
    site.pages |= {"/a": article("a", "/deep"), "/b?x=1": article("b", "/"), "/deep": article("deep", "/deeper")}
    assert fetch(urls=[site.url()], depth=1).urls == ["/", "/a", "/b?x=1"]
    result = fetch(urls=[site.url()], depth=2, output=tmp_path / "deeper")
    assert result.urls == ["/", "/a", "/b?x=1", "/deep"]
    assert set(site.counts) == {"/", "/a", "/b?x=1", "/deep"}


def test_links_that_robots_should_not_follow_are_not(site, fetch):
    site.pages["/"] = (
        article("home", "/a").replace("<a ", '<a rel="nofollow" ').replace("<nav>", '<nav><a href="/n">n</a>')
    )
    site.pages["/n"] = article("n", "/x").replace("<head>", '<head><meta name="ROBOTS" content="NoFollow">')
    fetch(urls=[site.url()], depth=3)
    assert set(site.counts) == {"/", "/n"}


def papers(site, *names: str, total: int) -> str:
    entries = "".join(
        f"<entry><id>http://arxiv.org/abs/{name}</id><title>On\n cells {name}</title><summary>They divide.</summary>"
        f'<published>2026-11-01T00:00:00Z</published><link title="pdf" href="{site.url(f"/pdf/{name}")}"/></entry>'
        for name in names
    )
    count = f'<o:totalResults xmlns:o="http://a9.com/-/spec/opensearch/1.1/">{total}</o:totalResults>'
    return f'<?xml version="1.0"?><feed xmlns="{ATOM}">{count}{entries}</feed>'


def arxiv(site, **settings):
    return {"query": "cat:q-bio.CB", "api_url": site.url("/api"), "delay_s": 0, **settings}


def test_arxiv_is_paged_and_a_known_version_is_not_fetched_again(site, fetch, monkeypatch):
    monkeypatch.setattr("ml_filter.downstream.fetching.sources.arxiv.PAGE", 2)
    listed = ["2611.3v1", "2611.2v1", "2611.1v4"]

    async def api(request):
        first = int(request.query["start"])
        page = listed[first : first + int(request.query["max_results"])]
        return web.Response(text=papers(site, *page, total=len(listed)), content_type="application/atom+xml")

    site.pages |= {"/api": api} | {f"/pdf/{name}": pdf([f"Paper {name}."]) for name in listed}
    result = fetch(arxiv=arxiv(site, since="2026-11-01"))
    assert sorted(row["text"] for row in result.rows) == [f"Paper {name}." for name in sorted(listed)]
    assert {(row["source"], row["published"]) for row in result.rows} == {("arxiv", "2026-11-01T00:00:00+00:00")}
    assert result.rows[0]["title"].startswith("On cells 2611.")
    assert "submittedDate:%5B202611010000+TO+299912312359%5D" in site.asked[0]
    site.forget()
    listed.insert(0, "2611.4v1")
    listed[listed.index("2611.1v4")] = "2611.1v5"
    listed.sort(key=lambda name: name != "2611.1v5")
    site.pages |= {"/pdf/2611.4v1": pdf(["Paper four."]), "/pdf/2611.1v5": pdf(["Paper one, fifth version."])}
    result = fetch(arxiv=arxiv(site, since="2026-11-01"))
    assert len(result.rows) == 4
    assert {row["text"] for row in result.rows} >= {"Paper four.", "Paper one, fifth version."}
    assert {path for path in site.counts if "/pdf/" in path} == {"/pdf/2611.4v1", "/pdf/2611.1v5"}
    site.forget()
    assert fetch(arxiv=arxiv(site, since="2026-11-01")).figures["requests"] == 1


def test_a_paper_that_failed_is_tried_again_although_its_page_of_the_list_is_not(site, fetch, monkeypatch):
    monkeypatch.setattr("ml_filter.downstream.fetching.sources.arxiv.PAGE", 1)

    async def api(request):
        name = ["2611.2v1", "2611.1v1"][int(request.query["start"])]
        return web.Response(text=papers(site, name, total=2), content_type="application/atom+xml")

    site.pages |= {"/api": api, "/pdf/2611.2v1": pdf(["Paper two."]), "/pdf/2611.1v1": (500, {}, b"")}
    assert fetch(arxiv=arxiv(site)).reasons == {"pdf/2611.1v1": "http_status"}
    site.pages["/pdf/2611.1v1"] = pdf(["Paper one."])
    site.forget()
    result = fetch(arxiv=arxiv(site))
    assert (len(result.rows), result.rejects) == (2, {})
    assert len(site.counts) == 2


def test_a_longer_list_of_arxiv_is_read_to_its_new_end(site, fetch, monkeypatch):
    monkeypatch.setattr("ml_filter.downstream.fetching.sources.arxiv.PAGE", 2)
    listed = [f"2611.{number}v1" for number in range(6)]

    async def api(request):
        first = int(request.query["start"])
        page = listed[first : first + int(request.query["max_results"])]
        return web.Response(text=papers(site, *page, total=len(listed)), content_type="application/atom+xml")

    site.pages["/api"] = api
    assert len(fetch(arxiv=arxiv(site, content="abstract", max_papers=2)).rows) == 2
    assert len(fetch(arxiv=arxiv(site, content="abstract", max_papers=5)).rows) == 5


def test_arxiv_abstracts_need_no_pdf_and_an_error_of_the_api_is_a_reject(site, fetch, tmp_path):
    site.pages["/api"] = papers(site, "2611.1v1", "2611.2v1", total=2)
    result = fetch(arxiv=arxiv(site, content="abstract"))
    assert {row["text"] for row in result.rows} == {
        "On cells 2611.1v1\n\nThey divide.",
        "On cells 2611.2v1\n\nThey divide.",
    }
    assert set(site.counts) == {site.asked[0]}
    error = "<entry><id>http://arxiv.org/api/errors#x</id><title>Error</title><summary>bad query</summary></entry>"
    site.pages["/api"] = f'<feed xmlns="{ATOM}"><totalResults>1</totalResults>{error}</feed>'
    result = fetch(arxiv=arxiv(site), output=tmp_path / "error")
    assert [*result.rejects.values()] == [("api_error", "bad query")]


def archive(**files: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(f"owner-name-abc/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("owner-name-abc/evil.md")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return content.getvalue()


def test_github_gives_files_with_the_licence_and_only_a_new_commit_is_fetched(site, fetch, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "secret-token")
    repository = {"full_name": "owner/name", "default_branch": "main", "license": {"spdx_id": "MIT"}}
    site.pages |= {
        "/robots.txt": "User-agent: *\nDisallow: /\n",
        "/repos/owner/name": json.dumps(repository),
        "/repos/owner/name/commits/main": '{"sha": "abc1"}',
        "/repos/owner/name/tarball/abc1": (302, {"Location": site.url("/download")}, b""),
        "/download": archive(
            **{"README.md": b"# Cells\nThey divide.", "a.py": b"x = 1", "b.md": b"old", "c.md": b"\x00\xff"}
        ),
    }
    settings = {"repositories": ["owner/name"], "api_url": site.url()}
    result = fetch(github=settings)
    rows = {row["title"]: row for row in result.rows}
    assert sorted(rows) == ["README.md", "b.md"]
    assert rows["README.md"]["url"] == "https://github.com/owner/name/blob/main/README.md"
    assert (rows["README.md"]["license"], rows["README.md"]["source"]) == ("MIT", "github")
    assert len(result.rejects) == 1
    assert {headers.get("Authorization") for headers in site.headers} == {"Bearer secret-token"}
    site.forget()
    assert fetch(github=settings).figures["skipped"] == 1
    assert set(site.counts) == {"/repos/owner/name", "/repos/owner/name/commits/main"}
    site.pages["/repos/owner/name/commits/main"] = '{"sha": "abc2"}'
    site.pages["/repos/owner/name/tarball/abc2"] = archive(**{"README.md": b"# Cells\nThey grow."})
    assert [row["text"] for row in fetch(github=settings).rows] == ["# Cells\nThey grow."]


SIZE = 512 + 2 * 3840  # of a file below, with its header


def in_bytes(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def between_files(whole: bytes) -> bytes:
    return gzip.compress(gzip.decompress(whole)[: 4 * SIZE])


def in_a_header(whole: bytes) -> bytes:
    files = gzip.decompress(whole)
    return gzip.compress(files[: 4 * SIZE] + b"\xff" * 512 + files[4 * SIZE + 512 :])


@pytest.mark.parametrize("damage", [in_bytes, between_files, in_a_header])
def test_an_archive_without_its_end_takes_no_document_away_and_is_fetched_again(site, fetch, damage):
    def files(edition: int) -> bytes:
        return archive(**{f"{n}.md": random.Random(10 * edition + n).randbytes(3840).hex().encode() for n in range(10)})

    site.pages |= {
        "/repos/owner/name": '{"full_name": "owner/name", "default_branch": "main"}',
        "/repos/owner/name/commits/main": '{"sha": "abc1"}',
        "/repos/owner/name/tarball/abc1": files(1),
        "/repos/owner/name/tarball/abc2": damage(files(2)),
    }
    settings = {"repositories": ["owner/name"], "api_url": site.url()}
    assert len(fetch(github=settings).rows) == 10
    site.pages["/repos/owner/name/commits/main"] = '{"sha": "abc2"}'
    result = fetch(github=settings)
    assert (len(result.rows), [*result.reasons.values()], result.figures["gone"]) == (10, ["unreadable"], 0)
    site.pages["/repos/owner/name/tarball/abc2"] = files(2)
    result = fetch(github=settings)
    texts = {random.Random(20 + n).randbytes(3840).hex() for n in range(10)}
    assert ({row["text"] for row in result.rows}, result.rejects) == (texts, {})


def test_a_file_of_addresses_may_have_comments_and_a_wrong_line_is_named(site, fetch, tmp_path):
    site.pages["/a"] = article("a")
    file = tmp_path / "urls.txt"
    file.write_text(f"# pages\n{site.url('/a')}\n\n")
    assert fetch(url_file=str(file)).urls == ["/a"]
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"urls.txt, line 1: not an address"):
        fetch(url_file=str(file), output=tmp_path / "other")
    # A run that began with nothing leaves the directory to other sources.
    assert fetch(urls=[site.url("/a")], output=tmp_path / "other").urls == ["/a"]

"""Runs after runs: budgets, what is new or changed, and kills in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.cli import main
from ml_filter.documents.manifest import find_manifest
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Document, Request
from ml_filter.downstream.fetching.run import fetch_documents
from ml_filter.downstream.fetching.state import State
from ml_filter.errors import ConfigError, InputError
from tests.downstream.fetching.conftest import read_result
from tests.downstream.fetching.site import article, with_etag
from tests.kills import Killed, kill_at


def pages_of(site, count: int) -> list[str]:
    site.pages |= {f"/{number}": with_etag(article(f"page {number}")) for number in range(count)}
    return [site.url(f"/{number}") for number in range(count)]


def test_the_second_run_asks_only_whether_something_changed(site, fetch):
    urls = pages_of(site, 5)
    first = fetch(urls=urls, shard_documents=2)
    assert first.figures | {"bytes": 0} == {
        "requests": 6, "bytes": 0, "new": 5, "changed": 0, "unchanged": 0, "gone": 0, "skipped": 0, "pending": 0,
    }  # fmt: skip
    assert {row["etag"] for row in first.rows} == {'"1"'}
    assert all(row["fetched_at"] and row["language"] == "en" for row in first.rows)
    second = fetch(urls=urls, shard_documents=2)
    assert (second.figures["unchanged"], second.figures["new"], second.figures["changed"]) == (5, 0, 0)
    assert second.rows == first.rows
    site.pages["/3"] = with_etag(article("page 3, second edition"), '"2"')
    third = fetch(urls=urls, shard_documents=2)
    assert third.figures["changed"] == 1
    assert sorted(row["id"] for row in third.rows) == sorted(row["id"] for row in first.rows)
    assert [row["text"][:22] for row in third.rows if row["etag"] == '"2"'] == ["page 3, second edition"]
    assert (third.manifest.shards_new, third.manifest.shards_reused) == (1, 3)


def test_a_page_that_goes_away_stays_as_a_document_and_is_a_reject(site, fetch):
    urls = pages_of(site, 2)
    fetch(urls=urls)
    site.pages["/1"] = (410, {}, b"")
    result = fetch(urls=urls)
    assert (result.urls, result.rejects) == (["/0", "/1"], {"1": ("http_status", "410 Gone")})
    site.pages["/1"] = with_etag(article("back"), '"1"')
    result = fetch(urls=urls)
    assert (result.figures["changed"], result.rejects) == (1, {})


def test_new_entries_of_an_unchanged_kind_are_found_and_known_versions_cost_nothing(site, fetch):
    def named(*names: str) -> str:
        entries = "".join(f"<url><loc>{site.url(n)}</loc><lastmod>2026-11-0{n[1:]}</lastmod></url>" for n in names)
        return f"<urlset>{entries}</urlset>"

    site.pages |= {f"/{number}": article(str(number)) for number in range(1, 4)}
    site.pages["/map.xml"] = named("/1", "/2")
    fetch(sitemaps=[site.url("/map.xml")])
    site.pages["/map.xml"] = named("/1", "/2", "/3")
    site.forget()
    result = fetch(sitemaps=[site.url("/map.xml")])
    assert (result.urls, result.figures["skipped"]) == (["/1", "/2", "/3"], 2)
    assert site.counts == {"/map.xml": 1, "/3": 1}


def test_an_unchanged_list_still_asks_for_what_it_names(site, fetch):
    site.pages["/"] = with_etag(article("home", "/a"))
    site.pages["/a"] = article("a")
    fetch(urls=[site.url()], depth=1)
    site.pages["/a"] = article("a, changed")
    result = fetch(urls=[site.url()], depth=1)
    assert (result.figures["unchanged"], result.figures["changed"]) == (1, 1)


@pytest.mark.parametrize(
    ("budget", "least", "most"), [({"requests": 4}, 3, 3), ({"documents": 2}, 2, 2), ({"bytes": 1000}, 1, 3)]
)
def test_a_budget_ends_the_run_and_the_next_one_goes_on(site, fetch, budget, least, most):
    urls = pages_of(site, 6)
    first = fetch(urls=urls, budget=budget)
    assert least <= len(first.rows) <= most
    assert first.figures["pending"] == 6 - len(first.rows)
    while (result := fetch(urls=urls, budget=budget)).figures["pending"]:
        pass
    assert len(result.rows) == 6
    assert set(site.counts.values()) == {1}


def test_the_time_of_a_run_is_limited(site, fetch):
    result = fetch(urls=pages_of(site, 50), delay_s=0.2, budget={"seconds": 0.7})
    assert 1 <= len(result.rows) <= 4
    assert result.figures["pending"] == 50 - len(result.rows)


@pytest.mark.parametrize(
    ("when", "name"),
    [("before", "shards/.*"), ("after", "shards/.*"), ("before", "manifest.json"), ("after", "manifest.json")],
)
def test_a_run_killed_while_it_writes_asks_for_nothing_again(site, fetch, tmp_path, when, name):
    urls = pages_of(site, 4)
    fetch(urls=urls[:3], url_file=None, shard_documents=2, output=tmp_path / "control")
    file = tmp_path / "urls.txt"
    file.write_text("\n".join(urls[:3]))
    fetch(url_file=str(file), shard_documents=2)
    file.write_text("\n".join(urls))
    site.pages["/0"] = with_etag(article("new edition"), '"2"')
    with pytest.raises(Killed), kill_at(when, name):
        fetch(url_file=str(file), shard_documents=2)
    site.forget()
    result = fetch(url_file=str(file), shard_documents=2)
    assert result.urls == ["/0", "/1", "/2", "/3"]
    assert len({row["id"] for row in result.rows}) == 4
    assert result.figures["new"] + result.figures["changed"] == 0


@pytest.mark.slow
def test_a_killed_process_fetches_nothing_twice(site, tmp_path):
    urls = pages_of(site, 40)
    file, settings = tmp_path / "urls.txt", tmp_path / "fetch.yaml"
    file.write_text("\n".join(urls))
    options = {"url_file": str(file), "contact": "me@example.org", "delay_s": 0.02, "allow_local": True}
    settings.write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "ml_filter.cli", "fetch", "--config", settings, "--output", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(site.counts) < 15 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert find_manifest(tmp_path / "out") is None
    before = site.counts
    assert len(before) < 40
    manifest, figures = fetch_documents(FetchConfig(**options), tmp_path / "out")
    result = read_result(tmp_path / "out", manifest, figures)
    assert len(result.rows) == 40
    assert sum(site.counts.values()) <= 41  # at most the one that was under way is asked for again


def test_other_hosts_can_be_asked_while_a_long_response_is_read(tmp_path):
    state = State(tmp_path / "state.sqlite", "")

    def read():
        for name in ("a.md", "b.md", "c.md"):
            other = threading.Thread(target=state.next, args=("example.org",), daemon=True)
            other.start()
            other.join(10)
            assert not other.is_alive(), name
            yield Document(name, "A text.", "https://example.org/"), False

    request = Request("https://example.org/archive", "github_archive", "github")
    assert state.record(request, read(), "2026-01-01") == {"new": 3}
    state.close()


def test_other_sources_need_another_directory_and_other_limits_do_not(site, fetch, tmp_path):
    urls = pages_of(site, 2)
    fetch(urls=urls)
    fetch(urls=urls, timeout_s=3, budget={"requests": 100})
    with pytest.raises(InputError, match="contains documents of other sources or settings"):
        fetch(urls=urls[:1])
    state = FetchConfig(urls=urls, contact="me@example.org").state
    assert state is None
    with pytest.raises(ConfigError, match="name a local file for what was fetched with --state"):
        fetch(urls=urls, output="memory://bucket/fetched")


def test_a_directory_that_lost_its_shards_is_one_error_that_says_what_to_do(site, fetch, tmp_path):
    urls = pages_of(site, 2)
    fetch(urls=urls, state=str(tmp_path / "state.sqlite"))
    shutil.rmtree(tmp_path / "fetched")
    with pytest.raises(InputError, match=r"documents-00001.* delete the directory and .*state.sqlite"):
        fetch(urls=urls, state=str(tmp_path / "state.sqlite"))


def test_a_directory_at_a_url_keeps_its_state_on_this_machine(site, tmp_path):
    import fsspec

    options = {"contact": "me@example.org", "delay_s": 0, "allow_local": True, "state": str(tmp_path / "s.sqlite")}
    config = FetchConfig(urls=pages_of(site, 3), **options)
    manifest, _ = fetch_documents(config, "memory://fetching/out")
    assert manifest.rows == 3
    assert fetch_documents(config, "memory://fetching/out").figures["unchanged"] == 3
    fsspec.filesystem("memory").rm("/fetching", recursive=True)


def test_the_command_says_what_it_did_and_nothing_at_all_is_an_error(site, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    site.pages["/a"] = article("a")
    common = ["--contact", "me@example.org", "--allow-local", "--delay-s", "0"]
    output = str(tmp_path / "out")
    assert main(["fetch", "--url", site.url("/a"), *common, "--output", output]) == 0
    shown = capsys.readouterr().out
    assert "requests" in shown and "documents" in shown and output in shown.replace("\n", "")
    assert pq.read_table(f"{output}/shards/documents-00001.parquet").num_rows == 1
    assert main(["fetch", "--url", site.url("/missing"), *common, "--output", str(tmp_path / "none")]) == 2
    assert f"http_status 1 (first: http_status, {site.url('/missing')}: 404" in capsys.readouterr().err
    assert '"http_status"' in (tmp_path / "none" / "rejects.jsonl").read_text()
    (empty := tmp_path / "urls.txt").write_text("\n# none yet\n")
    for arguments, message in [
        ([], "nothing to fetch"),
        (["--url-file", str(empty)], f"{empty} has no address"),
        (["--url", site.url("/a"), "--contact", "nocontact"], "--contact: 'nocontact' is not an e-mail address or URL"),
        (["--url", "ftp://x/"], "an address is of the form https://HOST/PATH"),
        (["--url", "https://me:pw@x/"], "must not hold a user or a password"),
        (["--github", "nonsense"], "--github: a repository is written as OWNER/NAME"),
        (["--arxiv", "all:x", "--arxiv-since", "now"], "--arxiv-since: a day is written as in 2026-01-31"),
    ]:
        assert main(["fetch", "--contact", "me@example.org", *arguments, "-o", str(tmp_path / "wrong")]) == 2
        assert message in capsys.readouterr().err


def test_a_changed_document_replaces_the_one_in_the_warehouse(site, fetch, tmp_path, warehouse):
    urls = pages_of(site, 2)
    fetch(urls=urls)
    export = ["export", str(tmp_path / "fetched"), "--to", warehouse.location("documents")]
    assert main(export) == 0
    site.pages["/1"] = with_etag(article("second edition"), '"2"')
    fetch(urls=urls)
    assert main(export) == 0
    found = {row["url"].rpartition("/")[2]: row["text"][:14] for row in warehouse.database["documents"].find()}
    assert found == {"0": "page 0. The he", "1": "second edition"}


def test_two_runs_on_one_directory_are_refused(site, tmp_path, fetch):
    from filelock import FileLock

    fetch(urls=pages_of(site, 1))
    with FileLock(Path(tmp_path) / "fetched" / ".fetch.sqlite.lock"), pytest.raises(InputError, match="another run"):
        fetch(urls=[site.url("/0")])

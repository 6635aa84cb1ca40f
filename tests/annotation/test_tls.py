"""Certificates and proxies: an endpoint that cannot be trusted or reached is named with the setting that fixes it."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from ml_filter.annotation import endpoints
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.batch import submit_batch, write_batch
from ml_filter.annotation.client import Client, Endpoint
from ml_filter.annotation.config import AnnotateConfig, BatchConfig
from ml_filter.annotation.connection import configured_endpoints
from ml_filter.annotation.failures import RequestFailed
from ml_filter.config import Settings
from ml_filter.errors import ConfigError, EndpointError
from tests.annotation.misbehaving import MisbehavingServer, Request, _Handler, chat, refused
from tests.annotation.test_batch import Provider, good

x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

BARE = Settings(_env_file=None, endpoint=None, model=None, api_key=None, ca_bundle=None)


class Authority:
    """A company's certificate authority, and the certificates that it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A company")])
        self.bundle = folder / "ca.pem"
        own = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._sign(self.name, self.key, own, -1, 1)
        self.bundle.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: Any, key: Any, extension: Any, since_days: float, until_days: float) -> Any:
        now = datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=self.name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=since_days))
            .not_valid_after(now + timedelta(days=until_days))
            .add_extension(extension, critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def context(self, host: str = "127.0.0.1", since_days: float = -1, until_days: float = 1) -> ssl.SSLContext:
        """A server's context with a certificate for a host."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.IPAddress(ip_address(host)) if host[0].isdecimal() else x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        leaf = self._sign(subject, key, x509.SubjectAlternativeName([name]), since_days, until_days)
        file = self.folder / "server.pem"
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
            + leaf.public_bytes(pem)
            + self.certificate.public_bytes(pem)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


@pytest.fixture
def authority(tmp_path, monkeypatch) -> Authority:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    return Authority(tmp_path)


@pytest.fixture
def secure(serve) -> Callable[..., str]:
    """Start a server with TLS and give its base URL."""

    def start(context: ssl.SSLContext, answer: Callable[[Request], Any] = lambda _: chat("Score: 3")) -> str:
        server: MisbehavingServer = serve(answer)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return server.url.replace("http://", "https://")

    return start


def problem(url: str, settings: Settings = BARE, **changes: Any) -> str:
    """What a request to a URL raises."""

    async def ask() -> None:
        [endpoint] = configured_endpoints(config(url, **changes), settings)
        client = Client(1.0)
        try:
            await client.ask(endpoint, "chat/completions", {"messages": []})
        finally:
            await client.close()

    with pytest.raises((EndpointError, RequestFailed)) as caught:
        asyncio.run(ask())
    return f"{type(caught.value).__name__}: {caught.value}"


def config(url: str, **changes: Any) -> AnnotateConfig:
    return AnnotateConfig(endpoints=[url], model="m", timeout_s=2, max_retries=0, max_outage_s=1, **changes)


def test_a_certificate_of_a_company_is_reported_and_accepted_with_its_bundle(
    authority, secure, pages, prompt_file, tmp_path, monkeypatch
):
    url = secure(authority.context())
    asked = config(url, prompts=[prompt_file()])
    start = time.monotonic()
    with pytest.raises(EndpointError, match=rf"certificate of {url} is not signed by a known.*ML_FILTER_CA_BUNDLE"):
        annotate_documents(pages(3), asked, tmp_path / "out", BARE)
    assert time.monotonic() - start < 5
    trusting = BARE.model_copy(update={"ca_bundle": str(authority.bundle)})
    assert annotate_documents(pages(3), asked, tmp_path / "out", trusting).counts["scored"] == 3
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    assert annotate_documents(pages(3), asked, tmp_path / "again", BARE).counts["scored"] == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"since_days": -3, "until_days": -2}, "has expired"),
        ({"since_days": 2, "until_days": 3}, "is not valid yet; check the clock"),
        ({"host": "judge.example"}, "is for another (host name|address)"),
    ],
)
def test_an_expired_or_foreign_certificate_has_its_own_words(changes, says, authority, secure):
    trusting = BARE.model_copy(update={"ca_bundle": str(authority.bundle)})
    url = secure(authority.context(**changes))
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(problem(url, trusting))


def test_a_bundle_that_is_missing_or_not_pem_is_reported(authority, tmp_path, monkeypatch, secure):
    (tmp_path / "text.pem").write_text("no certificate")
    for path in (tmp_path / "text.pem", tmp_path / "nowhere.pem", tmp_path):
        with pytest.raises(ConfigError, match=rf"ML_FILTER_CA_BUNDLE: {path} is not a PEM file"):
            configured_endpoints(config("https://x/v1"), BARE.model_copy(update={"ca_bundle": str(path)}))
    url = secure(authority.context())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    assert "SSL_CERT_FILE is set to" in problem(url)


def test_a_server_without_tls_is_reported(serve):
    url = serve(lambda _: chat("Score: 3")).url.replace("http://", "https://")
    assert "does not speak TLS; use http://" in problem(url)


def test_the_bundle_is_used_for_batches(authority, pages, prompt_file, tmp_path):
    provider = Provider(lambda request: [good(request)])
    provider.socket = authority.context().wrap_socket(provider.socket, server_side=True)
    threading.Thread(target=provider.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    asked = config(provider.url.replace("http://", "https://"), prompts=[prompt_file()])
    write_batch(pages(2), asked, BatchConfig(), tmp_path / "batch", BARE)
    with pytest.raises(EndpointError, match="is not signed by a known authority"):
        submit_batch(tmp_path / "batch", BARE)
    [submission] = submit_batch(tmp_path / "batch", BARE.model_copy(update={"ca_bundle": str(authority.bundle)}))
    assert submission.batch_id == "batch_0"
    provider.shutdown()
    provider.server_close()


def test_the_bundle_is_used_for_the_tokenizer_of_the_server(authority, secure, pages, prompt_file, tmp_path):
    def answer(request: Request) -> dict[str, Any]:
        return {"tokens": [1], "prompt": "x"} if "tokenize" in request.path else chat("Score: 3")

    asked = config(secure(authority.context(), answer), tokenizer="server", context_tokens=900, prompts=[prompt_file()])
    with pytest.raises(ConfigError, match="is not signed by a known authority"):
        annotate_documents(pages(1), asked, tmp_path / "out", BARE)
    trusting = BARE.model_copy(update={"ca_bundle": str(authority.bundle)})
    assert annotate_documents(pages(1), asked, tmp_path / "out", trusting).counts["scored"] == 1


# --- Proxies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def behind(monkeypatch) -> Callable[[str], None]:
    """Use a proxy for all hosts."""

    def use(proxy: str) -> None:
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")

    return use


@pytest.mark.parametrize(("status", "kind"), [(403, "EndpointError"), (407, "EndpointError"), (503, "RequestFailed")])
def test_a_proxy_that_refuses_is_named_with_its_status(status, kind, serve, behind, monkeypatch):
    monkeypatch.setattr(_Handler, "do_CONNECT", lambda self: self.send_error(status, "not for you"), raising=False)
    behind(serve(lambda _: {}).url.removesuffix("/v1").replace("//", "//someone:the-password@"))
    said = problem("https://judge.invalid/v1")
    assert said.startswith(f"{kind}: the proxy http://***@127.0.0.1")
    assert f"refuses the connection: {status} not for you" in said
    assert "the-password" not in said


@pytest.mark.parametrize(("status", "says"), [(403, "rejected the key"), (407, "user and password"), (502, "answered")])
def test_a_proxy_of_a_plain_endpoint_is_named_too(
    status, says, serve, behind, pages, prompt_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(endpoints, "_OPEN_AFTER_S", 0.1)
    monkeypatch.setattr(endpoints, "_PING_AFTER_S", (0.1, 0.2))
    monkeypatch.setattr(endpoints, "_backoff_s", lambda attempts: 0.05)
    behind(serve(lambda _: refused(status, "not for you")).url.replace("//", "//someone:the-password@"))
    asked = config("http://judge.invalid/v1", prompts=[prompt_file()]).model_copy(update={"max_retries": 9})
    with pytest.raises(
        EndpointError, match=rf"{says}.*{status}: not for you.*through the proxy http://\*\*\*@127"
    ) as told:
        annotate_documents(pages(3), asked, tmp_path / "out", BARE)
    assert "the-password" not in str(told.value)


def test_a_proxy_that_refuses_a_batch_is_named(serve, behind, pages, prompt_file, tmp_path, monkeypatch):
    monkeypatch.setattr(_Handler, "do_CONNECT", lambda self: self.send_error(407, "who are you"), raising=False)
    behind(serve(lambda _: {}).url.removesuffix("/v1").replace("//", "//someone:the-password@"))
    asked = config("https://judge.invalid/v1", prompts=[prompt_file()])
    write_batch(pages(2), asked, BatchConfig(), tmp_path / "batch", BARE)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    with pytest.raises(EndpointError, match=r"judge.invalid/v1: 407 who are you") as caught:
        submit_batch(tmp_path / "batch", BARE)
    assert "the-password" not in str(caught.value)


def test_a_proxy_that_cannot_be_reached_or_used_is_named(behind):
    behind("127.0.0.1:9")
    assert "cannot connect to the proxy http://127.0.0.1:9" in problem("https://judge.invalid/v1")
    behind("socks5://127.0.0.1:9")
    assert "the proxy socks5://127.0.0.1:9 is not of the form http://host:port" in problem("https://judge.invalid/v1")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://h/v1", "http://h/tokenize"),
        ("http://h:8000", "http://h:8000/tokenize"),
        ("http://h/prefix/v1", "http://h/prefix/tokenize"),
        ("http://h/prefix/v1/", "http://h/prefix/tokenize"),
        ("http://h/a/b", "http://h/a/b/tokenize"),
        ("http://h/v1beta/openai", "http://h/tokenize"),
    ],
)
def test_paths_of_the_server_keep_the_prefix_of_the_base_url(base, expected):
    assert Endpoint(base, "m", SecretStr("none")).server_url("tokenize") == expected

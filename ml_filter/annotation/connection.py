"""From settings to endpoints: which model answers, at which URLs and with which keys."""

from __future__ import annotations

import os
import ssl
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pydantic import SecretStr, ValidationError

from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.config import AskConfig, EndpointConfig
from ml_filter.annotation.embedded import embedded_endpoint, embedded_name
from ml_filter.config import Settings, problems_in
from ml_filter.errors import ConfigError


def annotator_name(config: AskConfig, settings: Settings) -> str:
    """The name that annotations carry: the model's name.

    Raises:
        ConfigError: an endpoint is configured without a model name, or a model without an endpoint.
        EndpointError: ML_FILTER_EMBEDDED_MODEL is not a file.
    """
    if not (config.endpoints or settings.endpoint):
        embedded = embedded_name(settings)
        if config.model not in (None, embedded):
            raise ConfigError(
                f"the model {config.model} needs an endpoint: give --endpoint or set ML_FILTER_ENDPOINT; without one, "
                f"the embedded annotator {embedded} answers"
            )
        return embedded
    model = config.model or settings.model
    if not model:
        raise ConfigError("an endpoint needs a model name: give --model or set ML_FILTER_MODEL")
    return model


def configured_endpoints(config: AskConfig, settings: Settings) -> list[Endpoint]:
    """The endpoints of the configuration, else those of the environment; may be empty.

    Raises:
        ConfigError: the model name, or the environment variable that holds the key of an endpoint, is missing.
    """
    entries = config.endpoints or [url.strip() for url in (settings.endpoint or "").split(",") if url.strip()]
    try:
        configs = [EndpointConfig(url=entry) if isinstance(entry, str) else entry for entry in entries]
    except ValidationError as error:
        raise ConfigError(f"ML_FILTER_ENDPOINT: {problems_in(error, 'endpoint')}") from None
    return [_endpoint(endpoint, config, settings) for endpoint in configs]


def _endpoint(endpoint: EndpointConfig, config: AskConfig, settings: Settings) -> Endpoint:
    variable = endpoint.api_key_env or "ML_FILTER_API_KEY"
    if endpoint.api_key_env:
        key = os.environ.get(endpoint.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"the environment variable {variable}, which holds the key of {endpoint.url}, is not set")
    else:
        key = (settings.api_key.get_secret_value().strip() if settings.api_key else "") or "none"
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{variable} contains characters that are not allowed in a key, such as line breaks")
    model = endpoint.model or annotator_name(config, settings)
    return Endpoint(
        endpoint.url, model, SecretStr(key), key_name=variable, tls=trusted_certificates(settings.ca_bundle)
    )


def trusted_certificates(ca_bundle: str | None) -> ssl.SSLContext:
    """The certificates of the system, or of SSL_CERT_FILE, and those of the bundle."""
    context = ssl.create_default_context()
    if ca_bundle:
        try:
            context.load_verify_locations(Path(ca_bundle).expanduser())
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"ML_FILTER_CA_BUNDLE: {ca_bundle} is not a PEM file of certificates ({error}); give the file with the "
                "certificate of your authority"
            ) from error
    return context


def open_endpoints(config: AskConfig, settings: Settings) -> AbstractContextManager[list[Endpoint]]:
    """The configured endpoints or, without any, the embedded annotator, which runs as long as the context."""
    endpoints = configured_endpoints(config, settings)
    return nullcontext(endpoints) if endpoints else embedded_endpoint(settings)

"""Tell people about a run: a message to a webhook of Slack, Discord, or anything that takes JSON.

An alert that cannot be delivered is a warning in the log and never an error. The address of a webhook is a secret,
and no message of this module contains it.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from loguru import logger
from pydantic import BaseModel
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from ml_filter.config import AlertKind, Event, Settings

_SECONDS = 10
_ATTEMPTS = 3
_REASON_CHARACTERS = 1000
_TITLES: dict[Event, str] = {
    "failure": "failed",
    "success": "finished",
    "drift": "found documents unlike its head's training documents",
}


class Alert(BaseModel):
    """What happened to a run of a pipeline, in which step if that is known, why, and where to look."""

    event: Event
    pipeline: str
    run: str
    step: str | None = None
    reason: str = ""
    url: str | None = None

    @property
    def text(self) -> str:
        """One line for people, without the link."""
        where = f" in step {self.step}" if self.step else ""
        reason = self.reason if len(self.reason) <= _REASON_CHARACTERS else self.reason[:_REASON_CHARACTERS] + "..."
        return f"{self.pipeline}: {self.run} {_TITLES[self.event]}{where}" + (f": {reason}" if reason else "")

    def payload(self, kind: AlertKind) -> dict[str, Any]:
        """The body of the request. Nothing in a reason notifies a group of people."""
        if kind == "slack":
            text = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return {"text": f"{text} <{self.url}|open the run>" if self.url else text}
        if kind == "discord":
            text = f"{self.text} {self.url}" if self.url else self.text
            return {"content": text, "allowed_mentions": {"parse": []}}
        return {**self.model_dump(), "text": self.text}


def is_wanted(event: Event, settings: Settings | None = None) -> bool:
    """Whether there is a webhook that is to be told about such events."""
    settings = settings or Settings()
    return bool(
        settings.alert_webhook and settings.alert_webhook.get_secret_value()
    ) and event in settings.alert_on.split(",")


def send_alert(alert: Alert, settings: Settings | None = None) -> bool:
    """Send an alert to the webhook of the settings; returns whether it was delivered.

    Redirects are not followed: the message would go somewhere else.
    """
    settings = settings or Settings()
    if not is_wanted(alert.event, settings) or settings.alert_webhook is None:
        return False
    import aiohttp

    webhook = settings.alert_webhook.get_secret_value()
    try:
        kind = settings.alert_kind or kind_of(webhook)
        asyncio.run(_post(webhook, alert.payload(kind), settings.ca_bundle))
    except (OSError, ValueError, aiohttp.ClientError) as error:
        logger.warning(f"The alert about {alert.run} was not delivered to the webhook: {_reason(error)}")
        return False
    return True


def kind_of(webhook: str) -> AlertKind:
    """The kind of a webhook by its host."""
    host = urlsplit(webhook).hostname or ""
    if host == "hooks.slack.com":
        return "slack"
    return (
        "discord" if host.removeprefix("ptb.").removeprefix("canary.") in ("discord.com", "discordapp.com") else "json"
    )


async def _post(webhook: str, body: dict[str, Any], ca_bundle: str | None) -> None:
    import aiohttp

    context = ssl.create_default_context()
    if ca_bundle:
        context.load_verify_locations(ca_bundle)
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    retrying = AsyncRetrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=0.5),
        retry=retry_if_exception(_is_passing),
        reraise=True,
    )
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
        async for attempt in retrying:
            with attempt:
                async with session.post(webhook, json=body, ssl=context, allow_redirects=False) as answer:
                    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                        raise _Refused(answer.status)


class _Refused(ValueError):
    """The webhook answered with an HTTP status other than success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _is_passing(error: BaseException) -> bool:
    """Whether it is worth another try: the server is busy or cannot be reached."""
    if isinstance(error, _Refused):
        return error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, OSError)


def _reason(error: Exception) -> str:
    """Why, from the parts of the error that cannot contain the address."""
    if isinstance(error, _Refused):
        return f"it answered with HTTP {error.status}"
    if isinstance(error, TimeoutError):
        return f"it did not answer in {_SECONDS} s"
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}); set ML_FILTER_CA_BUNDLE"
    if isinstance(cause, OSError) and cause.errno:
        return f"it cannot be reached ({errno.errorcode.get(cause.errno, type(cause).__name__)})"
    is_no_url = isinstance(error, ValueError) or "Url" in type(error).__name__
    return "ML_FILTER_ALERT_WEBHOOK is not the URL of a webhook" if is_no_url else type(error).__name__

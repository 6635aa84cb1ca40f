"""Alerts to a webhook that really answers on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from loguru import logger

from ml_filter.alerts import Alert, is_wanted, kind_of, send_alert
from ml_filter.config import Settings
from tests.webhook import SECRET

FAILED = Alert(
    event="failure",
    pipeline="scoring",
    run="scoring-1",
    step="score_corpus",
    reason="<!channel> a & b",
    url="https://zenml.example/runs/1",
)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    number = logger.add(lambda line: lines.append(str(line)), format="{message} {exception}")
    yield lines
    logger.remove(number)


def settings(url: str | None, **values: str) -> Settings:
    return Settings.model_validate({"alert_webhook": url, **values})


def test_an_alert_says_what_happened_where_and_why_with_a_link(webhook):
    assert send_alert(FAILED, settings(webhook.url))
    [(path, body)] = webhook.received
    assert path == f"/services/{SECRET}"
    assert body == {
        "event": "failure",
        "pipeline": "scoring",
        "run": "scoring-1",
        "step": "score_corpus",
        "reason": "<!channel> a & b",
        "url": "https://zenml.example/runs/1",
        "text": "scoring: scoring-1 failed in step score_corpus: <!channel> a & b",
    }


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            "slack",
            {
                "text": "scoring: scoring-1 failed in step score_corpus: &lt;!channel&gt; a &amp; b "
                "<https://zenml.example/runs/1|open the run>"
            },
        ),
        (
            "discord",
            {
                "content": "scoring: scoring-1 failed in step score_corpus: <!channel> a & b "
                "https://zenml.example/runs/1",
                "allowed_mentions": {"parse": []},
            },
        ),
    ],
)
def test_slack_and_discord_get_their_form_in_which_a_reason_calls_nobody(webhook, kind, body):
    assert send_alert(FAILED, settings(webhook.url, alert_kind=kind))
    assert webhook.received[0][1] == body
    assert len(json.dumps(FAILED.model_copy(update={"reason": "x" * 9000}).payload(kind))) < 2000


def test_the_form_follows_from_the_address():
    assert kind_of("https://hooks.slack.com/x") == "slack"
    assert kind_of("https://ptb.discord.com/api/webhooks/x") == "discord"
    assert kind_of("https://example.org/hooks.slack.com") == "json"


def test_only_the_events_of_the_settings_are_sent(webhook):
    success = FAILED.model_copy(update={"event": "success"})
    assert not send_alert(success, settings(webhook.url))
    assert send_alert(success, settings(webhook.url, alert_on="success,drift"))
    assert not is_wanted("failure", settings(None))
    assert not send_alert(FAILED, settings(None))
    assert len(webhook.received) == 1


def test_a_busy_webhook_is_asked_again(webhook):
    webhook.codes = [429, 503]
    assert send_alert(FAILED, settings(webhook.url))
    assert len(webhook.received) == 3


@pytest.mark.parametrize(
    ("code", "url", "reason"),
    [
        (404, None, "it answered with HTTP 404"),
        (302, None, "it answered with HTTP 302"),  # a redirect would carry the message elsewhere
        (0, f"http://127.0.0.1:9/{SECRET}", "it cannot be reached (ECONNREFUSED)"),
        (0, f"https://[{SECRET}", "ML_FILTER_ALERT_WEBHOOK is not the URL of a webhook"),
        (0, f"file:///{SECRET}", "ML_FILTER_ALERT_WEBHOOK is not the URL of a webhook"),
        (0, SECRET, "ML_FILTER_ALERT_WEBHOOK is not the URL of a webhook"),
    ],
)
def test_an_alert_that_is_not_delivered_is_a_warning_without_the_address(webhook, logged, code, url, reason):
    webhook.codes = [code]
    assert not send_alert(FAILED, settings(url or webhook.url))
    assert len(webhook.received) == (url is None)
    [line] = logged
    assert "The alert about scoring-1 was not delivered to the webhook" in line
    assert reason in line
    assert SECRET not in line
    assert SECRET not in repr(settings(webhook.url))

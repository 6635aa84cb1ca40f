"""A stand-in for the Kubernetes API on loopback: keeps objects, runs Jobs in boxes, refuses what a real one refuses.

It refuses objects that do not fit Kubernetes' own schemas, and requests of pods whose service account has no role for
them. It tests no admission, image pull, volume, real cron or container isolation.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from tests.production.boxes import Box, Boxes

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Namespace, kind in the plural, name."""

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_KINDS = {
    "cronjobs": ("batch/v1", "CronJob"),
    "jobs": ("batch/v1", "Job"),
    "namespaces": ("v1", "Namespace"),
    "secrets": ("v1", "Secret"),
}
_SCHEMAS = "1.37"


class Refused(Exception):
    """The API answers with an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": reason,
            "message": message,
            "code": code,
        }


@dataclass(frozen=True)
class Call:
    """A request that arrived: who asked for what."""

    account: str
    verb: str
    kind: str
    name: str | None
    body: Json | None


class KubernetesApi(ThreadingHTTPServer):
    """The stand-in. `roles` are the rules of each service account; an account that is missing may do nothing."""

    daemon_threads = True

    def __init__(self, boxes: Boxes, roles: Mapping[str, Sequence[Json]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.boxes, self.roles = boxes, dict(roles)
        self.objects: dict[Key, Json] = {}
        self.calls: list[Call] = []
        self.pods: dict[str, Box] = {}
        self.changed = threading.Condition(threading.RLock())
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def kubeconfig(self, account: str) -> str:
        """The configuration of a client, with the only context `cluster`."""
        server = {"server": f"http://127.0.0.1:{self.server_address[1]}"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "cluster", "cluster": server}],
                "users": [{"name": account, "user": {"token": account}}],
                "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": account}}],
                "current-context": "cluster",
            }
        )

    def of_kind(self, kind: str) -> list[Json]:
        """The objects of a kind, such as `jobs`."""
        with self.changed:
            return [value for (_, own, _), value in self.objects.items() if own == kind]

    def trigger(self, namespace: str, cron_job: str) -> str:
        """Start the Job of a CronJob now; returns its name."""
        with self.changed:
            template = copy.deepcopy(self.objects[namespace, "cronjobs", cron_job]["spec"]["jobTemplate"])
        template.setdefault("metadata", {})["name"] = f"{cron_job[:50]}-{random.randrange(10**8)}"
        job = {"apiVersion": "batch/v1", "kind": "Job", **template}
        return str(self.create(namespace, "jobs", job)["metadata"]["name"])

    def finished(self, namespace: str, job: str, timeout_s: float = 300) -> str:
        """Wait for the end of a Job: `Complete` or `Failed`."""
        with self.changed:
            done = self.changed.wait_for(
                lambda: self.objects[namespace, "jobs", job]["status"].get("conditions"), timeout_s
            )
        assert done, f"{job} still runs"
        return str(done[0]["type"])

    def create(self, namespace: str, kind: str, item: Json) -> Json:
        """Keep a new object; a Job starts."""
        meta = item["metadata"]
        name = meta.setdefault("name", meta.pop("generateName", "") + _letters())
        item.setdefault("apiVersion", _KINDS[kind][0])  # the real API knows them from the path as well
        item.setdefault("kind", _KINDS[kind][1])
        kubernetes_validate.validate(item, _SCHEMAS, strict=True)
        with self.changed:
            if (namespace, kind, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{kind} "{name}" already exists')
            created = {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "resourceVersion": "1"}
            meta.update(created, namespace=namespace)
            item.setdefault("status", {})
            self.objects[namespace, kind, name] = item
        if kind == "jobs":
            for rule in item["spec"].get("podFailurePolicy", {}).get("rules", []):
                for condition in rule.get("onPodConditions", []):
                    condition.setdefault("status", "True")
            threading.Thread(target=self._run_job, args=(namespace, item), daemon=True).start()
        return item

    def _run_job(self, namespace: str, job: Json) -> None:
        """Start pods until one succeeds or the limit is reached."""
        spec = job["spec"]
        rules = spec.get("podFailurePolicy", {}).get("rules", [])
        deadly = [code for rule in rules if rule["action"] == "FailJob" for code in rule["onExitCodes"]["values"]]
        pods, limit = 0, spec.get("backoffLimit", 6)
        while pods <= limit:
            self._set_status(job, {"active": 1})
            pods += 1
            try:
                code = self._run_pod(namespace, job)
            except Exception as error:  # kubelet's CreateContainerConfigError
                return self._set_status(job, {"failed": 1, "conditions": [_condition("Failed", str(error))]})
            if code == 0:
                return self._set_status(job, {"succeeded": 1, "conditions": [_condition("Complete", "")]})
            if code in deadly or (namespace, "jobs", job["metadata"]["name"]) not in self.objects:
                break
        message = f"exit code {code} after {pods} pods"
        return self._set_status(job, {"failed": pods, "conditions": [_condition("Failed", message)]})

    def _run_pod(self, namespace: str, job: Json) -> int:
        owner, template = job["metadata"], job["spec"]["template"]
        [container] = template["spec"]["containers"]
        name = f"{owner['name'][:50]}-{_letters()}"
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner["name"], "uid": owner["uid"]}
        pod: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        pod["metadata"] |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
            "labels": {**template.get("metadata", {}).get("labels", {}), "job-name": owner["name"]},
            "ownerReferences": [{**reference, "controller": True}],
        }
        account = template["spec"].get("serviceAccountName", "default")
        with self.changed:
            self.objects[namespace, "pods", name] = pod
            pod["status"] = _pod_status(container, "Running", {"running": {"startedAt": _now()}})
            environment = self._environment(namespace, container)
            command = [*container["command"], *container["args"]]
            files = {".kube/config": self.kubeconfig(account)}
            box = self.pods[name] = self.boxes.start(name, command, environment, files)
        code = box.wait()
        ended = {"exitCode": abs(code), "reason": "Error" if code else "Completed", "finishedAt": _now()}
        with self.changed:
            pod["status"] = _pod_status(container, "Failed" if code else "Succeeded", {"terminated": ended})
        return code

    def _environment(self, namespace: str, container: Json) -> dict[str, str]:
        def secret(reference: Json) -> dict[str, str]:
            key = (namespace, "secrets", reference["name"])
            if key not in self.objects and reference.get("optional"):
                return {}
            return {name: base64.b64decode(value).decode() for name, value in self.objects[key]["data"].items()}

        environment: dict[str, str] = {}
        for source in container.get("envFrom", []):
            environment |= secret(source["secretRef"])
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                environment[variable["name"]] = secret(reference)[reference["key"]]
            else:
                environment[variable["name"]] = variable["value"]
        return environment

    def _set_status(self, job: Json, status: Json) -> None:
        with self.changed:
            job["status"] = status
            self.changed.notify_all()

    def answer(self, account: str, method: str, url: str, body: Json | None) -> Json | bytes:
        """What the API answers to a request."""
        parts = urlsplit(url)
        if parts.path == "/version":
            return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
        match = _PATH.fullmatch(parts.path)
        if match is None:
            raise Refused(404, "NotFound", parts.path)
        group, namespace, kind, name, sub = match.groups()
        if kind == "namespaces":
            namespace = namespace or "cluster"
        verb = _VERBS.get(method) or ("get" if name else "list")
        resource = f"{kind}/{sub}" if sub else kind
        self.calls.append(Call(account, verb, resource, name, copy.deepcopy(body)))
        if not any(
            (group or "") in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.roles.get(account, ())
        ):
            raise Refused(403, "Forbidden", f"{account} cannot {verb} {resource}")
        if verb == "create":
            assert body is not None
            return self.create(namespace, kind, body)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with self.changed:
            if verb == "list":
                items = [value for (own, of, _), value in self.objects.items() if own == namespace and of == kind]
                return {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": _selected(items, query)}
            key = (namespace, kind, name)
            if key not in self.objects:
                raise Refused(404, "NotFound", f'{kind} "{name}" not found')
            if sub == "log":
                return self.pods[name].log.encode()
            if verb in ("patch", "update"):
                changed = _merged(self.objects[key], body or {}) if verb == "patch" else body or {}
                kubernetes_validate.validate(changed, _SCHEMAS, strict=True)
                self.objects[key].update(changed)
            if verb == "delete":
                return self._delete(key)
            return self.objects[key]

    def _delete(self, key: Key) -> Json:
        for pod in self.of_kind("pods") if key[1] == "jobs" else []:
            is_running = pod["status"]["phase"] == "Running"
            if is_running and any(owner["name"] == key[2] for owner in pod["metadata"]["ownerReferences"]):
                self.pods[pod["metadata"]["name"]].kill()
        return self.objects.pop(key)


def _selected(items: list[Json], query: Mapping[str, str]) -> list[Json]:
    labels = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
    fields = dict(pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair)
    assert set(fields) <= {"status.phase"}, fields
    return [
        item
        for item in items
        if labels.items() <= item["metadata"].get("labels", {}).items()
        and fields.get("status.phase") in (None, item["status"].get("phase"))
    ]


def _merged(old: Json, change: Json) -> Json:
    """The object after a merge patch, in which null deletes."""
    merged = {**old}
    for key, value in change.items():
        merged[key] = _merged(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return {key: value for key, value in merged.items() if value is not None}


def _pod_status(container: Json, phase: str, state: Json) -> Json:
    status = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return {"phase": phase, "containerStatuses": [{**status, "ready": phase == "Running", "state": state}]}


def _condition(kind: str, message: str) -> Json:
    return {"type": kind, "status": "True", "reason": kind, "message": message, "lastTransitionTime": _now()}


def _letters() -> str:
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KubernetesApi

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        account = self.headers.get("Authorization", "").removeprefix("Bearer ")
        code, answer = 200, b""
        try:
            answer = self.server.answer(account, self.command, self.path, json.loads(content) if content else None)
        except Refused as error:
            code, answer = error.body["code"], error.body
        except kubernetes_validate.ValidationError as error:
            code, answer = 422, Refused(422, "Invalid", f"{self.path}: {error.message}").body
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

"""The command that scores over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import ConfigFile, Device, DType, Head, example, stage_config


@app.command(
    epilog=example(
        "ml-filter serve runs/head",
        "ml-filter serve runs/head --host 0.0.0.0 --port 9000 --max-batch 128 --max-wait-ms 10",
        'curl localhost:8000/score -H "content-type: application/json" -d \'{"text": "Cells divide by mitosis."}\'',
    )
)
def serve(
    head: Head,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="0: a free one (default: 8000)")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most documents scored at once (default: 64)")] = None,
    max_wait_ms: Annotated[
        float | None, typer.Option(help="How long an idle head waits for more to score at once (default: 5)")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Most documents waiting; more are refused with 503 (default: 1000)")
    ] = None,
    max_documents: Annotated[int | None, typer.Option(help="Most documents in a request (default: 256)")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request (default: 8 MiB)")] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Seconds until a request is given up (default: 30)")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    threads: Annotated[int | None, typer.Option(help="Of the encoder on the CPU (default: as torch chooses)")] = None,
    config: ConfigFile = None,
) -> None:
    """Score single documents over HTTP until SIGTERM: POST /score, GET /health, /info and /metrics."""
    from ml_filter.serving.config import ServeConfig
    from ml_filter.serving.server import serve_head

    settings = stage_config(
        ServeConfig,
        "serve",
        config,
        host=host,
        port=port,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_documents=max_documents,
        max_body_bytes=max_body_bytes,
        timeout_s=timeout_s,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    serve_head(head, settings, lambda line: print(line, flush=True))

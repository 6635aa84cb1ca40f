"""The server process of the embedded annotator: llama.cpp's OpenAI-compatible server on loopback.

Run as `python -m ml_filter.annotation.embedded_server MODEL.gguf THREADS SLOTS`. Reads the key that requests need from
the first line of standard input, and prints its address when it is ready. Exits when standard input closes, so it never
outlives the process that started it, even if that is killed.
"""

from __future__ import annotations

import sys

CONTEXT_TOKENS = 4096


def serve(model: str, threads: int, slots: int) -> None:
    """Serve `model` until standard input closes, with `slots` parallel requests of CONTEXT_TOKENS each."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [sys.stdin.readline().strip()]
    params.ui = False
    params.n_ctx = CONTEXT_TOKENS * slots
    params.n_parallel = slots
    params.cache_ram_mib = 0  # the state of finished prompts: up to 8 GiB by default, and every document is new
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

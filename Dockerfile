# The project with its locked environment, the embedded annotator and the embedded encoder; it needs no network.
#   tools/build_image.sh cpu     build it; or cuda
#   docker run IMAGE ml-filter --help
#   docker run --volume "$PWD/runs:/app/runs" IMAGE python -m tools.run end_to_end
#
# The digest is of 2026-08-25, from Docker's record of its official images; Dependabot proposes newer ones.
ARG BASE=docker.io/library/python:3.12-slim-bookworm@sha256:0f5b26b9518d002b6173fd61daad821fa340635ebfec5bba471013f9ca114579

# Dependencies are a separate stage, so that a change of the code neither reinstalls nor ships them again.
FROM ${BASE} AS dependencies
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY Makefile pyproject.toml poetry.lock poetry.toml ./
COPY tools/install.sh tools/poetry-requirements.txt tools/
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Empty: the locked version.
ARG TORCH_VERSION=
# What a step needs on SageMaker and on Kubernetes.
ARG EXTRAS="aws kubernetes"
# The project is linked into the environment, so an empty one will do here.
RUN --mount=type=cache,target=/root/.cache \
    for package in ml_filter steps pipelines tools; do mkdir -p $package && touch $package/__init__.py; done \
    && touch README.md LICENSE && make setup ONLY=main

# What runs nothing: tests, headers, debug symbols, and OpenVINO's plugins for other devices; 0.5 GB together.
RUN packages=$(echo .venv/lib/python3*/site-packages) \
    && find "$packages" -depth -type d \( -name test -o -name tests \) -exec rm -rf {} + \
    && rm -rf "$packages"/torch/include "$packages"/torch/bin/*test* "$packages"/torch/bin/protoc* \
        "$packages"/openvino/libs/libopenvino_intel_[gn]pu_plugin.so "$packages"/openvino/libs/cache.json \
    && strip --strip-debug "$packages"/xllamacpp/*.so

FROM dependencies AS weights
COPY ml_filter ml_filter
RUN --mount=type=cache,target=/root/.cache ML_FILTER_CACHE_DIR=/weights .venv/bin/python -c \
    "from ml_filter.annotation.embedded import model_file; from ml_filter.config import Settings; model_file(Settings())"

FROM ${BASE}
# libgomp1: the embedded annotator
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ml_filter && mkdir -p /app/runs /opt/ml_filter \
    && chown 1000 /app /app/runs /opt/ml_filter
WORKDIR /app
COPY --from=dependencies /app/.venv .venv
COPY --from=weights /weights/*.gguf .venv/share/ml_filter/
COPY . .
# Written to: runs, the cache with heads and embeddings, and the home directory with ZenML's store.
ENV PATH=/app/.venv/bin:$PATH \
    ML_FILTER_CACHE_DIR=/opt/ml_filter
ARG ML_FILTER_COMMIT=
ENV ML_FILTER_COMMIT=${ML_FILTER_COMMIT}
# A number, so that Kubernetes can tell that it is not root.
USER 1000
CMD ["ml-filter", "--help"]

# The project with its locked environment, without development dependencies:
#   docker run IMAGE ml-filter --help
#   docker run --volume "$PWD/runs:/app/runs" IMAGE poetry poe run-end-to-end-pipeline
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# Dependencies are a separate layer, so that a change of the code does not reinstall them.
COPY Makefile pyproject.toml poetry.lock poetry.toml ./
COPY tools/install.sh tools/poetry-requirements.txt tools/
RUN --mount=type=cache,target=/root/.cache make setup INSTALL="--only main --no-root"
COPY . .
RUN .poetry-env/bin/poetry install --no-interaction --only-root
# Only runs, and ZenML's store in the home directory, are written.
RUN useradd --create-home --uid 1000 ml_filter && mkdir runs && chown ml_filter . runs
USER ml_filter
ENV PATH=/app/.venv/bin:/app/.poetry-env/bin:$PATH
CMD ["ml-filter", "--help"]

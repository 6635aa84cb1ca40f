# The project with its locked environment; `docker run IMAGE ml-filter --help`, or a poe task.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml poetry.lock poetry.toml Makefile README.md LICENSE ./
COPY tools tools
COPY ml_filter ml_filter
COPY steps steps
COPY pipelines pipelines
COPY configs configs
RUN make setup
ENV PATH=/app/.venv/bin:/app/.poetry-env/bin:$PATH
CMD ["ml-filter", "--help"]

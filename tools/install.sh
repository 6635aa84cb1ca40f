#!/bin/sh
# Install the locked dependencies and the project into .venv. Arguments go to `poetry install`.
#
# Poetry asks the package index through its JSON API, which mirrors often lack; the mirror plugin makes it read the
# same simple pages that pip reads. The index is pip's: from the environment, from pip's configuration, or pip's default.
set -eu

pip_index() {
    .poetry-env/bin/python -m pip config get global.index-url 2>/dev/null ||
        .poetry-env/bin/python -c 'from pip._internal.models.index import PyPI; print(PyPI.simple_url)'
}

POETRY_PYPI_MIRROR_URL="${POETRY_PYPI_MIRROR_URL:-${PIP_INDEX_URL:-$(pip_index)}}"
export POETRY_PYPI_MIRROR_URL

if [ ! -x .venv/bin/python ]; then
    "$PYTHON" -m venv .venv
fi
.poetry-env/bin/poetry install --no-interaction "$@"

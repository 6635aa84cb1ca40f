#!/bin/sh
# Install the locked dependencies and the project into .venv. From the environment:
#   PYTHON        the Python to make .venv with
#   TORCH         cpu: torch without CUDA, on Linux 4 GB less; cuda: the build on the package index
#   EXTRAS        extras of the project, separated by spaces
#   ONLY          main: without development dependencies
#   TORCH_INDEX   where the builds without CUDA are
#   TORCH_VERSION another version than the locked one
set -eu

poetry=.poetry-env/bin/poetry
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Poetry asks the package index through its JSON API, which mirrors often lack; the mirror plugin makes it read the
# same simple pages that pip reads. The index is pip's: from the environment, from pip's configuration, or pip's default.
pip_index() {
    .poetry-env/bin/python -m pip config get global.index-url 2>/dev/null ||
        .poetry-env/bin/python -c 'from pip._internal.models.index import PyPI; print(PyPI.simple_url)'
}

install_all() {
    POETRY_PYPI_MIRROR_URL="${POETRY_PYPI_MIRROR_URL:-${PIP_INDEX_URL:-$(pip_index)}}" \
        $poetry install --no-interaction ${ONLY:+--only "$ONLY" --compile} ${EXTRAS:+--extras "$EXTRAS"}
}

# A lock file has one build of torch, and its CUDA wheels as dependencies. So pip installs everything else that is
# locked, and the same version of torch from the index of builds without CUDA.
install_without_cuda() {
    locked=.venv/requirements.txt
    groups=${ONLY:+--only $ONLY}
    # shellcheck disable=SC2086  # two words
    $poetry export ${groups:---with dev} ${EXTRAS:+--extras "$EXTRAS"} --output $locked
    version=${TORCH_VERSION:-$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' $locked)}
    awk '/^[^ ]/ { cuda = /^(torch|triton|nvidia-[^ ]*|cuda-[^ ]*)==/ } !cuda' $locked >$locked.cpu
    # No hash is locked for this one: the version and the index's certificate vouch for it.
    .venv/bin/python -m pip install --quiet --no-deps \
        --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$version+cpu"
    .venv/bin/python -m pip install --quiet --no-deps --require-hashes --requirement $locked.cpu
    $poetry install --no-interaction --only-root
}

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
case "${TORCH:=cuda}-$(uname)" in
cpu-Linux) install_without_cuda ;;
cpu-* | cuda-*) install_all ;; # on macOS no build has CUDA
*) echo "error: TORCH=$TORCH is not cpu or cuda" >&2 && exit 2 ;;
esac

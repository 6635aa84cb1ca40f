#!/bin/sh
# Install the locked dependencies and the project into .venv. From the environment:
#   PYTHON        the Python to make .venv with
#   TORCH         cpu: torch without CUDA, 4 GB less on Linux; cuda: the build on the package index
#   EXTRAS        extras of the project, separated by spaces
#   ONLY          main: without development dependencies
#   TORCH_INDEX   where the builds without CUDA are
#   TORCH_VERSION another version than the locked one
#
# Poetry exports what it has locked and pip installs it: pip reads mirrors that serve only simple pages, follows your
# pip configuration, and can leave out the wheels of CUDA, which a lock file cannot.
set -eu

case "${TORCH:=cuda}" in
cpu | cuda) ;;
*) echo "error: TORCH=$TORCH is not cpu or cuda" >&2 && exit 2 ;;
esac
[ "$(uname)" = Linux ] || TORCH=cuda # elsewhere no build has CUDA

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
locked=.venv/requirements.txt
groups=${ONLY:+--only $ONLY}
# shellcheck disable=SC2086  # several words
.poetry-env/bin/poetry export ${groups:---with dev} ${EXTRAS:+--extras "$EXTRAS"} --output $locked

version=$(.venv/bin/python -c "from importlib.metadata import version as v; print(v('torch'))" 2>/dev/null || true)
if [ "$TORCH" = cpu ]; then
    wanted=${TORCH_VERSION:-$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' $locked)}+cpu
    awk '/^[^ ]/ { cuda = /^(torch|triton|nvidia-[^ ]*|cuda-[^ ]*)==/ } !cuda' $locked >$locked.cpu
    locked=$locked.cpu
    # No hash is locked for this one: the version and the index's certificate vouch for it.
    pip install --quiet --no-deps --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$wanted"
else
    # pip takes a build without CUDA for the same version.
    case "$version" in *+cpu) pip uninstall --quiet --yes torch ;; esac
fi
pip install --quiet --no-deps --require-hashes --requirement $locked
.poetry-env/bin/poetry install --no-interaction --only-root

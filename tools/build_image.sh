#!/bin/sh
# Build the image with buildah, or docker where buildah is missing, and say how large it is:
#   tools/build_image.sh cpu|cuda [options of `buildah build` or `docker build`, such as --build-arg EXTRAS="aws gcs"]
#
# BASE=debian builds on the Debian of a package mirror instead of the image that the Dockerfile names, for a machine that
# reaches no registry: debootstrap makes it, with Debian's Python.
set -eu
cd "$(dirname "$0")/.."

torch=${1:?"usage: tools/build_image.sh cpu|cuda [options]"}
shift
tag=${TAG:-ml-filter:$torch}
commit=${ML_FILTER_COMMIT:-$(git rev-parse HEAD)}

if [ "${BASE:-}" = debian ]; then
    BASE=localhost/ml-filter-base
    if ! buildah inspect --type image $BASE >/dev/null 2>&1; then
        root=$(mktemp -d)
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" ${MIRROR:+"$MIRROR"}
        rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/*
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$root" /
        buildah commit --quiet --rm "$container" $BASE
        rm -rf "$root"
    fi
fi

if command -v buildah >/dev/null; then
    # chroot needs no privileges beyond root's own, so it works inside a container too.
    set -- buildah build --isolation chroot --layers "$@"
else
    set -- docker build "$@"
fi
"$@" ${BASE:+--build-arg "BASE=$BASE"} --build-arg "TORCH=$torch" --build-arg "ML_FILTER_COMMIT=$commit" --tag "$tag" .
"${1}" images "$tag"

#!/usr/bin/env bash
# Builds the image with buildah, which needs no daemon, and starts each service in it: image.sh [NAME]. As root.
#
# IMAGE_BASE: an image to build on, a Debian with ca-certificates and this Python. Without one, a base is made with debootstrap.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-localhost/tandem}
base=${IMAGE_BASE:-}
suite=${IMAGE_SUITE:-bookworm}
context=build/image
# Works where containers cannot be run, as in many CI systems; a person may choose others.
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

missing=()
for tool in buildah ${base:-debootstrap}; do
    [ "$tool" = "$base" ] || command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} -eq 0 ] || { echo "missing: ${missing[*]}. On Debian: apt-get install ${missing[*]}"; exit 1; }

echo "Collecting wheels in $context ..."
rm -rf "$context"
mkdir -p "$context/wheels" "$context/own"
python -m tools.runtime_lock >"$context/runtime.lock"
cp tools/sbom.py "$context/sbom.py"
# pip installs the others, and is in the lock of the tools alone.
python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps --require-hashes \
    --dest "$context/wheels" --requirement "$context/runtime.lock"
grep -A 2 '^pip==' requirements.lock >"$context/pip.lock"
python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps --require-hashes \
    --dest "$context/wheels" --requirement "$context/pip.lock"
python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$context/own" .

if [ -z "$base" ]; then
    base=localhost/tandem-base
    if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
        echo "Making the base with debootstrap ($suite) ..."
        root=$(mktemp -d)
        trap 'rm -rf "$root"' EXIT
        debootstrap --variant=minbase --include=ca-certificates,python3 "$suite" "$root" >/dev/null
        rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/*
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$root" / >/dev/null
        buildah commit --quiet --rm "$container" "$base" >/dev/null
    fi
fi

echo "Building $name ..."
buildah build --quiet --build-arg "BASE=$base" --tag "$name" --file deploy/image/Containerfile "$context"

echo "Starting each service in it ..."
tools/image_try.sh "$name"

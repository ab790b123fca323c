#!/bin/sh
# Installs what requirements.lock pins into a virtual environment, each file checked by its hash: install.sh VENV
# uv takes 16 s of a processor for it, and pip 74: pip compares every file that an index has of a package with this
# Python. pip brings uv, and does the rest too where uv cannot.
set -u
bin=$1/bin
pip="$bin/python -m pip --disable-pip-version-check"
install="$pip install --quiet --no-compile --require-hashes"
only_uv=$(mktemp)
trap 'rm -f "$only_uv"' EXIT
awk '/^[^ #]/ { its = /^uv==/ } its' requirements.lock >"$only_uv"

# uv does not read what pip is told; pip names what variables say before what files say.
index=$($pip config list 2>/dev/null | sed -n "s/^.*\.index-url='\(.*\)'$/\1/p" | head -n 1)
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
{
    $install --no-deps --requirement "$only_uv" \
        && "$bin/uv" pip install --quiet --python "$bin/python" --require-hashes --requirement requirements.lock
} || {
    echo "uv cannot install them; pip does, which takes a minute more ..."
    $install --requirement requirements.lock
}

#!/bin/sh
# Installs what drives the benchmarks, as root or with sudo: Debian's h2load, and a C compiler for benchmarks/load/bodies.c.
set -u
export DEBIAN_FRONTEND=noninteractive

lost() {
    echo "h2load or a C compiler is missing ($1), and nothing is measured without them." \
        "To get them: apt-get install nghttp2-client gcc libc6-dev" >&2
    exit 1
}

command -v apt-get >/dev/null || lost "this is no Debian"
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    lost "installing them needs root"
fi

echo "Installing h2load and a C compiler with apt-get ..."
install="$as_root apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 nghttp2-client gcc libc6-dev"
# The package lists of a fresh machine are empty or old; updating them takes longer than all the rest.
$install >/dev/null 2>&1 || { $as_root apt-get update -qq >/dev/null 2>&1; $install >/dev/null 2>&1; } \
    || lost "apt-get could not install them"

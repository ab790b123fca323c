#!/bin/sh
# Installs what drives the benchmarks, as root or with sudo: Debian's h2load, and a C compiler for benchmarks/load/bodies.c.
reason=$("$(dirname "$0")/apt_install.sh" nghttp2-client gcc libc6-dev) && exit
echo "h2load or a C compiler is missing ($reason), and nothing is measured without them." \
    "To get them: apt-get install nghttp2-client gcc libc6-dev" >&2
exit 1

#!/bin/sh
# Installs what the Go twin of the benchmarks is built with, as root or with sudo: Debian's Go, its grpc-go and gomemcache.
# Without them the rest is measured.
packages="golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-bradfitz-gomemcache-dev"
# Words of a list.
# shellcheck disable=SC2086
reason=$("$(dirname "$0")/apt_install.sh" $packages) && exit
echo "Go or a library of it is missing ($reason): Tandem is not compared with a twin in Go." \
    "To compare: apt-get install $packages" >&2

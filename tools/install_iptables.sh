#!/bin/sh
# Installs Debian's iproute2 and iptables as root or with sudo, for the tests and measurements of regions, which are
# network namespaces: without them they are skipped. The rules are made in those namespaces, never in the machine's own.
reason=$("$(dirname "$0")/apt_install.sh" iproute2 iptables) \
    || echo "iproute2 or iptables is missing ($reason): the tests of regions are skipped." \
        "To get them: apt-get install iproute2 iptables"

#!/bin/sh
# Installs Debian's Prometheus as root or with sudo, for the tests of deploy/: without it they are skipped. Its package
# starts a server on port 9090 where a service manager runs, so nothing but CI installs it.
reason=$("$(dirname "$0")/apt_install.sh" prometheus) \
    || echo "Prometheus is missing ($reason): the tests of alerts and dashboard are skipped." \
        "To get it: apt-get install prometheus"

#!/bin/sh
# Installs Debian's Chromium as root or with sudo, for the tests of the pages: without it they are skipped.
reason=$("$(dirname "$0")/apt_install.sh" chromium fonts-dejavu-core) \
    || echo "Chromium is missing ($reason): the tests of the pages are skipped." \
        "To get it: apt-get install chromium"

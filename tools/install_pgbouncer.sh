#!/bin/sh
# Installs Debian's PgBouncer as root or with sudo, for the test of sessions behind it and for `make scale`. Nobody starts
# the packaged service.
reason=$("$(dirname "$0")/apt_install.sh" pgbouncer) \
    || echo "PgBouncer is missing ($reason): its test is skipped, and \`make scale\` does not try it." \
        "To get it: apt-get install pgbouncer"

#!/bin/sh
# Installs Debian's PostgreSQL 15 as root or with sudo, for the tests of TLS to a database, which the embedded one does
# not speak: without it they are skipped. No cluster is made or started, so nothing but CI installs it.
settings=/etc/postgresql-common/createcluster.conf
[ "${APT:-yes}" = no ] || [ -e "$settings" ] || { mkdir -p "$(dirname "$settings")" && echo "create_main_cluster = false" >"$settings"; } 2>/dev/null
reason=$("$(dirname "$0")/apt_install.sh" postgresql-15) \
    || echo "PostgreSQL 15 is missing ($reason): the tests of TLS to a database are skipped." \
        "To get it: apt-get install postgresql-15"

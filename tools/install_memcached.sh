#!/bin/sh
# Installs Debian's memcached as root or with sudo. Where neither is possible, says what is lost and is content:
# Tandem serves every read without it.
reason=$("$(dirname "$0")/apt_install.sh" memcached) \
    || echo "memcached is missing ($reason): reads are served from the database, and the cache's own tests are skipped." \
        "To get it: apt-get install memcached"

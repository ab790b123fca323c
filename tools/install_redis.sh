#!/bin/sh
# Installs Debian's Redis as root or with sudo, for the cache's tests: without it those of Redis are skipped. Its package
# starts a server on port 6379 where a service manager runs, so nothing but CI installs it.
reason=$("$(dirname "$0")/apt_install.sh" redis-server) \
    || echo "Redis is missing ($reason): the cache's tests of it are skipped." "To get it: apt-get install redis-server"

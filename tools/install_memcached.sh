#!/bin/sh
# Installs Debian's memcached as root or with sudo. Where neither is possible, says what is lost and is content:
# Tandem serves every read without it.
set -u
export DEBIAN_FRONTEND=noninteractive

lost() {
    echo "memcached is missing ($1): reads are served from the database, and the cache's own tests are skipped." \
        "To get it: apt-get install memcached"
    exit 0
}

command -v apt-get >/dev/null || lost "this is no Debian"
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    lost "installing it needs root"
fi

echo "Installing memcached with apt-get ..."
install="$as_root apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 memcached"
# The package lists of a fresh machine are empty or old; updating them takes longer than all the rest.
$install >/dev/null 2>&1 || { $as_root apt-get update -qq >/dev/null 2>&1; $install >/dev/null 2>&1; } \
    || lost "apt-get could not install it"

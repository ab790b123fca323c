#!/bin/sh
# Installs Debian packages, as root or with sudo, and says so before: apt_install.sh PACKAGE... Fails where neither is
# possible, or where APT=no forbids it, and says on standard output why.
set -u
export DEBIAN_FRONTEND=noninteractive

lost() {
    echo "$1"
    exit 1
}

[ "${APT:-yes}" != no ] || lost "APT=no"
command -v apt-get >/dev/null || lost "this is no Debian"
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    lost "installing it needs root"
fi

echo "Running ${as_root:+$as_root }apt-get install $* ... (APT=no: without it)" >&2
install="$as_root apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 $*"
# The package lists of a fresh machine are empty or old; updating them takes longer than all the rest.
$install >/dev/null 2>&1 || { $as_root apt-get update -qq >/dev/null 2>&1; $install >/dev/null 2>&1; } \
    || lost "apt-get could not install it"

#!/bin/sh
# Compares proto/ with what callers have: the last release tag, else main as the remote has it, else (on main itself,
# or in a clone without a remote) the last commit before this one that has a contract. Needs no network.
set -eu

contract_at() { git rev-parse --quiet --verify "$1^{commit}:proto" >/dev/null 2>&1; }

# The repository may belong to another user, as in a container.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'

if ! git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
    echo "Not a git repository with commits: no contract to compare with."
    exit 0
fi
against=
for tag in $(git tag --list 'v*' --merged HEAD --sort=-version:refname); do
    if contract_at "$tag"; then against=$tag; break; fi
done
main=$(git rev-parse --quiet --verify origin/HEAD || git rev-parse --quiet --verify origin/main || true)
if [ -z "$against" ] && [ -n "$main" ] && [ "$main" != "$(git rev-parse HEAD)" ] && contract_at "$main"; then
    against=$main
fi
if [ -z "$against" ]; then
    for commit in $(git rev-list --max-count=1000 --skip=1 HEAD); do
        if contract_at "$commit"; then against=$commit; break; fi
    done
fi
if [ -z "$against" ]; then
    echo "No earlier contract in this clone: nothing can be broken."
    exit 0
fi
echo "Comparing the contract with $(git log -1 --format='%h (%s)' "$against")."
# Unpacked and not `.git#ref=…`: buf would clone, and git clones nothing that belongs to another user.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git archive --format=tar "$against" proto | tar -x -C "$folder"
buf breaking --against "$folder/proto"

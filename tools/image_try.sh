#!/usr/bin/env bash
# Shows that an image holds what docs/deployment.md says: image_try.sh NAME. As root, with buildah.
set -euo pipefail

name=$1
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
container=$(buildah from "$name")
trap 'buildah rm "$container" >/dev/null' EXIT
run() { timeout 60 buildah run "$@"; }
failed=0
hold() { # hold TITLE COMMAND…
    if "${@:2}"; then echo "ok: $1"; else echo "FAILED: $1"; failed=1; fi
}

not_root() { [ "$(run "$container" -- id -u)" = 10001 ]; }
owns_nothing() { [ -z "$(run "$container" -- find / -xdev -user 10001 -not -path '/proc/*' 2>/dev/null)" ]; }
no_compiler() { run "$container" -- sh -c 'for it in cc gcc g++ clang make ld pip; do ! command -v "$it" || exit 1; done'; }
has_bill() { run "$container" -- python -c 'import json; assert len(json.load(open("/opt/tandem/sbom.json"))["components"]) > 100'; }

# It answers on a port that it has chosen itself, without any store: alive, and not ready.
answers() { # answers MODULE SECTION VARIABLE…: each has a database that is not there, unless it is VARIABLE=VALUE
    local settings=()
    for variable in "${@:3}"; do
        [[ $variable == *=* ]] || variable+==postgresql://nobody@127.0.0.1:9/none
        settings+=(--env "$variable")
    done
    run "${settings[@]}" --env "TANDEM_$2_SERVER__PORT=0" "$container" -- python - "$1" <<'PYTHON'
import json, subprocess, sys
service = subprocess.Popen([sys.executable, "-m", sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
try:
    for line in service.stdout:
        said = json.loads(line) if line.startswith("{") else {}
        if "port" in said or "address" in said:
            address = said.get("address") or f"127.0.0.1:{said['port']}"
            break
    else:
        sys.exit(f"{sys.argv[1]} ended with {service.wait()}")
    subprocess.run(["tandem", "health", address, "--service", "liveness"], check=True, stdout=subprocess.DEVNULL)
    assert subprocess.run(["tandem", "health", address], stdout=subprocess.DEVNULL).returncode == 1
finally:
    service.terminate()
    assert service.wait(30) == 0, "it does not stop on SIGTERM"
PYTHON
}

hold "it runs as 10001, not as root" not_root
hold "who runs it owns no file" owns_nothing
hold "no compiler, no pip" no_compiler
hold "a bill of materials" has_bill
hold "the command server" answers command_server COMMAND TANDEM_COMMAND_DATABASE__URL
hold "the projector" answers projector PROJECTOR TANDEM_PROJECTOR_FEED_DATABASE__URL TANDEM_PROJECTOR_READ_DATABASE__URL
hold "the relay" answers relay RELAY TANDEM_RELAY_FEED_DATABASE__URL 'TANDEM_RELAY_KAFKA__SERVERS=["127.0.0.1:9"]'
hold "the query server" answers query_server QUERY TANDEM_QUERY_DATABASE__URL
exit "$failed"

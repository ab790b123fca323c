"""Compose file, Kustomize overlays and Containerfile say what the services take, without a cluster or a daemon."""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import command_server.settings
import projector.settings
import query_server.settings
import relay.settings
from tandem.runtime.settings import ServiceSettings, load_settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("development", "production")
SERVERS: dict[str, type[ServiceSettings]] = {
    "command-server": command_server.settings.Settings,
    "projector": projector.settings.Settings,
    "query-server": query_server.settings.Settings,
}
MODULES = {name: name.replace("-", "_") for name in (*SERVERS, "relay")}


@functools.cache
def manifests(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    return built(DEPLOY / "kubernetes" / "overlays" / overlay)


def built(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {it["metadata"]["name"]: it for it in manifests(overlay) if it["kind"] == kind}


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pod templates, by the name of what makes them."""
    made = [it for kind in ("StatefulSet", "Deployment", "Job") for it in of_kind(overlay, kind).values()]
    return {it["metadata"]["name"]: it["spec"]["template"] for it in made}


def variables(overlay: str, pod: dict[str, Any]) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    maps = of_kind(overlay, "ConfigMap")
    return {k: v for it in container.get("envFrom", ()) for k, v in maps[it["configMapRef"]["name"]]["data"].items()}


def settings_of(
    settings: type[ServiceSettings], environment: dict[str, str], patch: pytest.MonkeyPatch
) -> ServiceSettings:
    """As the service reads them: a name that it does not know, or a value that does not fit, is an error."""
    with patch.context() as inside:
        for name, value in environment.items():
            inside.setenv(name, value)
        return load_settings(settings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_what_the_api_takes(overlay: str) -> None:
    for manifest in manifests(overlay):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_upgrade_can_apply_one_part_after_the_other(overlay: str) -> None:
    """By their label: docs/deployment.md. A ConfigMap without it would be missing when its pods come."""
    for manifest in manifests(overlay):
        if manifest["kind"] != "Namespace":
            name, label = manifest["metadata"]["name"], manifest["metadata"]["labels"]["app.kubernetes.io/name"]
            # What kustomize generates has a hash behind its name.
            assert label == ("network" if name in ("nobody", "names") else re.sub(r"-[a-z0-9]{10}$", "", name))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_take_the_settings_of_their_pods(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in SERVERS.items():
        pod = pods(overlay)[name]
        read: Any = settings_of(settings, variables(overlay, pod), monkeypatch)
        server = read.server
        assert server.authenticates
        [container] = pod["spec"]["containers"]
        assert container["command"] == ["python", "-m", MODULES[name]]
        ports = {it["name"]: it["containerPort"] for it in container["ports"]}
        assert ports == {"grpc": server.port, "metrics": server.metrics_port}
        for probe, asked in (("startupProbe", "liveness"), ("livenessProbe", "liveness"), ("readinessProbe", None)):
            assert container[probe]["grpc"] == {"port": server.port} | ({"service": asked} if asked else {})
        # Nobody may send calls any more when they are refused, and a stop must come to its end.
        readiness = container["readinessProbe"]
        assert server.drain_delay_seconds >= readiness["periodSeconds"] * readiness["failureThreshold"]
        stop = server.drain_delay_seconds + server.drain_seconds + server.stop_seconds
        assert pod["spec"]["terminationGracePeriodSeconds"] > stop
    migrating = variables(overlay, pods(overlay)["migrate"])
    for settings in (SERVERS["command-server"], SERVERS["projector"]):
        prefix = f"TANDEM_{settings.section.upper()}_"
        settings_of(settings, {k: v for k, v in migrating.items() if k.startswith(prefix)}, monkeypatch)


@pytest.mark.parametrize("wrong", [{"TANDEM_QUERY_SERVER__HOTS": "0.0.0.0"}, {"TANDEM_QUERY_SERVER__HOST": "0.0.0.0"}])
def test_a_setting_that_is_misspelt_or_opens_a_service_would_be_found(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match=r"unknown|HOTS|beyond this machine"):
        settings_of(SERVERS["query-server"], {"TANDEM_QUERY_DATABASE__URL": "postgresql://x@y/z"} | wrong, monkeypatch)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_closed_and_has_its_secrets_as_files(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        spec = pod["spec"]
        [container] = spec["containers"]
        assert spec["enableServiceLinks"] is False, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        mounts = {it["mountPath"] for it in container.get("volumeMounts", ())}
        set_here = {it["name"]: it["value"] for it in container.get("env", ())} | variables(overlay, pod)
        for variable, value in set_here.items():
            if variable.endswith("_FILE"):
                assert str(Path(value).parent) in mounts, f"{name}: {variable} names a file that nothing mounts"
            else:
                assert not re.search("PASSWORD|SECRET", variable), f"{name}: {variable} is a secret, and no file"
                assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{name}: {variable} has a password in it"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_stands_around_the_servers_means_them(overlay: str) -> None:
    policies, services = of_kind(overlay, "NetworkPolicy"), of_kind(overlay, "Service")
    assert policies["nobody"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, pod in pods(overlay).items():
        policy = policies[name]["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        if name not in services:
            continue
        service = services[name]["spec"]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        let_in = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert {it["port"] for it in service["ports"]} <= let_in
    for name in SERVERS:
        selector = of_kind(overlay, "PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pods(overlay)[name]["metadata"]["labels"].items()
    [autoscaler] = of_kind(overlay, "HorizontalPodAutoscaler").values()
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == "query-server"
    assert "replicas" not in of_kind(overlay, "Deployment")["query-server"]["spec"], "it would undo the autoscaler's"
    [apart] = pods(overlay)["projector"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["labelSelector"]["matchLabels"].items() <= pods(overlay)["projector"]["metadata"]["labels"].items()


def test_the_compose_file_starts_what_the_services_take(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    servers = SERVERS | {"relay": relay.settings.Settings}
    sections = {settings.section: (MODULES[name], settings) for name, settings in servers.items()}
    for section, (module, settings) in sections.items():
        for number in (1, 2):
            service = services[f"{section}-{number}"]
            read: Any = settings_of(settings, service["environment"], monkeypatch)
            assert service["command"] == ["python", "-m", module]
            [port] = service["ports"]
            assert re.fullmatch(rf"127\.0\.0\.1:\d+:{read.server.port}", port), "open beyond this machine, and insecure"
            assert service["healthcheck"]["test"][-1] == f"127.0.0.1:{read.server.port}"
            assert service["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
            assert (
                float(service["stop_grace_period"].rstrip("s")) > read.server.drain_seconds + read.server.stop_seconds
            )
    for name, service in services.items():
        needed = {Path(v).name for k, v in service.get("environment", {}).items() if k.endswith("_FILE")}
        assert needed == set(service.get("secrets", ())), f"{name}: files that are not handed on, or not used"
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        if "database" not in name:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


def overlay_of(folder: Path, **more: Any) -> list[dict[str, Any]]:
    """What an overlay makes that has the production one and the relay, and this."""
    # Beside the others: a kustomization names what it is made of by a relative path.
    kubernetes = folder / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", kubernetes)
    overlay = kubernetes / "overlays" / "theirs"
    overlay.mkdir()
    made = {"namespace": "tandem", "resources": ["../production", "../../relay"], **more}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return built(overlay)


def test_an_overlay_takes_the_relay_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    literals = (
        "SERVER__AUTHENTICATION__TOKEN__ISSUER=https://issuer.example",
        "SERVER__AUTHENTICATION__TOKEN__AUDIENCE=tandem",
        "FEED_DATABASE__URL=postgresql://tandem_relay@write.db.internal/tandem",
        'NATS__SERVERS=["nats://nats:4222"]',
    )
    made = {"name": "relay", "behavior": "merge", "literals": [f"TANDEM_RELAY_{it}" for it in literals]}
    found = overlay_of(tmp_path, configMapGenerator=[made])
    for manifest in found:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    its = {it["kind"]: it for it in found if it["metadata"].get("labels", {}).get("app.kubernetes.io/name") == "relay"}
    assert its.keys() == {"Deployment", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"}
    [container] = its["Deployment"]["spec"]["template"]["spec"]["containers"]
    read: Any = settings_of(relay.settings.Settings, its["ConfigMap"]["data"], monkeypatch)
    assert container["command"] == ["python", "-m", "relay"]
    assert {it["containerPort"] for it in container["ports"]} == {read.server.port, read.server.metrics_port}
    assert container["readinessProbe"]["grpc"] == {"port": read.server.port}
    assert container["envFrom"] == [{"configMapRef": {"name": its["ConfigMap"]["metadata"]["name"]}}]


def let_out(manifests: list[dict[str, Any]]) -> dict[str, set[int]]:
    """The ports of others that each is let out to, by who."""
    found: dict[str, set[int]] = {}
    for policy in (it for it in manifests if it["kind"] == "NetworkPolicy"):
        kubernetes_validate.validate(policy, "1.37", strict=True)
        rules = policy["spec"].get("egress", ())
        found[policy["metadata"]["name"]] = {port["port"] for rule in rules for port in rule["ports"]}
    return found


def test_each_component_lets_out_whom_it_names_to_one_more_kind_of_server_and_the_page_lists_it(tmp_path: Path) -> None:
    """What is let out without them all: the stores' ports, and the relay's to NATS."""
    more = {
        "broker": {"projector": {4222}},
        "redis": {"projector": {6379}, "query-server": {6379}},
        "relay-to-eventbridge": {"relay": {443}},
        "relay-to-kafka": {"relay": {9092}},
        "search-engine": {"projector": {9200}, "query-server": {9200}},
        "traces": {who: {4317, 4318} for who in (*SERVERS, "relay")},
        "webhooks": {"command-server": {443}},
    }
    folder = DEPLOY / "kubernetes" / "components"
    assert sorted(more) == sorted(it.name for it in folder.iterdir())
    before = let_out(overlay_of(tmp_path / "without"))
    page = (ROOT / "docs" / "deployment.md").read_text()
    for name, ports in more.items():
        after = let_out(overlay_of(tmp_path / name, components=[f"../../components/{name}"]))
        assert after == before | {who: before[who] | its for who, its in ports.items()}
        assert f"`{name}`" in page
    assert before["command-server"] == {5432}
    assert before["relay"] == {5432, 4222}


def test_nothing_names_a_host_that_images_come_from() -> None:
    text = "".join(it.read_text() for it in DEPLOY.rglob("*.yaml")) + (DEPLOY / "image" / "Containerfile").read_text()
    images = re.findall(r"(?:image|newName|BASE)[:=] *([\w./:${}-]+)", text)
    assert images
    assert [it for it in images if re.match(r"(?:\$\{\w+:-)?[^/$]+\.[^/]*/", it)] == []


def test_the_containerfile_has_no_faults_that_hadolint_knows() -> None:
    done = subprocess.run(
        ["hadolint", str(DEPLOY / "image" / "Containerfile")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr

import json

from tandem.client.channel import CHANNEL_OPTIONS, SERVICE_CONFIG, options_for


def test_calls_are_shared_among_servers_and_no_channel_repeats_them() -> None:
    options = dict(CHANNEL_OPTIONS)
    assert (
        json.loads(options["grpc.service_config"]) == SERVICE_CONFIG == {"loadBalancingConfig": [{"round_robin": {}}]}
    )
    assert options["grpc.enable_retries"] == 0


def test_pings_are_no_more_frequent_than_servers_take() -> None:
    from tandem.runtime.settings import MIN_PING_MILLISECONDS

    assert dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] >= 2 * MIN_PING_MILLISECONDS


def test_chosen_options_take_the_place_of_the_clients_own() -> None:
    options = options_for("dns:///tandem:50051", [("grpc.keepalive_time_ms", 60_000), ("grpc.lb_policy_name", "x")])
    assert len(dict(options)) == len(options) == len(CHANNEL_OPTIONS) + 1
    assert dict(options)["grpc.keepalive_time_ms"] == 60_000


def test_a_list_of_addresses_is_given_a_name_that_http_allows() -> None:
    assert "grpc.default_authority" not in dict(options_for("dns:///tandem:50051"))
    assert dict(options_for("ipv4:127.0.0.1:1,127.0.0.1:2"))["grpc.default_authority"] == "tandem"

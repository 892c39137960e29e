"""The Redis servers of the tests, and the hop in front of them, do what they say."""

from __future__ import annotations

import contextlib

import pytest
import redis
from redis.cluster import RedisCluster

from tests.helpers.redis_server import (
    HOST,
    USER,
    USER_PASSWORD,
    once,
    redis_acl,
    redis_cluster,
    redis_sentinel,
    redis_server,
    redis_tls,
)
from tests.helpers.redis_shim import Commands, Shim


def test_a_server_that_is_started_again_is_empty_and_where_it_was() -> None:
    with redis_server() as server:
        server.ask("SET", "a", "1")
        assert server.ask("GET", "a") == b"1"
        port = server.port
        server.restart()
        assert server.port == port
        assert server.ask("GET", "a") is None


def test_a_paused_server_keeps_its_connections_and_answers_later() -> None:
    with redis_server() as server, redis.Redis(HOST, server.port, socket_timeout=0.1, retry=once()) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert server.ask("PING")


def test_an_acl_user_has_its_keys_and_no_others() -> None:
    with redis_acl() as server:
        with redis.Redis.from_url(server.url, protocol=2) as client:
            assert client.set("legato:1:x", "1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.set("theirs", "1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.flushall()
        with redis.Redis(HOST, server.port, retry=once()) as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()
        assert f"{USER}:{USER_PASSWORD}@" in server.url


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_with_and_without_a_clients_certificate(mutual: bool) -> None:
    with redis_tls(mutual=mutual) as (server, certificates):
        assert server.ask("PING")
        trusting = redis.Redis(HOST, server.port, ssl=True, ssl_ca_certs=certificates.ca, retry=once())
        with trusting as client:
            if mutual:
                with pytest.raises(redis.RedisError):
                    client.ping()
            else:
                assert client.ping()
        stranger = redis.Redis(HOST, server.port, ssl=True, retry=once())
        with stranger, pytest.raises(redis.RedisError):
            stranger.ping()


def test_a_sentinel_makes_the_replica_master() -> None:
    with redis_sentinel() as sentinel:
        sentinel.master.ask("SET", "a", "1")
        sentinel.replicated()
        sentinel.failover()
        assert sentinel.current().ask("GET", "a") == b"1"
        assert sentinel.current().ask("SET", "b", "1")


def test_a_cluster_shares_the_keys_and_leads_through_its_shims() -> None:
    with redis_cluster(shims=True) as cluster:
        with RedisCluster(HOST, cluster.shims[0].port) as client:
            for number in range(30):
                client.set(f"key-{number}", "1")
        held = [int(node.ask("DBSIZE")) for node in cluster.nodes]
        assert sum(held) == sum(shim.commands.count(b"SET") for shim in cluster.shims) == 30
        assert min(held) > 0


def test_commands_are_found_in_any_pieces() -> None:
    text = b"*2\r\n$3\r\nget\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nPING\r\n"
    for size in (1, 2, 7, len(text)):
        commands = Commands()
        found = [each for at in range(0, len(text), size) for each in commands.feed(text[at : at + size])]
        assert [name for name, _ in found] == [b"GET", b"PING"]
        assert b"".join(whole for _, whole in found) == text


def _count(through: bool) -> tuple[bytes | None, int]:
    with redis_server() as server, Shim(server.address) as shim:
        with redis.Redis.from_url(shim.url, retry=once()) as client:
            client.append("n", "x")
            shim.cut(b"APPEND", through=through)
            with pytest.raises(redis.ConnectionError):
                client.append("n", "x")
            client.ping()
        return server.ask("GET", "n"), shim.cuts


def test_a_lost_answer_was_carried_out_and_a_lost_command_was_not() -> None:
    assert _count(through=True) == (b"xx", 1)
    assert _count(through=False) == (b"x", 1)


def test_a_shim_refuses_holds_babbles_and_forwards_again() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server())
        shim = stack.enter_context(Shim(server.address))
        with redis.Redis.from_url(shim.url, socket_timeout=0.2, retry=once()) as client:
            assert client.ping()
            shim.refuse()
            for _ in range(2):
                with pytest.raises(redis.ConnectionError):
                    client.ping()
            shim.forward()
            assert client.ping()
            shim.hold()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            shim.forward()
            shim.babble(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(redis.RedisError):
                client.ping()
            shim.forward()
            shim.drop()
            shim.delay(0.05)
            assert client.ping()

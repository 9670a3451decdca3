"""Commands between hosts, and the loss of one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from fastgen_jax.errors import ConfigError, HostLostError
from fastgen_jax.runtime.host_channel import Follower, Leader, follow, lead, listen

TIMEOUT = 0.8
FACTS = {"dtype": "'float32'", "block_size": "8"}


@dataclass
class Hosts:
    leader: Leader
    followers: list[Follower]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A leader and two followers."""
    with ThreadPoolExecutor(2) as pool:
        listener = listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        arriving = [pool.submit(follow, address, index, FACTS, timeout=TIMEOUT) for index in (1, 2)]
        leader = lead(listener, FACTS, count=3, timeout=TIMEOUT)
        hosts = Hosts(leader, [arrived.result() for arrived in arriving])
    yield hosts
    for follower in hosts.followers:
        follower.close()
    hosts.leader.close()


def test_commands_come_in_their_order_and_end(hosts: Hosts) -> None:
    commands = [bytes([i]) * i for i in range(50)]
    for command in commands:
        hosts.leader.send(command)
    closing = threading.Thread(target=hosts.leader.close)
    closing.start()
    for follower in hosts.followers:
        assert [follower.receive() for _ in commands] == commands
        assert follower.receive() is None
    assert closing.is_alive(), "the leader waits until the others have left"
    for follower in hosts.followers:
        follower.close()
    closing.join()
    hosts.leader.close()


def test_silence_is_no_loss_while_everybody_lives(hosts: Hosts) -> None:
    time.sleep(2 * TIMEOUT)
    hosts.leader.send(b"late")
    assert [follower.receive() for follower in hosts.followers] == [b"late", b"late"]


def test_the_leader_notices_that_a_follower_has_gone(hosts: Hosts) -> None:
    hosts.leader.check()
    hosts.followers[1].close()
    with pytest.raises(HostLostError, match=r"host \d is gone"):
        hosts.leader.wait_for_loss(TIMEOUT)
    with pytest.raises(HostLostError, match="is gone"):
        hosts.leader.send(b"anything")


def test_the_leader_is_told_why_a_follower_failed(hosts: Hosts) -> None:
    hosts.followers[0].fail("MemoryError: too much")
    with pytest.raises(HostLostError, match=r"host \d failed: MemoryError: too much"):
        hosts.leader.wait_for_loss(TIMEOUT)


def test_a_follower_notices_silence(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader whose process was stopped sends no signs of life, and doesn't hang up."""
    listener = listen()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    accepted: list[socket.socket] = []

    def stopped_leader() -> None:
        connection, _ = listener.accept()
        accepted.append(connection)
        connection.sendall(bytes([1]) + bytes(8))  # accepts, and says no more

    thread = threading.Thread(target=stopped_leader)
    thread.start()
    follower = follow(address, 1, FACTS, timeout=TIMEOUT)
    thread.join()
    with pytest.raises(HostLostError, match=r"host 0 is gone: silent for 0\.8 s"):
        follower.receive()
    follower.close()
    accepted[0].close()
    listener.close()


def test_closing_does_not_wait_for_ever_for_a_host_that_stays(hosts: Hosts) -> None:
    """It gives signs of life, but never leaves."""
    start = time.monotonic()
    hosts.leader.close()
    assert TIMEOUT <= time.monotonic() - start < 3 * TIMEOUT


def test_hosts_that_differ_are_told_on_both_sides() -> None:
    listener = listen()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    message = r"block_size='8': host 0 has 8, another host 16; start all hosts with the same"
    with ThreadPoolExecutor(1) as pool:
        arriving = pool.submit(follow, address, 1, FACTS | {"block_size": "16"}, timeout=TIMEOUT)
        with pytest.raises(ConfigError, match=message):
            lead(listener, FACTS, count=2, timeout=TIMEOUT)
        with pytest.raises(ConfigError, match=message):
            arriving.result()


def test_a_host_that_does_not_come_is_counted() -> None:
    with pytest.raises(HostLostError, match=r"2 of 3 hosts didn't come within 0\.1 s"):
        lead(listen(), FACTS, count=3, timeout=0.1)


def test_a_leader_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(HostLostError, match=f"can't be reached at {address}"):
        follow(address, 1, FACTS, timeout=0.2)

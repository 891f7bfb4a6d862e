"""How the processes of a run meet: where they listen, and that nobody else is heard."""

from __future__ import annotations

import os
import pickle
import socket
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from bench.core import process_group as group
from bench.core.errors import BenchError
from bench.distributed import rendezvous
from bench.distributed.messages import MessageClient, MessageServer
from bench.distributed.process import place_of
from bench.distributed.rendezvous import address_of, confined, interface_towards, meeting, opened, sealed, serve
from bench.store.run_folder import write_atomic


def listening() -> dict[int, str]:
    """The ports of this machine that somebody listens on, with the address, in hexadecimal as the kernel writes it."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, _, port = local.partition(":")
                found[int(port, 16)] = address
    return found


LOOPBACK = "0100007F"


def test_the_starter_listens_on_loopback_only() -> None:
    news = MessageServer(2)
    assert listening()[news.port] == LOOPBACK
    assert news.address == "127.0.0.1"


def test_a_store_is_served_where_it_is_asked_for_and_nowhere_else() -> None:
    store, address = serve("127.0.0.2")
    assert address == "127.0.0.2"
    assert listening()[store.port] == "0200007F"
    with pytest.raises(BenchError, match=r"cannot meet at 192\.0\.2\.1, port 0: .*; MASTER_ADDR must be an address"):
        serve("192.0.2.1")
    with pytest.raises(BenchError, match="set MASTER_PORT to a port that is free"):
        serve("127.0.0.2", store.port)


def test_messages_and_stops_of_others_count_for_nothing() -> None:
    news = MessageServer(1)
    stranger = TCPStore("127.0.0.1", news.port, is_master=False, wait_for_workers=False)
    client = MessageClient("127.0.0.1", news.port, "0", news.secret)
    forged = '{"kind": "done"}'
    for content in (forged, sealed("another secret", "bench/news/0/0", forged), "", "\xff"):
        stranger.set("bench/news/0/0", content)
        stranger.set("bench/place/0", content)
        stranger.set("bench/stop", content)
        assert news.read() == []
        assert news.places() == {}
        assert not client.is_asked_to_stop()
    client.tell({"kind": "epoch"})
    assert news.read() == [{"kind": "epoch"}]
    stranger.set("bench/news/0/1", stranger.get("bench/news/0/0").decode())  # what was said once, said again
    assert news.read() == []
    news.ask_to_stop()
    assert client.is_asked_to_stop()


def test_every_run_has_a_secret_of_its_own() -> None:
    assert len({MessageServer(1).secret for _ in range(3)}) == 3
    assert opened("one", "key", sealed("one", "key", "a word").encode()) == "a word"
    assert opened("other", "key", sealed("one", "key", "a word").encode()) is None
    assert opened("one", "other", sealed("one", "key", "a word").encode()) is None


def test_what_processes_exchange_is_never_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    with pytest.raises(pickle.UnpicklingError):
        group._unpacked(torch.frombuffer(bytearray(pickle.dumps(Evil(), protocol=2)), dtype=torch.uint8))
    with pytest.raises(pickle.UnpicklingError):
        group._unpacked(group._packed(Evil()))
    assert not (tmp_path / "executed").exists()


def test_what_processes_exchange_comes_as_it_was() -> None:
    value = {"random": {"host": torch.get_rng_state()}, "buffers": {"a": torch.ones(2, dtype=torch.bfloat16)}, "n": 1.5}
    found: Any = group._unpacked(group._packed(value))
    assert torch.equal(found["random"]["host"], value["random"]["host"])  # type: ignore[index]
    assert found["buffers"]["a"].dtype == torch.bfloat16
    assert found["n"] == 1.5
    assert group._unpacked(group._packed(None)) is None


# ---- where they meet -----------------------------------------------------------------------------------------


def test_processes_of_one_machine_meet_in_a_file_and_others_under_the_secret(tmp_path: Path) -> None:
    minute = timedelta(minutes=1)
    here = {"WORLD_SIZE": "1", "RANK": "0", rendezvous.FOLDER: str(tmp_path)}
    assert isinstance(meeting(here, minute), FileStore)
    store, address = serve("127.0.0.1")
    away = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": str(store.port)}
    away |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    met = meeting(away | {rendezvous.SECRET: "secret"}, minute)
    assert isinstance(met, PrefixStore)
    met.set("key", "value")
    assert not store.check(["key"])
    assert not any("secret" in key for key in store.list_keys())
    away = {**away, "MASTER_PORT": "0"} | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    first = meeting(away, minute)  # as srun starts it: the first process serves
    assert isinstance(first, TCPStore)
    assert listening()[first.port] == LOOPBACK


def test_gloo_and_nccl_listen_where_the_others_are() -> None:
    one = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "GLOO_SOCKET_IFNAME": "eth9"}
    assert confined(one) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert confined({"WORLD_SIZE": "2", "SLURM_NNODES": "1", "MASTER_ADDR": "x"})["GLOO_SOCKET_IFNAME"] == "lo"
    two = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert confined(two) == {"GLOO_SOCKET_IFNAME": "lo"}  # the way to that address
    assert confined(two | {"GLOO_SOCKET_IFNAME": "eth9"}) == {}  # the user's choice
    assert interface_towards("no such host.invalid") is None


def test_runs_on_one_node_of_slurm_meet_on_loopback_whatever_the_address() -> None:
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "MASTER_ADDR": "node7"}
    assert place_of(slurm)["MASTER_ADDR"] == "127.0.0.1"  # type: ignore[index]


def test_a_name_that_means_loopback_here_is_not_where_others_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of("10.1.2.3") == "10.1.2.3"
    assert address_of("localhost") == "127.0.0.1"
    debian = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: debian)
    monkeypatch.setattr(rendezvous, "_source", lambda host: "10.0.0.7")
    assert address_of("node7") == "10.0.0.7"

    def unknown(*arguments: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(BenchError, match="the address of node7 cannot be found: Name or service not known; set MASTER"):
        address_of("node7")


def test_what_holds_a_secret_is_its_users_alone_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "calls.json", "{}", private=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "calls.json").stat().st_mode) == 0o600

"""Rendezvous of the processes of a run, closed to everyone else.

On one machine all of them listen on loopback only, and meet in a file that is their user's alone. On several machines
they listen on the interface by which these reach each other. What they tell the starter is sealed with a secret that
each run has for itself; a message without the seal counts for nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from bench.core.errors import BenchError

SECRET = "BENCH_RUN_SECRET"
"""Environment variable of a run's processes: the secret, which only their user can read there."""

FOLDER = "BENCH_RUN_RENDEZVOUS"
"""Environment variable of a run's processes on one machine: the private folder in which they meet."""

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def new_secret() -> str:
    """Return a secret for one run."""
    return secrets.token_hex(32)


def sealed(secret: str, key: str, text: str) -> str:
    """Return a text with an HMAC under the run's secret, valid for one key of the store."""
    return f"{_proof(secret, key, text)} {text}"


def opened(secret: str, key: str, content: bytes) -> str | None:
    """Return the text of a sealed message; None if its HMAC does not match the secret and the key."""
    # The proof has no blank in it, so that the first one is its end, whatever the text holds.
    proof, _, text = content.decode(errors="replace").partition(" ")
    # compare_digest takes as long for every wrong proof. Bytes, since it refuses strings that are not ASCII.
    return text if hmac.compare_digest(proof.encode(), _proof(secret, key, text).encode()) else None


def _proof(secret: str, key: str, text: str) -> str:
    # The key is in it too: a sealed message that is copied to another key does not count there.
    return hmac.new(secret.encode(), f"{key}\0{text}".encode(errors="replace"), hashlib.sha256).hexdigest()


# ---- stores --------------------------------------------------------------------------------------------------


def serve(host: str, port: int = 0) -> tuple[TCPStore, str]:
    """Start torch's store of keys and values on one address; by itself torch would listen on all of them.

    Args:
        host: address or name of this machine, as others reach it.
        port: default one that is free.

    Returns:
        The store and the address on which it listens.

    Raises:
        BenchError: this machine does not have the address, or the port is taken.
    """
    address = address_of(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, port), family=family)
    except OSError as error:
        hint = {
            errno.EADDRNOTAVAIL: "MASTER_ADDR must be an address of the node of process 0",
            errno.EADDRINUSE: "set MASTER_PORT to a port that is free there",
        }.get(error.errno or 0, "set MASTER_ADDR to another address of this node")
        raise BenchError(f"processes cannot meet at {host}, port {port}: {error.strerror}; {hint}") from error
    port = listening.getsockname()[1]
    # The store closes the socket, which is why it is detached here.
    store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return store, address


def address_of(host: str) -> str:
    """Return the address on which a machine is reached by the name that it has for others.

    Some systems have their own name mean loopback (Debian: 127.0.1.1), where no other machine would get through; then
    it is the address of the interface that leads out.
    """
    # ValueError: it is a name, which is looked up below.
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise BenchError(f"the address of {host} cannot be found: {error}; set MASTER_ADDR to an address") from error
    if host == "localhost" or not ipaddress.ip_address(address).is_loopback:
        return address
    # 192.0.2.1 is reserved for examples (RFC 5737) and stands for any host outside.
    return _source("192.0.2.1") or address


def meeting(environment: Mapping[str, str], timeout: timedelta) -> Store:
    """Return the store in which a process meets the others of its run.

    Args:
        environment: with torch's variables, and ours.
        timeout: how long the processes wait for each other.
    """
    store: Store
    if folder := environment.get(FOLDER):
        # All on this machine: a file in a folder of this user alone, and no port.
        store = FileStore(os.path.join(folder, "store"), int(environment["WORLD_SIZE"]))
    else:
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        # Rank 0 serves the store if the starter does not; torchrun sets this variable too.
        served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or environment["RANK"] != "0"
        if served:
            store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
        else:
            store, _ = serve(host, port)
    store.set_timeout(timeout)
    if secret := environment.get(SECRET):
        # Keys of the run cannot be guessed without its secret, from which the prefix is made.
        store = PrefixStore(_proof(secret, "rendezvous", ""), store)
    return store


# ---- interfaces ----------------------------------------------------------------------------------------------


def is_on_one_machine(environment: Mapping[str, str]) -> bool:
    """Return whether all processes of a run are on this machine, as srun, torchrun or our starter tells."""
    if "LOCAL_WORLD_SIZE" in environment:
        return environment["LOCAL_WORLD_SIZE"] == environment["WORLD_SIZE"]
    return environment.get("SLURM_NNODES") == "1"


def confined(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that restrict gloo and NCCL to the network interface of the run's processes."""
    if is_on_one_machine(environment):
        # Over a user's own setting: nothing of a run on one machine is reachable from outside.
        loopback = interface_towards(LOOPBACK)
        return {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} if loopback else {}
    # On several machines the user's own setting counts.
    if "GLOO_SOCKET_IFNAME" in environment or not (towards := interface_towards(environment["MASTER_ADDR"])):
        return {}
    return {"GLOO_SOCKET_IFNAME": towards}


def interface_towards(host: str) -> str | None:
    """Return the name of the network interface by which this machine reaches a host; None if it is unknown."""
    ours = _source(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an IPv4 address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                # struct ifreq: 16 bytes of name, then a sockaddr_in, whose address is at bytes 20 to 23.
                if socket.inet_ntoa(answer[20:24]) == ours:
                    return name
    return None


def _source(host: str) -> str | None:
    """Return this machine's address on the route to a host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a UDP socket only chooses the route, and with it our address; the port does not matter.
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])

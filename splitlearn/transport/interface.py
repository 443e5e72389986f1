"""The network interface that RPC listens on."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from splitlearn.errors import UserError
from splitlearn.transport.place import Place

INTERFACE = "TP_SOCKET_IFNAME"  # the environment variable that says where RPC listens
SIOCGIFADDR = 0x8915  # linux/sockios.h


@contextmanager
def bound_interface(place: Place) -> Iterator[str]:
    """Binds RPC to the network interface that leads to where the ranks meet, and yields its address.

    It is the loopback where all ranks are on one machine.
    """
    if place.one_machine:
        address = "127.0.0.1"
    else:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((place.host, place.port))  # sends nothing
                address = probe.getsockname()[0]
        except (OSError, UnicodeError) as error:
            key = "MASTER_ADDR" if place.is_fleet else "rpc.host"
            raise UserError(
                f"{key}={place.host} cannot be reached ({error}): give the server's name or IPv4 address"
            ) from None
    if INTERFACE in os.environ:
        yield address  # the user chose the interface
        return
    if name := _name_of(address):
        os.environ[INTERFACE] = name
    try:
        yield address
    finally:
        os.environ.pop(INTERFACE, None)  # for what else this process runs, or starts


def _name_of(address: str) -> str | None:
    """Name of this machine's interface with an IPv4 address."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                request = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]) == address:
                    return name
            except OSError:
                continue  # an interface without an IPv4 address
    return None

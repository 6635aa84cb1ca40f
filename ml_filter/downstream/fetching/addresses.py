"""Which addresses may be asked: a page, redirect or sitemap must not lead to the network that this machine is in.

The address is checked when a socket is made for it, after the name was resolved, so that a name that resolves to
another address the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

BLOCKED = "not a public address; allow_local (--allow-local) permits it"


class BlockedAddress(OSError):
    """An address that is not public."""

    def __init__(self) -> None:
        super().__init__(BLOCKED)  # the same for all addresses of a host: aiohttp then raises it, and not a summary


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, also if an IPv6 address embeds an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            ip = embedded
        elif ip.is_site_local:  # fec0::/10 is deprecated, but networks may still use it
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def guarded_socket(info: Any) -> socket.socket:
    """A socket for an address as `getaddrinfo` describes it.

    Raises:
        BlockedAddress: it is not public.
    """
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise BlockedAddress
    return socket.socket(family, kind, protocol)


def is_public_name(host: str) -> bool:
    """Whether a host may be asked through a proxy, which resolves the name: it is not a private address itself."""
    try:
        return is_public(host.strip("[]"))
    except ValueError:
        name = host.lower().rstrip(".")
        labels = name.split(".")
        # Resolvers read 127.1, 2130706433 and 0x7f000001 as addresses too, and a single label as a local name.
        if len(labels) == 1 or labels[-1].isdigit() or labels[-1].startswith("0x"):
            return False
        return not name.endswith((".localhost", ".local", ".localdomain", ".internal"))

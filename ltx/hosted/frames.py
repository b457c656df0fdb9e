"""The pictures of a job, downloaded from wherever it says but not from inside this network."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from ltx.cancellation import Cancellation
from ltx.errors import JobError, Unavailable
from ltx.hosted.bodies import HEAD_BYTES, name_answer
from ltx.hosted.http import Http, Reply, TooLarge
from ltx.hosted.retry import Retry
from ltx.job import MAX_FRAME_BYTES
from ltx.settings import Settings, is_plain_url
from ltx.text import one_line

FRAME_SECONDS = 120.0
FRAME_RETRY = Retry(tries=3, cap=10)
FRAME_REDIRECTS, MAX_ADDRESSES = 3, 4


class Refused(Exception):
    """Why a frame's address is not tried again."""


# All of IPv6 that is routed; the rest is local, or leads to an IPv4 address nobody has checked.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# Relays of 6to4, which do the same, and the protocol assignments that is_global lets pass.
RELAYS = [ipaddress.ip_network(net) for net in ("2002::/16", "192.88.99.0/24", "192.0.0.0/24")]
# What a provider gives a home: there every printer has an address that looks public.
HOME_PREFIX = {4: 32, 6: 56}


def read_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IP address, the IPv4 one where IPv6 wraps it or leads to it (NAT64, RFC 6052)."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return getattr(ip, "ipv4_mapped", None) or ip


def is_public(address: str) -> bool:
    """True for an address of the open internet, not of this home."""
    ip = read_ip(address)
    routed = ip.version == 4 or ip in GLOBAL_IPV6
    return routed and ip.is_global and not ip.is_multicast and not any(ip in net for net in RELAYS)


def is_at_home(address: str) -> bool:
    """Whether a public address is this machine's, or in its home's IPv6 network."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the kernel only tells which address of ours it would come from.
        probe.connect((address, 9))
        return shares_home(address, probe.getsockname()[0])
    return False


def shares_home(address: str, own: str) -> bool:
    ip, here = read_ip(address), read_ip(own)
    return ip in ipaddress.ip_network((here, HOME_PREFIX[here.version]), strict=False)


def connect_allowed(host: str, port: int, timeout: float, allowed: frozenset[str]) -> socket.socket:
    """Connects to an address that was looked up once and found to be public or allowed by name.

    The connection goes to that very address, so a name that changes its answer gains nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as error:
        raise Refused(f"{one_line(host, 80)} is no host name") from error
    addresses = [str(entry[4][0]) for entry in found]
    named = not allowed.isdisjoint({host.lower(), f"{host.lower()}:{port}"})
    networks = [ipaddress.ip_network(one, strict=False) for one in allowed if "/" in one]
    named = named or all(any(read_ip(one) in net for net in networks) for one in addresses)
    if not named and not all(is_public(one) and not is_at_home(one) for one in addresses):
        fix = "allow it with FRAME_HOSTS, if it is yours"
        raise Refused(f"{one_line(host, 80)} is at a private address; {fix}")
    return connect_first(addresses[:MAX_ADDRESSES], port, timeout)


def connect_first(addresses: Sequence[str], port: int, timeout: float) -> socket.socket:
    """A connection to the first of the addresses that takes one."""
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), timeout)
    return socket.create_connection((addresses[-1], port), timeout)


class FrameHost:
    """Downloads frames from wherever a job says, but not from inside this network."""

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.cancellation = cancellation
        # A proxy would resolve names itself and make the address check worthless.
        connect = functools.partial(connect_allowed, allowed=settings.frame_hosts)
        self.http = Http(wait=cancellation.wait, proxies=False, connect=connect)
        self.http.session.verify = settings.ca_bundle or True

    def fetch(self, url: str, path: Path, field: str) -> None:
        """Three tries. Raises JobError frame_unavailable, or frame_invalid above 64 MB."""
        where = f"{field} ({one_line(url.split('?')[0], 120)})"

        def attempt(_tries: int) -> None:
            try:
                self._follow(url, path)
            except Unavailable as error:
                if isinstance(error.__cause__, TooLarge):
                    raise JobError("frame_invalid", f"{where}: it is above 64 MB.") from error
                raise

        try:
            FRAME_RETRY.run(attempt, self.cancellation.wait)
        except (Refused, Unavailable) as error:
            raise JobError("frame_unavailable", f"{where}: {error}.") from error

    def _follow(self, url: str, path: Path) -> None:
        """Redirects are followed by hand: requests would read their bodies whole."""
        for _ in range(1 + FRAME_REDIRECTS):
            if not is_plain_url(url):
                raise Refused("it redirects to something else than a plain http(s) address")
            reply = self._get(url, path)
            if not 300 <= reply.status < 400:
                break
            with contextlib.suppress(ValueError):
                url = urljoin(url, reply.headers.get("location", ""))
        else:
            raise Refused(f"it redirects more than {FRAME_REDIRECTS} times")
        if reply.status in (408, 425, 429) or reply.status >= 500:
            raise Unavailable(f"it answers {reply.status}", reply.retry_after())
        if not reply.ok:
            raise Refused(f"it answers {reply.status}")
        with path.open("rb") as file:
            came = name_answer(file.read(HEAD_BYTES), reply.headers.get("content-encoding", ""))
        if came:
            raise Unavailable(f"the host sends {came} and no picture", reply.retry_after())

    def _get(self, url: str, path: Path) -> Reply:
        options: dict[str, Any] = {"limit": MAX_FRAME_BYTES, "seconds": FRAME_SECONDS}
        with path.open("wb") as file:
            return self.http.exchange("GET", url, sink=file, **options)

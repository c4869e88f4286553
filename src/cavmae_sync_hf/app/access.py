# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Under which names the page may be reached, and from which pages it may be used.

A page of somebody else's, open in the same browser, can have its own name point at this machine (DNS rebinding) or can
send requests here under our name. The first shows in `Host`, the second in `Origin` and `Sec-Fetch-Site`; browsers let
no script change these.
"""

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..model.errors_cavmae_sync import AppError

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """Where a page is: a host in lower case without a trailing dot, and a port; 0 where none is given."""

    host: str
    port: int = 0

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as a number, where it is one."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        return getattr(address, "ipv4_mapped", None) or address


def parse_place(text: str) -> Place | None:
    """`name`, `name:port`, `1.2.3.4:port` or `[::1]:port`; `None` for what is none of these."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/?#\\\s]+)(?::(\d{1,5}))?", text)
    if match is None:
        return None
    host = match[1].lower()
    if host.startswith("["):
        host = host[1:-1]
        place = Place(host, int(match[2] or 0))
        return place if place.address is not None else None
    host = host.removesuffix(".")
    return Place(host, int(match[2] or 0)) if len(host) <= 253 and _NAME.fullmatch(host) else None


def parse_origin(text: str) -> Place | None:
    """An `Origin` header, with its scheme's port where it gives none; `None` for `null` and anything that is none."""
    scheme, _, rest = text.partition("://")
    place = parse_place(rest) if scheme.lower() in _DEFAULT_PORTS else None
    return place and Place(place.host, place.port or _DEFAULT_PORTS[scheme.lower()])


@dataclass
class Access:
    """Decides about requests by their headers.

    Attributes:
        bound: Address or name that the server listens at. At an address that stands for all of them, every address in
            numbers is right, since only names can be pointed elsewhere.
        own: Further names of this machine.
        allowed: Names that the operator gave; `.name` stands for all beneath it. Pages there may use this one whatever
            name a proxy between asks for it under.
        everything: Whether any name is right.
    """

    bound: str = "127.0.0.1"
    own: frozenset[str] = frozenset()
    allowed: set[str] = field(default_factory=set)
    everything: bool = False

    @classmethod
    def served_at(
        cls,
        server_name: str,
        allow_hosts: Iterable[str] = (),
        *,
        root_path: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> "Access":
        """What follows from how the page is served.

        Args:
            server_name: Address or name that the server listens at.
            allow_hosts: More names; `.example.org` for all beneath a name, `*` for any name at all.
            root_path: Path, or address, that a proxy serves the page under.
            environment: Tells of a Space, which is reached through its host's proxy alone.

        Raises:
            AppError: One of `allow_hosts` is not a name.
        """
        machine = socket.gethostname().lower()
        access = cls(server_name.strip("[]").lower(), frozenset(("localhost", machine, f"{machine}.local")))
        allowed = [*allow_hosts, *filter(None, re.split(r"[,\s]+", environment.get("SPACE_HOST", "")))]
        if environment.get("SPACE_ID"):
            allowed.append(".hf.space")
        if root_path and "://" in root_path:
            allowed.append(urlsplit(root_path).netloc)
        for name in allowed:
            access.allow(name)
        return access

    def allow(self, name: str) -> None:
        """Add a name; a port is of no matter.

        Raises:
            AppError: It is not a name.
        """
        if name == "*":
            self.everything = True
            return
        with contextlib.suppress(UnicodeError):
            name = name.encode("idna").decode("ascii") if not name.isascii() else name
        numbers = Place(name).address is not None
        place = Place(name) if numbers else parse_place(name.removeprefix("*").removeprefix("."))
        if place is None:
            raise AppError(
                f"{name!r} is no host name; give it as in page.example.org, without https:// and without a path, "
                ".example.org for all names beneath that one, or * for any name."
            )
        self.allowed.add(("." if name.startswith((".", "*.")) else "") + place.host.lower())

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request is not answered, as a sentence; `None` where it may be.

        Args:
            method: Of the request, such as `"POST"`.
            headers: Its headers as ASGI gives them, names in lower case.
        """
        found: dict[str, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        hosts, origins = found.get("host", []), found.get("origin", [])
        if len(hosts) != 1 or len(origins) > 1:
            return "A request must say once, in its Host header, under which name it asks for the page."
        host = parse_place(hosts[0])
        if host is None:
            return "The Host header of the request holds no host name."
        if not self._is_ours(host):
            return (
                f"This page is not served under the name {host.host}. If it should be, whoever runs it starts it with "
                f"--allow-host {host.host} (in Python: build_app(allow_hosts=[{host.host!r}]))."
            )
        if origins:
            origin = parse_origin(origins[0])
            if origin is not None and (_is_same(origin, host) or self._is_allowed(origin)):
                return None
            told = origin.host if origin is not None else "an unknown place"
            remedy = "" if origin is None else f" If it may, whoever runs it starts it with --allow-host {told}."
            return f"A page at {told} may not use this page.{remedy}"
        site, mode = (found.get(f"sec-fetch-{name}", [""])[0] for name in ("site", "mode"))
        # Following a link here is all that other pages may do.
        follows_link = mode == "navigate" and method in ("GET", "HEAD")
        if site in ("cross-site", "same-site") and not follows_link and not self.everything:
            return "Another page may not use this page."
        return None

    def _is_ours(self, place: Place) -> bool:
        if self._is_allowed(place) or place.host == self.bound or place.host in self.own:
            return True
        address, bound = place.address, Place(self.bound).address
        if address is None:
            return False
        return address.is_loopback or address == bound or (bound is not None and bound.is_unspecified)

    def _is_allowed(self, place: Place) -> bool:
        """Whether the operator gave the name, or one that it lies beneath."""
        parts = place.host.split(".")
        above = {"." + ".".join(parts[first:]) for first in range(len(parts))}
        return self.everything or place.host in self.allowed or bool(above & self.allowed)


def _is_same(origin: Place, host: Place) -> bool:
    """Whether a page's origin is what the request calls the server; the scheme is unknown behind a proxy."""
    return origin.host == host.host and origin.port in ((host.port,) if host.port else _DEFAULT_PORTS.values())

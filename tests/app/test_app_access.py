# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Under which names the web page answers, and to which other pages."""

import socket

import pytest

from cavmae_sync_hf import AppError
from cavmae_sync_hf.app.access import Access

HERE = "127.0.0.1:7860"
OWN = socket.gethostname()


def refusal(access: Access, host: str | None = HERE, method: str = "GET", **headers: str) -> str | None:
    """What a request with these headers is told; `sec_fetch_site=` stands for `Sec-Fetch-Site`."""
    sent = {} if host is None else {"host": host}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return access.refusal(method, [(name.encode(), value.encode()) for name, value in sent.items()])


def served_at(name: str, *allow_hosts: str, **options) -> Access:
    return Access.served_at(name, allow_hosts, **{"environment": {}} | options)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:7860", "127.0.0.1", "127.0.0.2:80", "localhost:7860", "localhost", "LocalHost:7860", "localhost.",
        "localhost.:9000", "[::1]:7860", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:7860", OWN, OWN.upper(),
        f"{OWN}.local:7860",
    ],
)  # fmt: skip
def test_host__of_this_machine_is_answered_at_any_port(host):
    assert refusal(served_at("127.0.0.1"), host) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
        "192.168.1.5:7860", "0.0.0.0:7860", "[fe80::1]:7860", "xn--bcher-kva.example", "2130706433", "0x7f.1",
    ],
)  # fmt: skip
def test_host__of_another_name_is_refused_and_the_option_named(host, method):
    told = refusal(served_at("127.0.0.1"), host, method)

    name = host.removesuffix(":7860").strip("[]")
    assert f"--allow-host {name} " in told and f"allow_hosts=[{name!r}]" in told


@pytest.mark.parametrize(
    "host",
    [
        None, "", " ", ":7860", "localhost:port", "localhost:123456", "user@localhost", "localhost/evil.example",
        "http://localhost", "[::1", "::1", "[evil.example]", "local host", "localhost..", ".localhost", "-", "a" * 300,
        "localhost, evil.example", "b\u00fccher.example",
    ],
)  # fmt: skip
def test_host__that_is_missing_or_no_name_is_refused(host):
    assert "Host header" in refusal(served_at("127.0.0.1"), host)


def test_host__given_twice_is_refused():
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]

    assert "Host header" in served_at("127.0.0.1").refusal("GET", headers)


@pytest.mark.parametrize(
    ("server_name", "host", "is_answered"),
    [
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "[2001:db8::7]:7860", True),
        ("::", "10.0.0.1", True),
        ("[::]", "localhost", True),
        ("0.0.0.0", OWN, True),
        ("0.0.0.0", "evil.example", False),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("192.168.1.5", "192.168.1.6:7860", False),
        ("192.168.1.5", "localhost", True),
        ("2001:db8::7", "[2001:DB8:0::7]:7860", True),
        ("Lab.Example", "lab.example:7860", True),
        ("lab.example", "other.example", False),
    ],
)
def test_host__depends_on_where_the_page_is_served(server_name, host, is_answered):
    assert (refusal(served_at(server_name), host) is None) == is_answered


@pytest.mark.parametrize(
    ("allowed", "host", "is_answered"),
    [
        ("page.example", "page.example", True),
        ("page.example", "PAGE.example.:8443", True),
        ("page.example:443", "page.example", True),
        ("page.example", "sub.page.example", False),
        (".page.example", "sub.page.example", True),
        (".page.example", "page.example", True),
        ("*.page.example", "a.b.page.example", True),
        (".page.example", "evilpage.example", False),
        ("b\u00fccher.example", "xn--bcher-kva.example", True),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("[2001:db8::7]", "[2001:db8::7]:7860", True),
        ("2001:db8::7", "[2001:db8::7]:7860", True),
        ("*", "anything.example", True),
    ],
)
def test_host__may_be_allowed(allowed, host, is_answered):
    assert (refusal(served_at("127.0.0.1", allowed), host) is None) == is_answered


@pytest.mark.parametrize("name", ["https://page.example", "page.example/path", "", "two names", "*.*", "a..b"])
def test_allow_hosts__must_be_names(name):
    with pytest.raises(AppError, match="is no host name; give it as in page.example.org"):
        served_at("127.0.0.1", name)


def test_host__of_a_proxy_is_known_from_the_root_path_and_in_a_space_from_the_environment():
    proxied = served_at("127.0.0.1", root_path="https://page.example:8443/app")
    space = served_at("0.0.0.0", environment={"SPACE_ID": "a/b", "SPACE_HOST": "own.example"})

    assert refusal(proxied, "page.example") is None and refusal(proxied, "evil.example")
    assert refusal(space, "a-b.hf.space") is None and refusal(space, "own.example") is None
    assert refusal(space, "evil.example") and refusal(served_at("0.0.0.0"), "a-b.hf.space")
    assert refusal(served_at("127.0.0.1", root_path="/app")) is None


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("host", "origin", "is_answered"),
    [
        (HERE, "http://127.0.0.1:7860", True),
        ("localhost:7860", "http://LOCALHOST:7860", True),
        ("localhost", "http://localhost", True),
        ("localhost", "https://localhost", True),  # what ends the encryption leaves the name
        ("localhost:80", "http://localhost", True),
        ("[::1]:7860", "http://[::1]:7860", True),
        ("localhost:7860", "http://localhost:3000", False),  # another program on this machine
        ("localhost:7860", "http://127.0.0.1:7860", False),
        (HERE, "http://evil.example", False),
        (HERE, "https://evil.example:7860", False),
        (HERE, "null", False),
        (HERE, "", False),
        (HERE, "file://", False),
        (HERE, "chrome-extension://abc", False),
        (HERE, "http://127.0.0.1:7860@evil.example", False),
        (HERE, "http://127.0.0.1:7860/", False),
    ],
)
def test_origin__must_be_the_page_itself(host, origin, is_answered, method):
    told = refusal(served_at("127.0.0.1"), host, method, origin=origin)

    assert (told is None) == is_answered
    assert told is None or "may not use this page" in told


def test_origin__of_an_allowed_name_is_answered_whatever_the_proxy_calls_us():
    access = served_at("127.0.0.1", "page.example")

    assert refusal(access, HERE, "POST", origin="https://page.example") is None
    told = refusal(access, HERE, "POST", origin="https://evil.example")
    assert "--allow-host evil.example" in told
    # What a proxy, or anybody, says of other names is not asked.
    assert refusal(access, "evil.example", "POST", x_forwarded_host="page.example")
    assert refusal(access, HERE, "POST", origin="https://evil.example", x_forwarded_host="evil.example")


def test_origin__given_twice_is_refused():
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://evil.example")]

    assert served_at("127.0.0.1").refusal("POST", headers)


@pytest.mark.parametrize(
    ("site", "mode", "method", "is_answered"),
    [
        ("same-origin", "cors", "POST", True),
        ("none", "navigate", "GET", True),
        ("cross-site", "navigate", "GET", True),  # a link to the page
        ("cross-site", "navigate", "POST", False),
        ("cross-site", "no-cors", "GET", False),  # an image or a script in somebody else's page
        ("same-site", "no-cors", "GET", False),
    ],
)
def test_other_pages__may_link_here_and_no_more(site, mode, method, is_answered):
    told = refusal(served_at("127.0.0.1"), HERE, method, sec_fetch_site=site, sec_fetch_mode=mode)

    assert (told is None) == is_answered

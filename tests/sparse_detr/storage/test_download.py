"""Checked downloads, against a real server with TLS."""

from __future__ import annotations

import hashlib
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sparse_detr.errors import StorageError
from sparse_detr.storage import download
from sparse_detr.storage.download import absolute_address, check_address, parse_address, read_checked

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def kept(web: Any) -> list[str]:
    folder = web.authority.parent / "cache" / "sparse-detr"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_download_is_checked_and_kept(web: Any) -> None:
    web.files["/a.pth"] = CONTENT
    address = web.url(f"/a.pth#sha256={DIGEST}")
    assert read_checked(address) == CONTENT
    assert kept(web) == [DIGEST]
    web.files.clear()
    assert read_checked(address) == CONTENT
    assert read_checked(web.url(f"/other-{DIGEST[:8]}.pth")) == CONTENT
    assert web.asked == ["/a.pth"]


def test_a_kept_file_that_is_damaged_is_fetched_again(web: Any) -> None:
    web.files["/a.pth"] = CONTENT
    address = web.url(f"/a.pth#sha256={DIGEST.upper()}")
    read_checked(address)
    (web.authority.parent / "cache" / "sparse-detr" / DIGEST).write_bytes(CONTENT[:-1])
    assert read_checked(address) == CONTENT
    assert web.asked == ["/a.pth"] * 2


def test_without_a_place_to_keep_it(
    web: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    web.files["/a.pth"] = CONTENT
    monkeypatch.setenv("XDG_CACHE_HOME", str(web.authority))  # a file
    assert read_checked(web.url(f"/a.pth#sha256={DIGEST}")) == CONTENT
    assert "not kept" in caplog.text


@pytest.mark.parametrize("asked", ["0" * 64, "0" * 8, DIGEST[:-1] + "x" if DIGEST[-1] != "x" else ""])
def test_another_checksum(web: Any, asked: str) -> None:
    web.files["/a.pth"] = CONTENT
    message = f"its sha256 is {DIGEST}, not {asked} as asked" if "x" not in asked else "is no checksum; give 8 to 64"
    with pytest.raises(StorageError, match=message):
        read_checked(web.url(f"/a.pth#sha256={asked}"))
    assert kept(web) == []


def test_the_hash_in_the_name_counts_unless_another_is_given(web: Any) -> None:
    web.files["/net-01234567.pth"] = CONTENT
    with pytest.raises(StorageError, match=f"{DIGEST}, not 01234567 as asked"):
        read_checked(web.url("/net-01234567.pth"))
    assert read_checked(web.url(f"/net-01234567.pth#sha256={DIGEST[:8]}")) == CONTENT


@pytest.mark.parametrize("ask", [read_checked, check_address])
def test_without_a_checksum_the_error_has_it(web: Any, ask: Any) -> None:
    web.files["/a.pth?token=secret"] = CONTENT
    with pytest.raises(
        StorageError, match=rf"a\.pth: the web wants a checksum.*write #sha256={DIGEST} behind"
    ) as caught:
        ask(web.url("/a.pth?token=secret"))
    assert "secret" not in str(caught.value)


def test_check_asks_the_server_but_reads_nothing(web: Any) -> None:
    web.files["/a.pth"] = CONTENT
    check_address(web.url(f"/a.pth#sha256={'0' * 64}"))
    with pytest.raises(StorageError, match="404"):
        check_address(web.url(f"/b.pth#sha256={'0' * 64}"))
    assert kept(web) == []


def test_certificates_that_nobody_trusts(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files["/a.pth"] = CONTENT
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(StorageError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
        read_checked(web.url(f"/a.pth#sha256={DIGEST}"))
    assert web.asked == []


def redirect_to(place: str) -> Any:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_redirections_stay_with_https(web: Any) -> None:
    web.files |= {"/a.pth": CONTENT, "/there": redirect_to("/a.pth"), "/out": redirect_to("http://127.0.0.1:1/a.pth")}
    assert read_checked(web.url(f"/there#sha256={DIGEST}")) == CONTENT
    with pytest.raises(StorageError, match="leads to an address that is not https"):
        read_checked(web.url(f"/out#sha256={DIGEST[:-1]}0"))


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:100])
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b".")
        time.sleep(0.05)


def test_downloads_that_do_not_end(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files |= {"/cut": cut_short, "/drip": drip, "/silent": lambda _: time.sleep(2)}
    with pytest.raises(StorageError, match="ended after 100 of 7000 bytes"):
        read_checked(web.url(f"/cut#sha256={DIGEST}"))
    monkeypatch.setattr(download, "DEADLINE", 0.3)
    with pytest.raises(StorageError, match="not done after 0 s"):
        read_checked(web.url(f"/drip#sha256={DIGEST}"))
    monkeypatch.setattr(download, "_SILENCE", 0.3)
    with pytest.raises(StorageError, match="nothing came for 0 s"):
        read_checked(web.url(f"/silent#sha256={DIGEST}"))
    assert kept(web) == []


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StorageError, match=r"cannot be fetched.*check the network"):
        read_checked(f"https://127.0.0.1:{port}/a.pth#sha256={DIGEST}")


def test_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a b-01234567.pth"
    path.write_bytes(CONTENT)
    assert read_checked(path) == read_checked(path.name) == read_checked(f"{path.name}#sha256={DIGEST}") == CONTENT
    assert read_checked(f"file:{tmp_path}/a%20b-01234567.pth#sha256={DIGEST}") == CONTENT
    with pytest.raises(StorageError, match=f"{DIGEST}, not 00000000 as asked"):
        read_checked(f"{path.name}#sha256=00000000")
    with pytest.raises(StorageError, match="no such file"):
        read_checked("absent.pth")
    assert absolute_address(f"{path.name}#sha256={DIGEST}") == f"{path}#sha256={DIGEST}"
    check_address(path.name)


def test_absolute_addresses_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (f"https://host/a.pth?x=1#sha256={DIGEST}", "https://host/a-01234567.pth", "s3://bucket/a"):
        assert absolute_address(address) == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/a.pth#sha256=01234567", r"http:// can be read and changed"),
        ("https://user:secret@host/a.pth", "holds credentials"),
        ("https:///a.pth", "has no host"),
        ("https://host/a.pth#md5=0123", "a fragment other than #sha256="),
        ("a.pth#sha256=012345", "8 to 64 hex digits"),
        ("a.pth#sha256=", "8 to 64 hex digits"),
        ("ftp://host/a.pth", "not a store we know"),
    ],
)
def test_addresses_that_are_none(address: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        read_checked(address)
    assert "secret" not in str(caught.value)


def test_messages_show_no_query() -> None:
    assert str(parse_address("https://host/a-01234567.pth?key=secret")) == "https://host/a-01234567.pth"


def test_no_message_shows_the_query_of_an_address() -> None:
    for address in ("https://host/a.pth?token=hush#sha256=xyz", "http://host/a.pth?token=hush"):
        with pytest.raises(StorageError, match=r"host/a\.pth: ") as caught:
            parse_address(address)
        assert "hush" not in str(caught.value)

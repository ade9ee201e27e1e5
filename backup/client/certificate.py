# SPDX-License-Identifier: Apache-2.0
"""What certificate a server shows, for a person to compare: nothing is trusted for it."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from backup.wire import DEFAULT_PORT, format_fingerprint

TIMEOUT_S = 15.0


@contextmanager
def _connected(url: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError(f"{url!r} names no host")
    address = (parts.hostname, parts.port or DEFAULT_PORT)
    with (
        socket.create_connection(address, TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=parts.hostname) as secure,
    ):
        yield secure


def seen_fingerprint(url: str) -> str:
    """Return the SHA-256 of the certificate that a server shows, as the server prints it.

    Args:
        url: https://host:port.

    Raises:
        OSError: it cannot be reached, or does not speak TLS.
        ValueError: the URL has no host, or an impossible port.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connected(url, context) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None, "a TLS server shows one"
    return format_fingerprint(hashlib.sha256(certificate).digest())


def is_vouched_for(url: str) -> bool:
    """Tell whether an authority that this computer trusts vouches for a server.

    Raises:
        OSError: it cannot be reached, or does not speak TLS.
        ValueError: the URL has no host, or an impossible port.
    """
    try:
        with _connected(url, ssl.create_default_context()):
            return True
    except ssl.SSLCertVerificationError:
        return False

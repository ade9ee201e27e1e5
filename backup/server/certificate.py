# SPDX-License-Identifier: Apache-2.0
"""The server's certificate: made at the first start, then kept.

Clients pin its SHA-256, so nobody has to vouch for it.  To use a certificate from an authority,
put it in the place of these two files.
Not here: renewal.  A pinned certificate that changed would lock every client out.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backup.repository import StoreDamagedError
from backup.shared.text import reason_of
from backup.store.files import translated_errors

KEY_NAME = "server.key"
CERTIFICATE_NAME = "server.crt"
VALIDITY = datetime.timedelta(days=30 * 365)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A key and a certificate that belong together."""

    key_path: Path
    path: Path
    fingerprint: bytes  # SHA-256 of the certificate in DER

    @classmethod
    def open(cls, directory: Path, host: str) -> ServerCertificate:
        """Return the certificate in `directory`; make one if it is missing.

        Args:
            directory: the server's data directory.
            host: what the server listens on; goes into a new certificate.

        Raises:
            StoreDamagedError: the files cannot be used, or only one of them is there.
        """
        key_path, path = directory / KEY_NAME, directory / CERTIFICATE_NAME
        if not key_path.exists() and not path.exists():
            with translated_errors("making the certificate"):
                _make(key_path, path, host)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path, key_path)
            certificate = ssl.PEM_cert_to_DER_cert(_first_certificate(path.read_text("ascii")))
        except (OSError, ValueError) as error:
            raise StoreDamagedError(
                f"{KEY_NAME} and {CERTIFICATE_NAME} in {directory} cannot be used: "
                f"{reason_of(error)}"
            ) from error
        return cls(key_path, path, hashlib.sha256(certificate).digest())


def _make(key_path: Path, path: Path, host: str) -> None:
    """Make a self-signed certificate; both files appear complete, the certificate last."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rebuildkit server")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    new_key, new_certificate = _beside(key_path), _beside(path)
    _write_private(new_key, private)
    _write_private(new_certificate, certificate.public_bytes(Encoding.PEM))
    # Two renames cannot be one step; a key without certificate is repaired by deleting it.
    new_key.replace(key_path)
    new_certificate.replace(path)


def _names(host: str) -> list[x509.GeneralName]:
    """Return the names that clients may know this server by."""
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    for candidate in dict.fromkeys((host, socket.gethostname())):
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            if candidate.isascii() and candidate != "localhost":
                names.append(x509.DNSName(candidate))
        else:
            if not address.is_loopback and not address.is_unspecified:
                names.append(x509.IPAddress(address))
    return names


def _first_certificate(text: str) -> str:
    """Return the first certificate of a PEM file, the server's own."""
    end = "-----END CERTIFICATE-----"
    start = text.find("-----BEGIN CERTIFICATE-----")
    if start < 0 or end not in text:
        raise ValueError("no certificate in it")
    return text[start : text.index(end) + len(end)]


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, and have it on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)

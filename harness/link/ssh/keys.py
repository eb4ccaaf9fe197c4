# SPDX-License-Identifier: MIT
"""Keys that live as long as one session, in memory on this side."""

import io
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TYPE = b"ssh-ed25519"


@dataclass(frozen=True)
class Keys:
    """What both ends prove themselves with, and what each is expected to prove.

    Attributes:
        host: the guest's private key, in dropbear's format.
        pinned: the public key this side expects of the guest, in SSH's wire format.
        client: this side's private key.
        authorized: the line of the guest's ``authorized_keys``.
    """

    host: bytes
    pinned: bytes
    client: paramiko.PKey
    authorized: str

    @classmethod
    def fresh(cls) -> "Keys":
        """Two new Ed25519 pairs."""
        host, client = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        pem = client.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        key = paramiko.Ed25519Key(file_obj=io.StringIO(pem.decode()))
        return cls(
            host=_dropbear(host),
            pinned=_string(_TYPE) + _string(_public(host)),
            client=key,
            authorized=f"{_TYPE.decode()} {key.get_base64()}\n",
        )


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    """The key as dropbear keeps it: its type, then both halves as one string (dropbear's ed25519.c)."""
    private = key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    return _string(_TYPE) + _string(private + _public(key))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _string(data: bytes) -> bytes:
    """A string as RFC 4251, section 5, puts it."""
    return len(data).to_bytes(4, "big") + data

"""Certificates of a run's ranks: from an authority of its own, or from the token alone.

How it works: the ranks of a run trust one authority, and each has a certificate that says which rank it is: the name
is "server" or "client3", and a client's cannot serve, nor a server's be a client's. With nothing but the token, all
ranks have the same key, which scrypt makes of the token, and trust nothing but the certificate of that key.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitlearn.transport.place import SERVER

SALT = b"splitlearn tls 1"
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MB and some 50 ms for each token that somebody tries
DRIFT = datetime.timedelta(days=1)  # that clocks may differ by
ALWAYS = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31)  # no clock can spoil it


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        """The private key, encrypted where there is a password."""
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def authority(days: int) -> Identity:
    """A new authority, whose certificates are all that a run's ranks trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("splitlearn authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(name, name, key, *_from_now(days)).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Identity(builder.sign(key, hashes.SHA256()), key)


def issue(by: Identity, rank: str, days: int) -> Identity:
    """A new key and certificate of a rank, "server" or "client3"."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    builder = _builder(_named(rank), by.certificate.subject, key, *_from_now(days))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(rank)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose_of(rank)]), critical=False)
    builder = builder.add_extension(issuer, critical=False)
    return Identity(builder.sign(by.key, hashes.SHA256()), key)


def purpose_of(rank: str) -> x509.ObjectIdentifier:
    """The extended key usage that a rank's certificate needs."""
    return ExtendedKeyUsageOID.SERVER_AUTH if rank == SERVER else ExtendedKeyUsageOID.CLIENT_AUTH


def of_token(token: bytes) -> Identity:
    """The key that comes of the token, and a certificate of it that is the same on every rank."""
    seed = Scrypt(salt=SALT, length=32, **SCRYPT).derive(token)
    key, name = Ed25519PrivateKey.from_private_bytes(seed), _named("splitlearn token")
    builder = _builder(name, name, key, *ALWAYS, serial=1)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Identity(builder.sign(key, None), key)


def _builder(name: x509.Name, issuer: x509.Name, key, begin, end, serial: int = 0) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, name, key.public_key(), serial or x509.random_serial_number(), begin, end)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _from_now(days: int) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return now - DRIFT, now + datetime.timedelta(days=days)

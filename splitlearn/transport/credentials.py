"""The files that say who a rank is: its certificate, its key, and the authorities that it trusts."""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlearn.errors import UserError
from splitlearn.transport.place import SERVER

PASSWORD_VARIABLE = "SPLITLEARN_KEY_PASSWORD"
FILES = {"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"}  # of a rank, as make_certificates.py writes them


@dataclass(frozen=True)
class Credentials:
    """Files of one rank that have been looked at; `authorities` is the text of `ca`."""

    cert: Path
    key: Path
    ca: Path
    authorities: str

    def password(self) -> str:
        """Of the key's file, where OpenSSL finds that it is encrypted; it would ask at the terminal."""
        if given := os.environ.get(PASSWORD_VARIABLE):
            return given
        raise UserError(f"tls.key={self.key} is encrypted: give its password in {PASSWORD_VARIABLE}")

    def why_unusable(self, error: ssl.SSLError) -> str:
        """What OpenSSL has found wrong with them, in words."""
        key = self.key.read_bytes()
        if "KEY_VALUES_MISMATCH" in str(error):
            return f"tls.key={self.key} is not the key of tls.cert={self.cert}: give the two of one rank"
        if b"PRIVATE KEY" not in key:
            return f"tls.key={self.key} holds no private key in PEM"
        if "BAD_DECRYPT" in str(error) or b"ENCRYPTED" in key:
            return f"tls.key={self.key} does not open with the password in {PASSWORD_VARIABLE}"
        if "CERTIFICATE" not in self.authorities:
            return f"tls.ca={self.ca} holds no certificate in PEM"
        return f"tls.cert={self.cert} and tls.key={self.key} cannot be used ({error.reason or error})"


def credentials_of(rank: str, cert: str, key: str, ca: str, server_name: str) -> Credentials:
    """The files of a rank, after a look at what others would not say so well.

    Raises:
        UserError: a file cannot be read, is out of date, or is another rank's; names its key.
    """
    paths = {name: Path(os.path.expanduser(value)) for name, value in (("cert", cert), ("key", key), ("ca", ca))}
    texts = {}
    for name, path in paths.items():
        try:
            texts[name] = path.read_bytes()
        except OSError as error:
            raise UserError(f"tls.{name}={path} cannot be read ({error.strerror}): give the file's path") from None
    _check_certificate(rank, paths["cert"], texts["cert"], server_name)
    _check_authorities(paths["ca"], texts["ca"])
    if (mode := paths["key"].stat().st_mode) & 0o077:
        raise UserError(f"tls.key={paths['key']} is not private (mode {mode & 0o777:o}): chmod 600 it")
    try:
        return Credentials(**paths, authorities=texts["ca"].decode("ascii"))
    except UnicodeError:
        raise UserError(f"tls.ca={paths['ca']} holds no certificate in PEM") from None


def own_files(rank: str, folder: str) -> dict[str, str]:
    """The paths of a rank's certificate, key and authority in a folder of all ranks' or of its own.

    Raises:
        UserError: it has none for this rank, or this user may not look.
    """
    top = Path(os.path.expanduser(folder))
    for own in (top / rank, top):
        try:
            is_there = (own / FILES["cert"]).exists()
        except OSError as error:
            raise UserError(
                f"tls.folder={folder} cannot be read ({error.strerror}): give one that this user may read"
            ) from None
        if is_there:
            return {name: str(own / file) for name, file in FILES.items()}
    raise UserError(
        f"tls.folder={folder} has no certificate of {rank}: there is neither {rank}/{FILES['cert']} nor"
        f" {FILES['cert']} in it; scripts/make_certificates.py makes them"
    )


def _check_certificate(rank: str, path: Path, pem: bytes, server_name: str) -> None:
    """Says that this rank's own certificate is out of date, another's, or for something else."""
    from cryptography import x509

    from splitlearn.transport.certificates import purpose_of

    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UserError(f"tls.cert={path} holds no certificate in PEM") from None
    if why := _out_of_date(certificate):
        raise UserError(f"tls.cert={path} {why}: make a new one, or set this machine's clock")
    names = _extension(certificate, x509.SubjectAlternativeName)
    names = names.get_values_for_type(x509.DNSName) if names else []
    wanted = server_name if rank == SERVER else rank
    if wanted not in names:
        key = "tls.server_name" if rank == SERVER else "client.index"
        raise UserError(
            f"tls.cert={path} is for {' and '.join(names) or 'no name'}, and this rank is {wanted}: give its own"
            f" certificate, or set {key}"
        )
    usages, usage = _extension(certificate, x509.ExtendedKeyUsage), "serverAuth" if rank == SERVER else "clientAuth"
    if usages and purpose_of(rank) not in usages:
        raise UserError(
            f"tls.cert={path} has extended key usages, and {usage} is none of them, so that no other rank takes it:"
            f" have one issued with {usage}"
        )


def _extension(certificate: Any, kind: type) -> Any:
    """Of this kind, or None where it has none."""
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_authorities(path: Path, pem: bytes) -> None:
    """Says that all of them are out of date, by which no other rank could be trusted."""
    from cryptography import x509

    try:
        whys = [_out_of_date(one) for one in x509.load_pem_x509_certificates(pem)]
    except ValueError:  # it holds none, which is told of where it is loaded
        return
    if all(whys):
        raise UserError(f"tls.ca={path} {whys[-1]}: make all certificates anew, or set this machine's clock")


def _out_of_date(certificate: Any) -> str | None:
    """How it is, in words; None where it is not."""
    now = datetime.datetime.now(datetime.timezone.utc)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return None
    return f"expired on {end:%Y-%m-%d %H:%M} UTC" if now > end else f"is valid from {begin:%Y-%m-%d %H:%M} UTC only"

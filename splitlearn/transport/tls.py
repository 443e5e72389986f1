"""Who this rank is to the others, and how it knows them: TLS 1.3, both sides authenticated.

How it works: with files (tls.cert, tls.key, tls.ca) a rank shows its certificate, and trusts those that its authority
has issued: to a client the server's alone, and to the server those of clients, each for the client that it names. With
the token alone all ranks show one certificate, which only who has the token has the key of (see certificates.py).
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlearn.errors import UserError
from splitlearn.transport.encrypted import Encrypted
from splitlearn.transport.place import SERVER, Place, is_loopback, rank_name
from splitlearn.transport.token import TOKEN_VARIABLE

PASSWORD_VARIABLE = "SPLITLEARN_KEY_PASSWORD"
DESK, RPC = "splitlearn-desk", "splitlearn-rpc"  # ALPN: what a connection is for
FILES = {"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"}  # of a rank, as make_certificates.py writes them
BEGINS = b"\x16"  # the first byte of a connection that speaks TLS


@dataclass(frozen=True)
class Tls:
    """What a rank opens and takes connections with.

    Attributes:
        is_server: it takes them.
        server_name: that the server's certificate has to be for.
        names_clients: a client's certificate says which client it is.
    """

    contexts: dict[str, ssl.SSLContext]
    is_server: bool
    server_name: str
    names_clients: bool

    @property
    def remedy(self) -> str:
        """What to do where one side does not take the other's certificate."""
        if self.names_clients:
            return "give certificates of the same authority as tls.cert and tls.ca on all machines"
        return f"it has another token: give all the same {TOKEN_VARIABLE} or rpc.token_file"

    def wrap(self, connection: socket.socket, within_s: float, purpose: str = DESK) -> Encrypted:
        """A connection over which nothing has gone yet, encrypted, and whose other side is who it says.

        Raises:
            OSError: it is not; ssl.SSLError says why.
        """
        name = None if self.is_server else self.server_name
        return Encrypted(connection, self.contexts[purpose], self.is_server, name, within_s)


def tls_from(settings: Mapping[str, Any], place: Place, token: bytes | None) -> Tls | None:
    """What a rank is to use by the keys of `tls`; None where all are on this machine, or it is not wanted.

    Args:
        settings: enabled, folder, cert, key, ca, server_name, as in conf/config.yaml.
        place: the rank's.
        token: of the run; read where there are no certificates.

    Raises:
        UserError: they do not fit one another, or a file cannot be used; names the key.
    """
    rank, given = rank_name(place.rank), {name: settings[name] for name in FILES if settings[name]}
    if settings["folder"] and given:
        raise UserError(f"tls.folder={settings['folder']} and tls.{next(iter(given))} are both given: leave one out")
    if given and (missing := [name for name in FILES if name not in given]):
        raise UserError(
            f"tls.{next(iter(given))} is given without tls.{missing[0]}: it takes tls.cert, tls.key and tls.ca"
        )
    has_files = bool(given or settings["folder"])
    enabled = settings["enabled"]
    if enabled == "auto":
        enabled = has_files or not (place.one_machine or is_loopback(place.host))
    if not enabled:
        return None
    if has_files:
        files = given or own_files(rank, settings["folder"])
        return tls_of_files(rank, **files, server_name=settings["server_name"])
    return tls_of_token(rank, token)


def has_certificates(settings: Mapping[str, Any]) -> bool:
    """Whether certificates say who is who, in place of the token."""
    return settings["enabled"] is not False and any(settings[name] for name in ("folder", *FILES))


def in_words(error: Exception) -> str:
    """Why a connection failed, without the names of OpenSSL's source files."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def tls_of_token(rank: str, token: bytes) -> Tls:
    """TLS with nothing but the token."""
    from splitlearn.transport.certificates import of_token

    identity, password = of_token(token), secrets.token_hex(16)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # ssl reads keys from files alone; so it is encrypted
        file.write(identity.certificate_pem + identity.key_pem(password.encode()))
        file.flush()
        return _tls(rank, Path(file.name), None, identity.certificate_pem.decode(), password, SERVER, False)


def tls_of_files(rank: str, cert: str, key: str, ca: str, server_name: str) -> Tls:
    """TLS with a certificate for each rank.

    Raises:
        UserError: a file cannot be used; names its key.
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
        authorities = texts["ca"].decode("ascii")
        return _tls(rank, paths["cert"], paths["key"], authorities, None, server_name, True)
    except ssl.SSLError as error:
        raise UserError(f"{_unusable(paths, texts, error)}") from None
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


def _tls(
    rank: str, cert: Path, key: Path | None, authorities: str, password: str | None, server_name: str, names: bool
) -> Tls:
    is_server, contexts = rank == SERVER, {}
    for purposes in ((DESK, RPC),) if is_server else ((DESK,), (RPC,)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(list(purposes))
        if is_server:
            context.num_tickets = 0  # each connection proves everything anew
        context.load_cert_chain(cert, key, password or _asked_for(key))
        context.load_verify_locations(cadata=authorities)
        contexts |= dict.fromkeys(purposes, context)
    return Tls(contexts, is_server, server_name, names)


def _asked_for(key: Path | None):
    """The password of a key's file, where OpenSSL finds that it is encrypted; it would ask at the terminal."""

    def password() -> str:
        if given := os.environ.get(PASSWORD_VARIABLE):
            return given
        raise UserError(f"tls.key={key} is encrypted: give its password in {PASSWORD_VARIABLE}")

    return password


def _check_certificate(rank: str, path: Path, pem: bytes, server_name: str) -> None:
    """Says what others would not say so well: that this rank's own certificate is out of date, or another's."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UserError(f"tls.cert={path} holds no certificate in PEM") from None
    if why := _out_of_date(certificate):
        raise UserError(f"tls.cert={path} {why}: make a new one, or set this machine's clock")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    wanted = server_name if rank == SERVER else rank
    if wanted not in names:
        key = "tls.server_name" if rank == SERVER else "client.index"
        raise UserError(
            f"tls.cert={path} is for {' and '.join(names) or 'no name'}, and this rank is {wanted}: give its own"
            f" certificate, or set {key}"
        )


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


def _unusable(paths: dict[str, Path], texts: dict[str, bytes], error: ssl.SSLError) -> str:
    if "KEY_VALUES_MISMATCH" in str(error):
        return f"tls.key={paths['key']} is not the key of tls.cert={paths['cert']}: give the two of one rank"
    if b"PRIVATE KEY" not in texts["key"]:
        return f"tls.key={paths['key']} holds no private key in PEM"
    if "BAD_DECRYPT" in str(error) or b"ENCRYPTED" in texts["key"]:
        return f"tls.key={paths['key']} does not open with the password in {PASSWORD_VARIABLE}"
    if b"CERTIFICATE" not in texts["ca"]:
        return f"tls.ca={paths['ca']} holds no certificate in PEM"
    return f"tls.cert={paths['cert']} and tls.key={paths['key']} cannot be used ({error.reason or error})"

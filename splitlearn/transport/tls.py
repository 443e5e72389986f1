"""Who this rank is to the others, and how it knows them: TLS 1.3, both sides authenticated.

How it works: with files (tls.cert, tls.key, tls.ca) a rank shows its certificate, and trusts those that its authority
has issued: to a client the server's alone, and to the server those of clients, each for the client that it names. With
the token alone all ranks show one certificate, which only who has the token has the key of (see certificates.py).
"""

from __future__ import annotations

import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlearn.errors import UserError
from splitlearn.transport.credentials import FILES, credentials_of, own_files
from splitlearn.transport.encrypted import Encrypted
from splitlearn.transport.place import SERVER, Place, is_loopback, rank_name
from splitlearn.transport.token import TOKEN_VARIABLE

DESK, RPC = "splitlearn-desk", "splitlearn-rpc"  # ALPN: what a connection is for
BEGINS = b"\x16"  # the first byte of a connection that speaks TLS
# What to do where a certificate is not taken, by what OpenSSL says of it: of the other side's, or in its alert
REMEDIES = {
    "expired": "make new ones (scripts/make_certificates.py --renew), or set the clock of the machine that is wrong",
    "not yet valid": "set the clock of the machine that is wrong",
    "mismatch": "set tls.server_name to a name that the server's certificate has, alike on all machines",
    "certificate purpose": "have the server's tls.cert issued with the extended key usage serverAuth",
    "unsupported certificate": "have this client's tls.cert issued with the extended key usage clientAuth",
    "": "give certificates of the same authority as tls.cert and tls.ca on all machines",
}


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

    def remedy(self, error: ssl.SSLError) -> str:
        """What to do where one side does not take the other's certificate."""
        if self.names_clients:
            return next(remedy for said, remedy in REMEDIES.items() if said in in_words(error))
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
    own = credentials_of(rank, cert, key, ca, server_name)
    try:
        return _tls(rank, own.cert, own.key, own.authorities, own.password, server_name, True)
    except ssl.SSLError as error:
        raise UserError(own.why_unusable(error)) from None


def _tls(
    rank: str,
    cert: Path,
    key: Path | None,
    authorities: str,
    password: str | Callable[[], str] | None,
    server_name: str,
    names: bool,
) -> Tls:
    is_server, contexts = rank == SERVER, {}
    for purposes in ((DESK, RPC),) if is_server else ((DESK,), (RPC,)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(list(purposes))
        if is_server:
            context.num_tickets = 0  # each connection proves everything anew
        context.load_cert_chain(cert, key, password)
        context.load_verify_locations(cadata=authorities)
        contexts |= dict.fromkeys(purposes, context)
    return Tls(contexts, is_server, server_name, names)

"""Makes certificates for a run's ranks: an authority, a server, and a folder for each client.

    python scripts/make_certificates.py --clients 8                  into certificates/
    python scripts/make_certificates.py --clients 12                 four more, of the same authority

Give each machine the folders of its ranks alone, and start it with tls.folder=certificates. The authority's key makes
further certificates: keep it, in certificates/authority, where no rank runs.
"""

import argparse
import datetime
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from script import start

from splitlearn.transport.certificates import Identity, authority, issue
from splitlearn.transport.credentials import FILES
from splitlearn.transport.place import SERVER, rank_name

AUTHORITY = "authority"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, required=True, help="clients 0 to this number less one get one each")
    parser.add_argument("--folder", type=Path, default=Path("certificates"), help="for all of them")
    parser.add_argument("--days", type=int, default=365, help="that they are valid for")
    parser.add_argument("--renew", action="store_true", help="new ones in the place of those that are there")
    arguments = parser.parse_args()
    if arguments.clients < 1 or arguments.days < 1:
        sys.exit("--clients and --days must be at least 1")
    try:
        made = make(arguments.folder, arguments.clients, arguments.days, arguments.renew)
    except ValueError as error:
        sys.exit(f"{arguments.folder}: {error}")
    print(f"{arguments.folder}: {', '.join(made) or 'nothing'} made, valid for {arguments.days} days")
    print(f"give each machine its own ranks' folders, start them with tls.folder={arguments.folder}, and keep")
    print(f"{arguments.folder / AUTHORITY}, which makes more of them, where none of them runs")


def make(folder: Path, num_clients: int, days: int, renew: bool) -> list[str]:
    """Writes what is missing, or with `renew` all; returns the ranks that got a new certificate."""
    own = folder / AUTHORITY
    if (own / FILES["key"]).exists():
        by = read(own)
    elif (own / FILES["cert"]).exists():
        raise ValueError(f"{AUTHORITY}/{FILES['key']} is missing: bring it back, or begin in another --folder")
    else:
        by = authority(10 * days)
        write(own, by, by)
    ranks = (SERVER, *map(rank_name, range(1, 1 + num_clients)))
    made = [rank for rank in ranks if renew or not (folder / rank / FILES["cert"]).exists()]
    remaining = by.certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    if made and remaining < datetime.timedelta(days=days):
        raise ValueError(
            f"its authority's own certificate ends in {max(0, remaining.days)} days, and no other is of use after that:"
            " give fewer --days, or make all anew in another --folder, whose ca.pem all ranks then need"
        )
    for rank in made:
        write(folder / rank, issue(by, rank, days), by)
    return made


def read(folder: Path) -> Identity:
    certificate = x509.load_pem_x509_certificate((folder / FILES["cert"]).read_bytes())
    key = serialization.load_pem_private_key((folder / FILES["key"]).read_bytes(), None)
    return Identity(certificate, key)


def write(folder: Path, identity: Identity, by: Identity) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = folder / FILES["key"]
    key.unlink(missing_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(identity.key_pem())
    (folder / FILES["cert"]).write_bytes(identity.certificate_pem)
    if identity is not by:
        (folder / FILES["ca"]).write_bytes(by.certificate_pem)


if __name__ == "__main__":
    start(main)

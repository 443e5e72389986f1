"""Open files: each client is a few sockets of the server, and systems allow a process 1,024 unless it asks for more."""

import resource

from splitlearn.errors import UserError
from splitlearn.transport.strangers import most_strangers

# On one machine, of the server or of the process that starts the ranks; and on several: the front desk's, and three of
# each of RPC's connections, which it carries.
FILES_A_CLIENT = 5, 11
OTHER_FILES = 100


def allow_files(num_clients: int, one_machine: bool) -> None:
    """Raises this process's limit of open files to what so many clients need, as far as the system lets it.

    Strangers at the front desk count too, or they would end the run: with no file left no checkpoint is written.

    Raises:
        UserError: it does not.
    """
    needed = FILES_A_CLIENT[not one_machine] * num_clients + most_strangers(num_clients) + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"num_clients={num_clients} takes {needed:,} open files, and this system allows a process {hard:,}: raise"
            f" the hard limit (`ulimit -Hn {needed}` as root), or start fewer clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

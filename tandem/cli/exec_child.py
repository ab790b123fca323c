"""Becomes the program that it is told to, as the user that it is told to, with a signal for when the parent dies.

Runs between fork and exec, with the standard library alone:
`python exec_child.py SIGNAL PARENT USER PROGRAM ARGUMENT…`.
The signal is asked for after the change of user, which would clear it.
"""

import ctypes
import os
import pwd
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    death_signal, parent, user, *command = sys.argv[1:]
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if end_with_parent(int(death_signal), int(parent)):
        os.execv(command[0], command)  # noqa: S606 - what to run is the caller's to say


def end_with_parent(death_signal: int, parent: int) -> bool:
    """Has the kernel send us the signal when the parent dies. False when it died before the kernel was asked."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


if __name__ == "__main__":
    main()

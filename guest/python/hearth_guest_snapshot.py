"""The part of Hearth's guest for Python that is loaded for snapshots.

A snapshot is restored many times, and what the process made of chance before
would be the same each time. obstacle tells whether all of that is known;
refresh makes it anew. g is the module of hearth_guest_core.py, which sets it.
"""

import posix
import sys

g = g  # noqa: F821

# Compiled modules with a random number generator of their own that cannot be
# reached from outside, as parts of their names.
CLOSED = ("cryptography.hazmat.bindings._rust", "grpc._cython.cygrpc", "nss.nss")


def obstacle():
    """Returns why this process cannot be saved now, or None."""
    from _thread import _count
    if _count():
        return "the function has started threads"
    try:
        posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        return "the function has started processes"
    except ChildProcessError:
        pass
    if connected():
        return "the function has opened network connections"
    for name in CLOSED:
        if name in sys.modules:
            return "%s keeps random numbers that cannot be renewed" % name
    library = private_crypto()
    if library is not None:
        return "%s keeps random numbers that cannot be renewed" % library
    import gc
    gc.collect()
    return None


def connected():
    """Tells whether a network socket is open; connections would be dead."""
    for name in posix.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number == g.fd or posix.fstat(number).st_mode & 0o170000 != 0o140000:
                continue
            import _socket
            s = _socket.socket(fileno=posix.dup(number))
        except OSError:
            continue  # it was that of the directory
        family = s.family
        s.close()
        if family != _socket.AF_UNIX:
            return True
    return False


def private_crypto():
    """Returns the path of a library of cryptography besides the one of Python's
    own ssl, as wheels bring along, or None."""
    known = ("usr/", "lib", sys.base_prefix[1:] + "/")
    with open("/proc/self/maps") as f:
        for line in f:
            path = line.rstrip("\n").partition("/")[2]
            name = path.rpartition("/")[2]
            if name.startswith(("libcrypto", "libssl")) and not path.startswith(known):
                return "/" + path
    return None


def refresh(seed):
    """Renews what was made of chance; seed is the host's, as hexadecimal digits."""
    own = posix.getrandom(32)
    theirs = bytes.fromhex(seed)
    mix = bytes(a ^ b for a, b in zip(own, theirs + bytes(len(own)))) + theirs
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed(int.from_bytes(mix, "big"))
    if "numpy.random.mtrand" in modules:
        modules["numpy.random.mtrand"].seed([int.from_bytes(mix[i:i + 4], "big") for i in range(0, len(mix) - 3, 4)])
    if "_ssl" in modules or "_hashlib" in modules:  # both load OpenSSL
        try:
            from _ssl import RAND_add
        except ImportError:
            pass  # a Python without ssl
        else:
            RAND_add(mix, float(len(own)))
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._node = None

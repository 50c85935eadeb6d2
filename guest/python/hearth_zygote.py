"""Forks Hearth's guests for Python from one warm interpreter.

    python3 -I -S -B -X utf8 hearth_zygote.py

The native driver starts it on the host with an empty environment, /dev/null as
descriptors 0 and 1, and a SEQPACKET socket as 3 (driver/native/forkserver.go). It
loads the guest and much of the standard library once. Each request brings
descriptors only: nothing of one sandbox ever gets into this process's memory,
which the guests of others are copies of. For each it forks

    A, which enters the sandbox's control groups and namespaces, and forks
    B, which is in the sandbox's pid namespace, and forks
    C, the guest, whose parent becomes the sandbox's pid 1 as B ends.

C reads the rest of the plan from the request's own socket and executes those of
its steps that init/steps.go would have executed for a guest that it started.
When the driver's end of descriptor 3 closes, the process ends.
"""

import posix
import sys
from time import sleep

SERVER = 3

# What functions import most. Left out is what keeps something of the host
# once it is loaded (platform, and so uuid) and what few need.
PRELOAD = (
    "abc", "argparse", "asyncio", "base64", "bisect", "calendar", "collections", "contextlib",
    "contextvars", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "email.message",
    "enum", "functools", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "http.client", "inspect",
    "io", "itertools", "json", "logging", "math", "operator", "os", "pathlib", "pickle", "queue",
    "random", "re", "resource", "secrets", "shutil", "socket", "ssl", "string", "struct", "subprocess", "tempfile",
    "textwrap", "threading", "time", "traceback", "types", "typing", "urllib.parse",
    "urllib.request", "warnings", "zipfile", "zlib",
)

# Flags of clone and setns.
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
INTO_CGROUP = 0x200000000

# prctl
SET_DUMPABLE, CAPBSET_DROP, SET_NO_NEW_PRIVS, CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL = 4, 24, 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522

# System calls. Those after clone3 have the same number everywhere.
CAPSET, KEYCTL, SECCOMP, SETGROUPS, SETRESGID, SETRESUID = {
    "x86_64": (126, 250, 317, 116, 119, 117),
    "aarch64": (91, 219, 277, 159, 149, 147),
}[posix.uname().machine]
CLONE3, CLOSE_RANGE, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 435, 436, 444, 445, 446

READ_EXECUTE = 5  # Landlock's rights on a file

EPERM, EINVAL, ENOSYS = 1, 22, 38


def run(main):
    """Serves requests. It returns in guests only, with main, the namespace of
    __main__, as if hearth_guest.py had been executed."""
    here = __file__.rpartition("/")[0]
    cold = set(sys.modules)
    for name in PRELOAD:
        try:
            __import__(name)
        except ImportError:  # a Python without OpenSSL, for example
            if name == "ctypes":
                raise
    core = load_guest(main, here)
    core.load_more()
    core.warm = frozenset(sys.modules) - cold - {"hearth_guest_core"}
    renew = core.load_part("hearth_guest_snapshot").refresh

    kernel = Kernel()
    kernel.privileges()
    posix.umask(0o022)
    posix.environ.clear()  # an interpreter without a locale sets LC_CTYPE
    kernel.libc.clearenv()
    from _socket import SOL_SOCKET, socket
    server = socket(fileno=SERVER)
    area = argument_area()

    import gc
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, all of this
    gc.disable()
    server.send(b"R")
    while True:
        data, ancillary, _, _ = server.recvmsg(1, 1024)
        if not data:
            posix._exit(0)
        fds = [int.from_bytes(d[i:i + 4], sys.byteorder)
               for level, kind, d in ancillary if level == SOL_SOCKET and kind == 1
               for i in range(0, len(d), 4)]
        # A, born in the group where the kernel can do that.
        a = kernel.clone_into(fds.pop()) if data == b"c" else kernel.fork()
        if a == 0:
            break
        del data, ancillary
        for fd in fds:
            posix.close(fd)
        posix.waitpid(a, 0)
    pidfd, request, stdin, stdout, stderr, stream = fds[:6]
    try:
        for group in fds[6:]:
            posix.write(group, b"0")
        kernel.setns(pidfd, NEWUSER | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
        b = kernel.fork()
        if b:
            posix.waitpid(b, 0)
            posix._exit(0)
        if posix.fork():  # with all that Python does for a child
            posix._exit(0)
        guest = Guest(kernel, pidfd, request)
        guest.run()
        for number, fd in enumerate((stdin, stdout, stderr, stream)):
            posix.dup2(fd, number)
        server.detach()
        become(main, core, guest, area)
        renew("")
        kernel.prctl(SET_DUMPABLE, 1)
        gc.enable()
        posix.write(request, b"S")
        kernel.call(CLOSE_RANGE, SERVER + 1, 0x7fffffff, 0)
    except BaseException as e:
        try:
            posix.write(request, b"E" + (type(e).__name__ + ": " + str(e)).encode("utf-8", "replace")[:500])
        finally:
            posix._exit(1)


def load_guest(main, here):
    """Makes __main__ that of hearth_guest.py and returns its core."""
    kept = {k: main[k] for k in ("__builtins__", "__loader__", "__spec__", "__package__")}
    main.clear()
    main.update(kept, __name__="hearth_guest", __file__=here + "/hearth_guest.py")
    from _io import FileIO
    with FileIO(main["__file__"]) as f:
        exec(compile(f.readall(), "hearth_guest.py", "exec", dont_inherit=True), main)
    core = main["load_core"]()
    main["__name__"] = "__main__"
    return core


def argument_area():
    """Returns where the kernel keeps the command line of this process."""
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46])


def become(main, core, guest, area):
    """Gives the process the environment and names of an executed guest."""
    import ctypes
    import logging
    import time
    argv = guest.argv
    line = b"".join(a + b"\0" for a in argv)
    start, end = area
    if end - start != len(line):
        raise ValueError("the command line has %d bytes, not %d" % (len(line), end - start))
    ctypes.memmove(start, line, len(line))
    names = [a.decode("utf-8", "surrogateescape") for a in argv]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = names
    sys.argv[:] = names[-1:]
    main["__file__"] = main["__loader__"].path = names[-1]
    environ = posix.environ  # also what os.environ is made of
    for item in guest.env:
        name, _, value = item.partition(b"=")
        environ[name] = value
        posix.putenv(name, value)
    import _locale
    try:
        _locale.setlocale(_locale.LC_CTYPE, "")
    except _locale.Error:
        pass  # an unknown one means C to Python
    time.tzset()
    began = logging._startTime
    logging._startTime = time.time() if isinstance(began, float) else time.time_ns()


class Guest:
    """C: the guest until it is the function's."""

    def __init__(self, kernel, pidfd, request):
        self.kernel = kernel
        self.pidfd = pidfd
        self.request = request
        self.env = []
        self.argv = []

    def run(self):
        """Executes the plan: see init/steps.go for its form and steps."""
        size = int.from_bytes(self.read(4), "little")
        plan = self.read(size)
        pos = 0
        while pos < size:
            op, n = plan[pos], plan[pos + 1]
            pos += 2
            args = []
            for _ in range(n):
                end = pos + 4 + int.from_bytes(plan[pos:pos + 4], "little")
                args.append(plan[pos + 4:end])
                pos = end
            try:
                self.steps[op](self, *args)
            except OSError as e:
                e.strerror = "step %c: %s" % (op, e.strerror)
                raise

    def read(self, n):
        data = b""
        while len(data) < n:
            more = posix.read(self.request, n - len(data))
            if not more:
                posix._exit(0)  # the driver has given up
            data += more
        return data

    def keyring(self):
        self.kernel.call(KEYCTL, 1, 0, ignore=(ENOSYS, EPERM))

    def scheduling(self, policy):
        posix.sched_setscheduler(0, int(policy), posix.sched_param(0))

    def limit(self, number, soft, hard):
        import resource
        resource.setrlimit(int(number), (signed(soft), signed(hard)))

    def user(self, uid, gid):
        # The system calls: no need to tell threads, there are none.
        k = self.kernel
        k.call(SETGROUPS, 0, 0, ignore=(EPERM,))
        k.call(SETRESGID, int(gid), int(gid), int(gid))
        k.call(SETRESUID, int(uid), int(uid), int(uid))

    def meet(self):
        """Waits until pid 1 has assembled the root file system, and goes there."""
        posix.setsid()
        while posix.getppid() != 1:  # B is about to end
            sleep(0.0001)
        posix.write(self.request, b"P" + posix.getpid().to_bytes(4, "little"))
        self.read(1)
        self.kernel.setns(self.pidfd, NEWNS)

    def capabilities(self):
        self.kernel.privileges()

    def landlock(self, handled, *rules):
        self.kernel.landlock(int(handled), [(int(rules[i]), rules[i + 1]) for i in range(0, len(rules) - 1, 2)])

    def filter(self, program):
        self.kernel.seccomp(program)

    def environment(self, *items):
        self.env.extend(items)

    def arguments(self, *items):
        self.argv.extend(items)

    def directory(self, path):
        posix.chdir(path)

    steps = {
        ord("k"): keyring, ord("S"): scheduling, ord("i"): limit, ord("u"): user, ord("m"): meet,
        ord("c"): capabilities, ord("L"): landlock, ord("s"): filter, ord("e"): environment,
        ord("a"): arguments, ord("w"): directory,
    }


def signed(n):
    n = int(n)
    return n if n < 1 << 63 else n - (1 << 64)


class Kernel:
    """System calls that Python has no function for."""

    def __init__(self):
        import ctypes
        # PyDLL: nobody else waits for the interpreter's lock.
        self.libc = libc = ctypes.PyDLL(None, use_errno=True)
        self.c = ctypes
        self.syscall = libc.syscall
        self.syscall.restype = ctypes.c_long
        self._setns = libc.setns
        self._prctl = libc.prctl
        self._fork = libc.fork

    def error(self, what):
        n = self.c.get_errno()
        return OSError(n, what + ": " + posix.strerror(n))

    def call(self, number, *args, ignore=()):
        c = self.c
        r = self.syscall(c.c_long(number), *[a if isinstance(a, (bytes, c.Array)) or a is None else c.c_long(a) for a in args])
        if r < 0 and c.get_errno() not in ignore:
            raise self.error("system call %d" % number)
        return r

    def prctl(self, *args):
        c = self.c
        return self._prctl(c.c_int(args[0]), *[c.c_ulong(a) for a in (args[1:] + (0, 0, 0, 0))[:4]])

    def setns(self, fd, flags):
        if self._setns(fd, flags) < 0:
            raise self.error("setns %#x" % flags)

    def fork(self):
        """Forks without what Python does for a child: it will do little."""
        pid = self._fork()
        if pid < 0:
            raise self.error("fork")
        return pid

    def clone_into(self, fd):
        """Forks a child that is born in a control group of version 2. C's library
        does not know of it; the child only forks again."""
        args = (self.c.c_uint64 * 11)()
        args[0], args[4], args[10] = INTO_CGROUP, 17, fd
        return self.call(CLONE3, args, 88)

    def privileges(self):
        """Gives up every capability, for good."""
        if self.prctl(CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL) < 0:
            raise self.error("ambient capabilities")
        n = 0
        while self.prctl(CAPBSET_DROP, n) == 0:
            n += 1
        if self.c.get_errno() != EINVAL:
            raise self.error("bounding set")
        header = (self.c.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        self.call(CAPSET, header, (self.c.c_uint32 * 6)())
        if self.prctl(SET_NO_NEW_PRIVS, 1) < 0:
            raise self.error("no_new_privs")

    def landlock(self, handled, rules):
        ruleset = self.call(LANDLOCK_CREATE, handled.to_bytes(8, sys.byteorder), 8, 0)
        # The program of this process lies, for the kernel, in the host's mounts
        # and not below the sandbox's root: to be read and executed all the same.
        for rights, path in rules + [(READ_EXECUTE, "/proc/self/exe")]:
            try:
                fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
            except FileNotFoundError:
                continue
            rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            self.call(LANDLOCK_ADD, ruleset, 1, rule, 0)
            posix.close(fd)
        self.call(LANDLOCK_RESTRICT, ruleset, 0)
        posix.close(ruleset)

    def seccomp(self, program):
        c = self.c
        code = c.create_string_buffer(program, len(program))
        prog = (c.c_uint64 * 2)(len(program) // 8, c.addressof(code))
        self.call(SECCOMP, 1, 0, prog)


if __name__ == "__main__":
    # A module of its own, so that __main__ can become the guest's.
    zygote = type(sys)("hearth_zygote")
    zygote.__file__ = __file__
    with open(__file__, "rb") as f:
        exec(compile(f.read(), "hearth_zygote.py", "exec", dont_inherit=True), zygote.__dict__)
    zygote.run(globals())
    core.start()  # noqa: F821
    core.loop()  # noqa: F821

"""Forks Hearth's guests for Python from one warm interpreter.

    python3 -I -S -B -X utf8 hearth_zygote.py

The native driver starts it on the host with an empty environment, /dev/null as
descriptors 0 and 1, and a SEQPACKET socket as 3 (driver/native/forkserver.go). It
loads the guest and much of the standard library once. Each request brings
descriptors only: nothing of one sandbox ever gets into this process's memory,
which the guests of others are copies of. For each there are three processes:

    A, which enters the sandbox's control groups and namespaces, and forks
    B, which is in the sandbox's pid namespace, and forks
    C, the guest, whose parent becomes the sandbox's pid 1 as B ends.

C reads the rest of the plan from the request's own socket and executes those of
its steps that init/steps.go would have executed for a guest that it started.
When the driver's end of descriptor 3 closes, the process ends.
"""

import _locale
import posix
import sys
import time

SERVER = 3

# What functions import most. Left out is what keeps something of the host
# once it is loaded (platform, and so uuid) and what few need.
PRELOAD = (
    "abc", "argparse", "asyncio", "base64", "bisect", "calendar", "collections", "contextlib",
    "contextvars", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "email.message",
    "enum", "functools", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "http.client", "inspect",
    "io", "itertools", "json", "logging", "math", "operator", "os", "pathlib", "pickle", "queue",
    "random", "re", "resource", "secrets", "shutil", "socket", "ssl", "string", "struct",
    "subprocess", "tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "urllib.parse",
    "urllib.request", "warnings", "zipfile", "zlib",
)

# Flags of clone and setns.
NEWNS = 0x20000
NAMESPACES = 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000  # all others
SHARE_AND_WAIT = 0x100 | 0x4000  # CLONE_VM, CLONE_VFORK
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
    core.preloaded = frozenset(sys.modules) - cold - {"hearth_guest_core"}

    kernel = Kernel()
    birth = Birth(kernel) or kernel.birth
    kernel.privileges(bounding=posix.geteuid() == 0)
    kernel.call(CLOSE_RANGE, SERVER + 1, 0x7fffffff, 0)  # what the server's own parent left open
    posix.umask(0o022)
    posix.environ.clear()  # an interpreter without a locale sets LC_CTYPE
    kernel.libc.clearenv()
    from _socket import SOL_SOCKET, socket
    server = socket(fileno=SERVER)
    area = argument_area()
    refuse_shared_memory()

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
        pidfd, request, stdin, stdout, stderr, stream = fds[:6]
        groups, born = fds[6:], 0
        if data == b"c":  # version 2: a process is born in its group
            born = groups.pop()
        status = birth(pidfd, groups, born)
        if status is None:
            break
        if status:
            try:
                posix.write(request, b"E" + ("enter the sandbox: " + posix.strerror(status >> 8)).encode())
            except OSError:
                pass  # the driver has given up, and the sandbox's pid 1 is gone with that
        for fd in fds:
            posix.close(fd)
    try:
        server.detach()
        for number, fd in enumerate((stdin, stdout, stderr, stream)):
            posix.dup2(fd, number)
        Guest(kernel, pidfd, request, main, area).run()
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
    kept = {k: main[k] for k in ("__builtins__", "__cached__", "__loader__", "__package__", "__spec__") if k in main}
    main.clear()
    main.update(kept, __name__="hearth_guest", __file__=here + "/hearth_guest.py")
    from _io import FileIO
    with FileIO(main["__file__"]) as f:
        exec(compile(f.readall(), "hearth_guest.py", "exec", dont_inherit=True), main)
    core = main["load_core"]()
    main["__name__"] = "__main__"
    return core


def refuse_shared_memory():
    """Ends a process that has memory which a fork does not copy: guests of different
    functions could write into each other and into this process. Libraries may
    make it unasked: where a host lets nobody make code, old versions of libffi, which
    ctypes needs, keep code in a file that is mapped twice."""
    with open("/proc/self/maps", "rb") as f:
        for line in f:
            access = line.split(None, 2)[1]
            if access[1:2] == b"w" and access[3:4] == b"s":
                raise RuntimeError("guests would share memory: " + line.decode("utf-8", "replace").strip())


def argument_area():
    """Returns where the kernel keeps the command line of this process."""
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46])


class Guest:
    """C: the guest until it is the function's."""

    def __init__(self, kernel, pidfd, request, main, area):
        self.kernel = kernel
        self.pidfd = pidfd
        self.request = request
        self.main = main
        self.area = area

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
        time.tzset()  # as the environment and the sandbox's /etc say
        self.kernel.prctl(SET_DUMPABLE, 1)

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
            time.sleep(0.0001)
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
        environ = posix.environ  # also what os.environ is made of
        for item in items:
            name, _, value = item.partition(b"=")
            environ[name] = value
            posix.putenv(name, value)

    def arguments(self, *argv):
        """Takes the command line of an executed guest, and with it what else a
        new process has of its own. Random numbers are no part of that: random is
        seeded by each fork, and nothing here has made OpenSSL make any."""
        line = b"".join(a + b"\0" for a in argv)
        start, end = self.area
        if end - start != len(line):
            raise ValueError("the command line has %d bytes, not %d" % (len(line), end - start))
        self.kernel.c.memmove(start, line, len(line))
        names = [a.decode("utf-8", "surrogateescape") for a in argv]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = names
        sys.argv[:] = names[-1:]
        self.main["__file__"] = self.main["__loader__"].path = names[-1]
        try:
            _locale.setlocale(_locale.LC_CTYPE, "")
        except _locale.Error:
            pass  # an unknown one means C to Python
        logging = sys.modules["logging"]
        now = time.time() if isinstance(logging._startTime, float) else time.time_ns()
        logging._startTime = now
        thread = sys.modules["threading"].main_thread()
        if hasattr(thread, "_set_native_id"):
            thread._set_native_id()

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


def clone_args(flags, group):
    """Returns the kernel's struct clone_args; group is a descriptor or 0."""
    from ctypes import c_uint64
    args = (c_uint64 * 11)()
    args[0], args[4], args[10] = flags | (INTO_CGROUP if group else 0), 17, group
    return args


class Birth:
    """Kernel.birth in a third of the time: A and B need no copy of this process,
    so they run in its memory, one after the other, while it waits (as after
    vfork). No language but that of the machine can promise to leave everything
    in it as it was, so this is

        fork_into(args):            // args: see __call__
            a = clone3(args[0]); if (a) return a;
            for (i = 0; i < args[5]; i++)
                if (write(args[7 + i], &args[6], 1) < 0) exit(errno);
            if (setns(args[3], args[4]) < 0) exit(errno);
            b = clone3(args[1]); if (b < 0) exit(errno);
            if (b) { wait4(b); exit(0); }
            c = fork(); if (c == 0) return 0;
            exit(0);

    in which nothing is kept on the stack but what the caller gets back.
    """

    CODE = {"x86_64": bytes.fromhex(
        "534154415548" "89fb488b3bbe58000000b8b30100000f054885c00f8581000000"  # clone3: A
        "4c8d63384c8b6b28"  # groups:
        "4d85ed7422498b3c24488d7330ba01000000b8010000000f054885c078504983c40849ffcdebd9"  # write
        "488b7b18488b7320b8340100000f054885c07833"  # setns
        "488b7b08be58000000b8b30100000f054885c07417781c"  # clone3: B
        "4889c731f631d24531d2b83d0000000f0531c0eb07"  # wait4
        "ff531085c0740b"  # fork: C
        "89c7f7dfb8e70000000f05"  # exit_group
        "415d415c5bc3"  # return
    )}

    def __new__(cls, kernel):
        """Returns None where this is not possible."""
        code = cls.CODE.get(posix.uname().machine)
        if code is None:
            return None
        c = kernel.c
        libc = kernel.libc
        libc.mmap.restype = c.c_void_p
        libc.mmap.argtypes = (c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_long)
        libc.mprotect.argtypes = (c.c_void_p, c.c_size_t, c.c_int)
        page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
        if page in (None, c.c_void_p(-1).value):
            return None
        c.memmove(page, code, len(code))
        if libc.mprotect(page, 4096, 5) != 0:
            return None  # the host lets nobody make code
        self = object.__new__(cls)
        self.page = page
        self.code = c.PYFUNCTYPE(c.c_long, c.c_void_p)(page)
        self.fork = c.cast(libc.fork, c.c_void_p).value
        self.c = c
        self.munmap = libc.munmap
        self.munmap.argtypes = (c.c_void_p, c.c_size_t)
        return self

    def __call__(self, pidfd, groups, born):
        c = self.c
        python = c.pythonapi
        a, b = clone_args(SHARE_AND_WAIT, born), clone_args(SHARE_AND_WAIT, 0)
        args = (c.c_uint64 * (7 + len(groups)))(
            c.addressof(a), c.addressof(b), self.fork, pidfd, NAMESPACES, len(groups), ord("0"), *groups)
        python.PyOS_BeforeFork()
        pid = self.code(c.addressof(args))
        if pid == 0:
            python.PyOS_AfterFork_Child()
            self.munmap(self.page, 4096)
            return None
        python.PyOS_AfterFork_Parent()
        if pid < 0:
            return -pid << 8
        return posix.waitpid(pid, 0)[1]


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
        self._prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
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
        return self._prctl(*args, *(0, 0, 0, 0)[len(args) - 1:])

    def setns(self, fd, flags):
        if self._setns(fd, flags) < 0:
            raise self.error("setns %#x" % flags)

    def birth(self, pidfd, groups, born):
        """Makes A, B and C. Returns None in C, and in the caller the wait status
        of A, which is not 0 but an errno if there is no C."""
        a = self.call(CLONE3, clone_args(0, born), 88)
        if a:
            return posix.waitpid(a, 0)[1]
        try:
            for group in groups:
                posix.write(group, b"0")
            self.setns(pidfd, NAMESPACES)
            b = self._fork()  # without what Python does for a child
            if b > 0:
                posix.waitpid(b, 0)
                posix._exit(0)
            if b == 0 and posix.fork() == 0:
                return None
            posix._exit(0)
        except OSError as e:
            posix._exit(e.errno)

    def privileges(self, bounding=True):
        """Gives up every capability, for good. An ordinary user's process outside
        of sandboxes cannot empty its bounding set, and has nothing in the others."""
        if self.prctl(CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL) < 0:
            raise self.error("ambient capabilities")
        prctl, n = self._prctl, 0
        while bounding and prctl(CAPBSET_DROP, n, 0, 0, 0) == 0:
            n += 1
        if bounding and self.c.get_errno() != EINVAL:  # past the last one
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

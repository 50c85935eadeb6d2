import ctypes
import logging
import os
import random
import resource
import secrets
import signal
import ssl
import sys
import tempfile
import threading
import uuid

libc = ctypes.CDLL(None, use_errno=True)


def read(path):
    with open(path) as f:
        return f.read()


def attempt(f, *args):
    try:
        return repr(f(*args))
    except OSError as e:
        return os.strerror(e.errno)


def facts(event, context):
    """What must not depend on how the guest was started."""
    libc.getenv.restype = ctypes.c_char_p
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    stat = read("/proc/self/stat").rpartition(")")[2].split()
    opened = os.listdir("/proc/self/fd")
    return {
        "status": {k: status[k].strip() for k in (
            "Name", "Umask", "TracerPid", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters",
            "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Threads", "SigBlk", "SigIgn", "SigCgt",
            "CoreDumping", "THP_enabled", "Cpus_allowed", "Mems_allowed") if k in status},
        "limits": {k: resource.getrlimit(getattr(resource, k)) for k in dir(resource) if k.startswith("RLIMIT_")},
        "descriptors": sorted((n, attempt(os.readlink, "/proc/self/fd/" + n).partition(":")[0]) for n in opened),
        "flags": [(n, os.get_inheritable(n), os.get_blocking(n)) for n in range(4)],
        "environment": dict(os.environ),
        "getenv": {k: str(libc.getenv(k.encode())) for k in (*os.environ, "HEARTH_SECRET", "HEARTH_FD", "LC_CTYPE")},
        "cgroup": read("/proc/self/cgroup"),
        "session": (os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), os.getppid()),
        "terminal": stat[4],
        "processes": sum(n.isdigit() for n in os.listdir("/proc")),
        "oom_score_adj": read("/proc/self/oom_score_adj"),
        "lower oom_score_adj": attempt(open, "/proc/self/oom_score_adj", "w"),
        "keys": read("/proc/keys"),
        "scheduling": (os.sched_getscheduler(0), os.nice(0), libc.prctl(30, 0, 0, 0, 0)),
        "dumpable": libc.prctl(3, 0, 0, 0, 0),
        "death signal": libc.prctl(2, ctypes.byref(ctypes.c_int()), 0, 0, 0),
        "securebits": libc.prctl(27, 0, 0, 0, 0),
        "owner of /proc/self": (os.stat("/proc/self").st_uid, os.stat("/proc/self/mem").st_uid),
        "personality": read("/proc/self/personality"),
        "cwd": os.getcwd(),
        "root": attempt(os.readlink, "/proc/self/root"),
        "exe": attempt(os.readlink, "/proc/self/exe"),
        "exe can be read": len(open("/proc/self/exe", "rb").read(4)),
        "exe can be written": attempt(os.open, "/proc/self/exe", os.O_RDWR),
        "exe can be executed": os.spawnv(os.P_WAIT, "/proc/self/exe", ["python", "-I", "-S", "-c", "raise SystemExit(7)"]),
        "cmdline": read("/proc/self/cmdline"),
        "mounts": sorted(line.split()[4:6] for line in read("/proc/self/mountinfo").splitlines()),
        "writable": [attempt(open, p, "w") for p in ("/x", "/usr/x", "/etc/x", "/proc/sys/kernel/hostname")],
        "argv": (sys.argv, getattr(sys, "orig_argv", None), sys.executable, sys.path, str(sys.flags)),
        "main": sorted((k, str(v)) for k, v in vars(sys.modules["__main__"]).items() if isinstance(v, (str, type(None)))),
        "loader": vars(sys.modules["__main__"].__loader__) if sys.modules["__main__"].__loader__ else None,
        "streams": [(f.name, f.encoding, f.errors, f.line_buffering) for f in (sys.stdin, sys.__stdout__, sys.__stderr__)],
        "locale": (__import__("_locale").setlocale(0), __import__("time").tzname),
        "signals": [str(signal.getsignal(s)) for s in range(1, 32)],
        "thread": (threading.main_thread().native_id - os.getpid(), threading.current_thread() is threading.main_thread()),
        "gc": (__import__("gc").isenabled(), __import__("gc").get_threshold()),
        "recent": abs(logging._startTime - (__import__("time").time() if isinstance(logging._startTime, float)
                                            else __import__("time").time_ns())) < 60e9,
        "shared memory": [(line.split()[1], line.split()[5:]) for line in read("/proc/self/maps").splitlines() if line.split()[1][3] == "s"],
        "executable memory": [line for line in read("/proc/self/maps").splitlines()
                              if "x" in line.split()[1] and len(line.split()) == 5],
        "ptrace": [libc.ptrace(16, pid, 0, 0) for pid in (1, os.getpid() + 1)],
        "setns": libc.setns(0, 0),
        "gain": [libc.syscall(n, 0, 0, 0) for n in ((105, 106, 116) if os.uname().machine == "x86_64" else (146, 144, 159))],
    }


def chance(event, context):
    """What must differ between any two guests."""
    return {
        "random": random.random(), "getrandbits": random.getrandbits(64), "uuid4": str(uuid.uuid4()), "uuid1": str(uuid.uuid1()),
        "secrets": secrets.token_hex(), "urandom": os.urandom(8).hex(), "ssl": ssl.RAND_bytes(16).hex(),
        "tempfile": tempfile.mktemp(), "namespaces": {n: os.readlink("/proc/self/ns/" + n) for n in os.listdir("/proc/self/ns") if "time" not in n},
    }


def hostile(event, context):
    """Looks for the fork server and its other children."""
    seen = []
    for pid in range(1, 70000):
        if pid != os.getpid():
            try:
                os.kill(pid, 0)
                seen.append(pid)
            except ProcessLookupError:
                pass
            except PermissionError:
                seen.append(-pid)
    return {
        "seen": [p for p in seen if not 2 < abs(p) < 20],  # threads of pid 1
        "everybody": attempt(os.kill, -1, 0),
        "memory": attempt(lambda: open("/proc/1/mem", "rb")),
        "abstract sockets": len(read("/proc/net/unix").splitlines()) - 1,
        "shared": sum(1 for line in read("/proc/self/maps").splitlines() if line.split()[1] in ("rw-s", "-w-s")),
        "names": sorted(n for n in sys.modules if "zygote" in n),
    }


def secret(event, context):
    """Counts a needle in the memory of this process. It comes masked and is
    searched for in halves, so that the search does not find itself."""
    masked = bytes.fromhex(event)
    first, second = (bytes(b ^ 0x55 for b in half) for half in (masked[:8], masked[8:]))
    found = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as mem:
        for line in maps:
            span, mode = line.split()[:2]
            start, end = (int(x, 16) for x in span.split("-"))
            if mode[0] != "r" or end > 1 << 47:
                continue
            mem.seek(start)
            try:
                data = mem.read(end - start)
            except OSError:
                continue
            at = data.find(first)
            while at >= 0:
                found += data[at + 8:at + 16] == second
                at = data.find(first, at + 1)
            del data
    return found

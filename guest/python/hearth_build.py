"""Installs a function's dependencies with pip and sends them to Hearth.

    python3 -I -B -X utf8 hearth_build.py

It runs in a sandbox of its own, made for one build. It reads what to install
from /function/source and writes to the descriptor named by HEARTH_FD: one line
of JSON that says how it went and, after a success, a tar archive of
.hearth/python. What pip says goes to the standard output and error.

Python 3.9 and later.
"""

import compileall
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile

SOURCE = "/function/source"
CERTIFICATES = "/function/ca.crt"
WORK = "/tmp/build"
OUT = WORK + "/out"
PACKAGES = OUT + "/.hearth/python"
PTH = OUT + "/.hearth/python.pth"
CODE = "/function"  # where the function will see OUT
REQUIREMENTS = "requirements.txt"


class Failure(Exception):
    """A build that cannot succeed; kind and fields are for the host."""

    def __init__(self, kind, **fields):
        super().__init__(kind)
        self.head = dict(fields, ok=False, kind=kind)


def environment():
    """Returns pip's environment; what the operator has set wins."""
    env = dict(os.environ)
    env.update(HOME=WORK + "/home", TMPDIR=WORK + "/tmp", PYTHONDONTWRITEBYTECODE="1")
    env.setdefault("PIP_CONFIG_FILE", os.devnull)
    env.setdefault("PIP_RETRIES", "3")
    if os.path.exists(CERTIFICATES):
        for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"):
            env.setdefault(name, CERTIFICATES)
    return env


def bundled():
    """Returns the newest wheel of pip that is on this system, or None."""
    places = ["/usr/share/python-wheels"]
    spec = importlib.util.find_spec("ensurepip")
    if spec is not None and spec.origin:
        places.append(os.path.join(os.path.dirname(spec.origin), "_bundled"))
    wheels = []
    for place in places:
        try:
            names = os.listdir(place)
        except OSError:
            continue
        wheels += [os.path.join(place, n) for n in names if n.startswith("pip-") and n.endswith(".whl")]

    def version(path):
        return [int(p) if p.isdigit() else -1 for p in os.path.basename(path).split("-")[1].split(".")]
    return max(wheels, key=version, default=None)


def pip():
    """Returns the command line that starts pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-I", "-m", "pip"]
    wheel = bundled()
    if wheel is None:
        raise Failure("no-installer", installer="pip")
    return [sys.executable, "-I", wheel + "/pip"]


def install():
    source = WORK + "/source"
    for d in (PACKAGES, WORK + "/home", WORK + "/tmp"):
        os.makedirs(d)
    # A copy, since packages that are built from the source write beside it.
    shutil.copytree(SOURCE, source, symlinks=True, copy_function=copy)
    done = subprocess.run(
        pip() + [
            "--disable-pip-version-check", "--no-input", "install",
            "--no-cache-dir", "--no-compile", "--no-warn-script-location", "--progress-bar", "off",
            "--target", PACKAGES, "-r", REQUIREMENTS,
        ],
        cwd=source, env=environment(), stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failure("installer", installer="pip", status=done.returncode)


def copy(source, target):
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)


def compile_packages():
    """Compiles what was installed: at run time nothing can be written there.

    The compiled files hold no time of their sources, as an artifact keeps none.
    """
    files = sum(len(names) for _, _, names in os.walk(PACKAGES))
    compileall.compile_dir(
        PACKAGES, maxlevels=50, quiet=2, stripdir=OUT, prependdir=CODE,
        workers=min(os.cpu_count() or 1, 4) if files > 200 else 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def note_paths():
    """Tells the guest, by a file, that there are .pth files with an effect.

    The one of setuptools is left out: it is for builds.
    """
    names = [n for n in sorted(os.listdir(PACKAGES)) if n.endswith(".pth") and n != "distutils-precedence.pth"]
    if names:
        with open(PTH, "w") as f:
            f.write("\n".join(names) + "\n")


def measure():
    """Returns bytes and number of files, and the largest packages."""
    total = files = 0
    sizes = {}
    for place, _, names in os.walk(OUT):
        files += len(names)
        package = os.path.relpath(place, PACKAGES).split(os.sep)[0]
        for name in names:
            size = os.lstat(os.path.join(place, name)).st_size
            total += size
            sizes[package] = sizes.get(package, 0) + size
    largest = sorted((s for s in sizes.items() if s[0] not in (".", "..")), key=lambda s: -s[1])[:5]
    return {"bytes": total, "files": files, "largest": largest}


def send(out):
    def plain(entry):
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 0
        return entry
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 18) as tar:
        tar.add(OUT + "/.hearth", ".hearth", filter=plain)  # sorted by name


def main():
    fd = int(os.environ.pop("HEARTH_FD"))
    os.environ.pop("HEARTH_SECRET", None)
    os.set_inheritable(fd, False)
    os.set_blocking(fd, True)
    status = 0
    with open(fd, "wb", buffering=1 << 18) as out:
        try:
            install()
            compile_packages()
            note_paths()
            head = dict(measure(), ok=True)
        except Failure as e:
            head = e.head
            status = 1
        except OSError as e:
            head = {"ok": False, "kind": "system", "message": str(e)}
            status = 1
        out.write(json.dumps(head).encode() + b"\n")
        out.flush()
        if head["ok"] and head["files"] > 0:
            send(out)
    return status


if __name__ == "__main__":
    sys.exit(main())

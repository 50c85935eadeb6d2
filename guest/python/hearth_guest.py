"""Starts Hearth's guest for Python.

    python3 -I -S -B -X utf8 hearth_guest.py
    python3 -I -S -B hearth_guest.py --compile

Python compiles a script anew at each start, which takes as long as the rest of
the start. So this file is short and reads the guest proper from __pycache__
beside it, which the second form writes: run it once for each interpreter where
the directory is writable. A missing or outdated cache only costs time.
"""

import sys
from _imp import source_hash
from marshal import loads


def magic():
    return sys.modules["_frozen_importlib_external"].MAGIC_NUMBER


def paths(name):
    base = __file__.rpartition("/")[0] or "."
    return (base + "/" + name + ".py",
            base + "/__pycache__/" + name + "." + sys.implementation.cache_tag + ".pyc")


def read(path):
    from _io import FileIO
    with FileIO(path) as f:
        return f.readall()


def signature(source):
    """What a cache for source starts with: a .pyc whose hash must match."""
    raw = int.from_bytes(magic()[:2] + b"\r\n", "little")
    return magic() + b"\3\0\0\0" + source_hash(raw, source)


def read_code(name):
    """Returns the code object of one of the guest's files."""
    path, cache = paths(name)
    source = read(path)
    try:
        data = read(cache)
        if data[:16] == signature(source):
            return loads(memoryview(data)[16:])
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return compile(source, path, "exec", dont_inherit=True)


def write_caches():
    import os
    from marshal import dumps
    for part in ("core", "load", "more", "output", "response", "snapshot", "tar", "websocket"):
        path, cache = paths("hearth_guest_" + part)
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        source = read(path)
        temporary = "%s.%d" % (cache, os.getpid())
        with open(temporary, "wb") as f:
            f.write(signature(source) + dumps(compile(source, os.path.basename(path), "exec", dont_inherit=True)))
        os.replace(temporary, cache)


def load_core():
    global core
    core = type(sys)("hearth_guest_core")
    sys.modules["hearth_guest_core"] = core
    core.read_code = read_code
    exec(read_code("hearth_guest_core"), core.__dict__)
    return core


if __name__ == "__main__":
    if sys.argv[1:] == ["--compile"]:
        write_caches()
    else:
        load_core().main()

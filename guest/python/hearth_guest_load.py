"""Loads the function into Hearth's guest.

hearth_guest_core.py loads it at each start; g is the module of that, which sets it.
"""

import posix
import sys

g = g  # noqa: F821


def load():
    """Loads the handler as INIT says and answers READY or INIT_ERROR."""
    init = g.init
    get = init.get
    code = get("code")
    name = get("handler")
    env = get("env") or {}
    files = init.pop("files", None) or {}
    if (type(code) is not str or type(name) is not str or type(env) is not dict
            or type(files) is not dict or files and type(get("files_dir")) is not str):
        g.protocol_error("INIT lacks a field or has a wrong one")
    try:
        if g.archive is not None:
            g.load_more().unpack(code)
        if files:
            g.load_more().write_files(get("files_dir"), files)
        environ = posix.environ
        context = g.Context
        for k, v in env.items():
            k, v = str(k), str(v)
            if "os" in sys.modules:
                sys.modules["os"].environ[k] = v
            else:
                k, v = k.encode("utf-8", "surrogateescape"), v.encode("utf-8", "surrogateescape")
                environ[k] = v
                posix.putenv(k, v)
        context.function_name = str(get("function"))
        context.function_version = str(get("version"))
        context.memory_limit_in_mb = get("memory_mb")
        context.invoked_function_arn = "arn:hearth:lambda:local:0:function:%s:%s" % (
            get("function"), get("version"))
        posix.chdir(code)
        sys.path.insert(0, code)
        if "PYTHONPATH" in env:
            sys.path[1:1] = [p for p in str(env["PYTHONPATH"]).split(":") if p]
        if g.preloaded:
            make_way([code] + [p for p in str(env.get("PYTHONPATH", "")).split(":") if p])
        add_packages(code + "/.hearth/python")
        module, dot, attribute = name.rpartition(".")
        module = module.replace("/", ".")
        __import__(module)
        handler = g.handler = getattr(sys.modules[module], attribute, None)
        if not callable(handler):
            return g.load_more().fail_handler(name, module, attribute)
        if attribute != "warmup":
            g.warmup = getattr(sys.modules[module], "warmup", None)
    except BaseException as e:
        return g.load_more().fail_init(e, name, code)
    if is_async(handler):
        g.load_more().make_loop()
    request_stream = g.request_stream = getattr(handler, "request_stream", False) is True
    if request_stream:
        for call in g.calls.values():  # those that did not wait for READY
            if call.parts is not None and not call.streams and not call.warmup:
                call.streams = True
                if not call.complete:
                    g.ready.append(call)
    g.stdout.flush()
    g.stderr.flush()
    g.loaded = True
    g.send(g.frame(g.READY, 0, g.dumps({
        "request_stream": request_stream, "websocket": getattr(handler, "websocket", False) is True,
        "snapshot": True, "concurrent": g.find_current is not None}).encode()))
    return True


def make_way(directories):
    """Forgets modules of the standard library that hearth_zygote.py has loaded
    and a file of the function hides, as it would if they were loaded now."""
    hidden = set()
    for directory in directories:
        try:
            files = posix.listdir(directory)
        except OSError:
            continue
        for file in files:
            name, dot, kind = file.partition(".")
            if name in g.preloaded and (kind.endswith(("py", "so")) or not dot and is_package(directory + "/" + name)):
                hidden.add(name)
    if hidden:
        for name in g.preloaded:
            if name.partition(".")[0] in hidden:
                sys.modules.pop(name, None)


def is_package(directory):
    try:
        posix.stat(directory + "/__init__.py")
    except OSError:
        return False
    return True


def add_packages(directory):
    """Adds what Hearth has installed, as with site-packages after all else."""
    try:
        posix.stat(directory)
    except OSError:
        return
    try:
        posix.stat(directory + ".pth")
    except OSError:
        sys.path.append(directory)
    else:  # the builder has found .pth files
        from site import addsitedir
        addsitedir(directory)


def is_async(f):
    code = getattr(f, "__code__", None) or getattr(getattr(f, "__call__", None), "__code__", None)
    return code is not None and code.co_flags & 0x280 != 0  # coroutine, async generator

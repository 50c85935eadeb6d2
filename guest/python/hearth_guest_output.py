"""What Hearth's guest writes: frames, and the function's output in them.

hearth_guest_core.py loads it at each start; g is the module of that, which sets it.
"""

import posix
from _io import _TextIOBase
from _thread import allocate_lock, get_ident

g = g  # noqa: F821
LOG, CHUNK, PROTOCOL_ERROR = g.LOG, g.CHUNK, g.PROTOCOL_ERROR

lock = allocate_lock()  # guards the writing side and the unfinished lines
owner = 0  # the thread that holds lock
late = []  # frames of a signal handler that interrupted the owner


def header(kind, sid, size):
    return (size << 40 | kind << 32 | sid).to_bytes(9, "big")


def frame(kind, sid, payload=b""):
    return (len(payload) << 40 | kind << 32 | sid).to_bytes(9, "big") + payload


def acquire():
    """Takes lock; false if this thread has it already (in a signal handler)."""
    global owner
    me = get_ident()
    if owner == me:
        return False
    lock.acquire()
    owner = me
    return True


def release():
    global owner
    while late:
        write_all(late.pop(0))
    owner = 0
    lock.release()


def write_all(data):
    try:
        n = posix.write(g.fd, data)
        if n < len(data):
            view = memoryview(data)
            while n < len(data):
                n += posix.write(g.fd, view[n:])
    except OSError as e:
        # The host is gone, or the handler closed the descriptor.
        posix._exit(0 if isinstance(e, ConnectionError) else PROTOCOL_ERROR)


def send(data):
    """Writes whole frames."""
    if acquire():
        try:
            write_all(data)
        finally:
            release()
    else:
        late.append(data)


def send_log(call, k, data):
    """Writes text of a call in frames of bounded size; lock must be held."""
    sid = 0 if call.done else call.sid
    if len(data) < CHUNK:
        return write_all(frame(LOG, sid, b"%c%b" % (k, data)))
    for i in range(0, len(data), CHUNK - 1):
        write_all(frame(LOG, sid, b"%c%b" % (k, data[i:i + CHUNK - 1])))


def finish(call, data):
    """Ends a call with the last of its frames, after what it has printed."""
    if g.forked:
        posix._exit(0)  # a child of the handler came back through it
    if g.calls.pop(call.sid, None) is None:
        return
    locked = acquire()
    try:
        text = call.text
        for k in (1, 2):
            if text[k]:
                send_log(call, k, text[k].encode("utf-8", "backslashreplace"))
                text[k] = ""
        call.done = True
        write_all(data)
    finally:
        if locked:
            release()


class Output(_TextIOBase):
    """sys.stdout or sys.stderr: whole lines become LOG frames of their call."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, k):
        self._k = k
        self.name = ("", "<stdout>", "<stderr>")[k]

    def write(self, s):
        if not isinstance(s, str):
            raise TypeError("write() argument must be str, not " + type(s).__name__)
        k = self._k
        find = g.find_current
        call = find() if find is not None else g.current
        if g.forked:
            posix.write(k, s.encode("utf-8", "backslashreplace"))
            return len(s)
        if not acquire():
            data = s.encode("utf-8", "backslashreplace")[:CHUNK - 1]
            late.append(frame(LOG, 0 if call.done else call.sid, b"%c%b" % (k, data)))
            return len(s)
        try:
            if call.done:
                call = g.idle
            text = call.text[k]
            i = s.rfind("\n") + 1
            if i:
                text += s[:i]
                call.text[k] = s[i:]
                send_log(call, k, text.encode("utf-8", "backslashreplace"))
            else:
                text += s
                if len(text) >= CHUNK // 4:
                    send_log(call, k, text.encode("utf-8", "backslashreplace"))
                    text = ""
                call.text[k] = text
        finally:
            release()
        return len(s)

    def flush(self):
        if g.forked or not acquire():
            return
        try:
            find = g.find_current
            call = find() if find is not None else g.current
            if call.done:
                call = g.idle
            text = call.text[self._k]
            if text:
                call.text[self._k] = ""
                send_log(call, self._k, text.encode("utf-8", "backslashreplace"))
        finally:
            release()

    @property
    def buffer(self):
        return g.load_more().binary_output(self)

    def fileno(self):
        return self._k

    def writable(self):
        return True

    def isatty(self):
        return False

    def close(self):
        self.flush()

    def detach(self):
        return self.buffer

    def reconfigure(self, **_):
        pass


def cut_off():
    """Gives a child of the handler a lock of its own."""
    global lock, owner
    lock = allocate_lock()
    owner = 0

"""The part of Hearth's guest for Python that unpacks the archive after INIT.

tarfile of the standard library would take 30 ms to import, many times what
the rest of INIT takes. g is the module of hearth_guest_core.py, which sets
it.
"""

import posix

g = g  # noqa: F821

BLOCK = 512
MAX_NAME = 1 << 20


class Source:
    """The archive; reads wait for the host."""

    def __init__(self):
        self.chunk = b""
        self.pos = 0

    def take(self, n):
        """Returns up to n bytes, none at the end."""
        if self.pos == len(self.chunk):
            while not g.archive and not g.archive_complete:
                g.pump()
            if not g.archive:
                return b""
            self.chunk = g.archive.pop(0)
            self.pos = 0
        data = self.chunk[self.pos:self.pos + n]
        self.pos += len(data)
        return data

    def read(self, n):
        data = self.take(n)
        while len(data) < n:
            more = self.take(n - len(data))
            if not more:
                raise ValueError("the archive breaks off")
            data += more
        return data


def text(field):
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def number(field):
    if field[0] & 0x80:  # GNU: binary
        return int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
    n = int(field.partition(b"\0")[0].strip() or b"0", 8)
    if n < 0:
        raise ValueError("the archive has a negative number")
    return n


def pax(data):
    """Returns the fields of an extended header."""
    fields = {}
    while data:
        size = int(data.partition(b" ")[0])
        if not 0 < size <= len(data):
            raise ValueError("the archive has a bad extended header")
        key, _, value = data[:size - 1].partition(b" ")[2].partition(b"=")
        fields[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[size:]
    return fields


def inside(name, what):
    """Returns name in its shortest form, which must not lead out of the archive."""
    parts = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise ValueError(what)
            parts.pop()
        elif part and part != ".":
            parts.append(part)
    if name.startswith("/"):
        raise ValueError(what)
    return "/".join(parts)


def entries(source):
    """Yields kind, name, target, mode and size of the entries, and then expects
    their contents to be taken."""
    fields = {}  # of the extended headers before an entry
    while True:
        block = source.take(BLOCK)
        if not block:
            return
        block += source.read(BLOCK - len(block))
        if not any(block):
            return
        # The checksum's own field counts as spaces.
        if sum(block) - sum(block[148:156]) + 8 * 32 != number(block[148:156]):
            raise ValueError("the archive has a header with a wrong checksum")
        kind = block[156:157]
        size = number(block[124:136])
        if kind in b"xgLK":
            if size > MAX_NAME:
                raise ValueError("the archive has a too large extended header")
            data = source.read(size)
            source.read(-size % BLOCK)
            if kind == b"x":
                fields.update(pax(data))
            elif kind == b"L":
                fields["path"] = text(data)
            elif kind == b"K":
                fields["linkpath"] = text(data)
            continue
        name = text(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = text(block[345:500]) + "/" + name
        yield (kind, fields.get("path", name), fields.get("linkpath", text(block[157:257])),
               number(block[100:108]) & 0o777, int(fields.get("size", size)))
        fields = {}


def unpack(code):
    source = Source()
    code = code.rstrip("/")
    made = {""}
    links = []  # made last, so that nothing is written through them

    def make_dir(path):
        if path in made:
            return
        try:
            posix.mkdir(path)
        except FileExistsError:
            pass
        except FileNotFoundError:
            make_dir(path.rpartition("/")[0])
            posix.mkdir(path)
        made.add(path)

    make_dir(code)
    for kind, name, target, mode, size in entries(source):
        name = inside(name, "the archive's file %r lies outside of it" % name)
        path = (code + "/" + name).rstrip("/")
        padding = -size % BLOCK
        make_dir(path if kind == b"5" else path.rpartition("/")[0])
        if kind in b"07\0":
            fd = create(path, mode)
            try:
                while size:
                    data = source.take(min(size, g.CHUNK))
                    if not data:
                        raise ValueError("the archive breaks off")
                    size -= len(data)
                    while data:  # less is written at a time if the disk is nearly full
                        data = data[posix.write(fd, data):]
            finally:
                posix.close(fd)
        elif kind in b"12":
            what = "the archive's link %r points outside of it" % name
            base = "./" + name.rpartition("/")[0] + "/" if kind == b"2" and target[:1] != "/" else ""
            place = inside(base + target, what)
            if kind == b"2":
                links.append((target, path))
            else:
                posix.link(code + "/" + place, path)
        elif kind != b"5":
            raise ValueError("the archive's file %r is of an unsupported type" % name)
        source.read(size + padding)
    for target, path in links:
        remove(path)
        posix.symlink(target, path)
    while source.take(g.CHUNK):
        pass


def create(path, mode):
    """Opens a new file in place of an older one."""
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    try:
        return posix.open(path, flags, mode)
    except FileExistsError:
        remove(path)
        return posix.open(path, flags, mode)


def remove(path):
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass

package gateway

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setUserTimeout has the kernel give a connection up whose client acknowledges nothing for
// as long as it may be stalled: who waits for the function reads nothing, and would learn
// nothing of a client that is gone.
func setUserTimeout(nc net.Conn) {
	c, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { //nolint:errcheck // it is closed
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stalled.Milliseconds())) //nolint:errcheck // no TCP
		})
	}
}

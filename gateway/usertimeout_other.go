//go:build !linux

package gateway

import "net"

// setUserTimeout does nothing where the kernel has no such thing.
func setUserTimeout(net.Conn) {}

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// linkUp brings a network interface up.
func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return up(fd, name)
}

func up(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return unix.EINVAL
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// makeTUN creates the sandbox's only way out: a TUN device with an address and
// the default route. Its packets go to the server's user-space network stack.
func (h *helper) makeTUN(a []string) error {
	name, address, prefix, mtu := a[0], a[1], atoi(a[2]), atoi(a[3])
	r, err := unix.NewIfreq(name)
	if err != nil {
		return unix.EINVAL
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(h.tun, unix.TUNSETIFF, r); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	set := func(request uint, ip [4]byte) error {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = r.SetInet4Addr(ip[:])
		}
		if err != nil {
			return unix.EINVAL
		}
		return unix.IoctlIfreq(fd, request, r)
	}
	if err := set(unix.SIOCSIFADDR, parseIP(address)); err != nil {
		return err
	}
	mask := ^uint32(0) << (32 - prefix)
	if err := set(unix.SIOCSIFNETMASK, [4]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}); err != nil {
		return err
	}
	m, err := unix.NewIfreq(name)
	if err != nil {
		return unix.EINVAL
	}
	m.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, m); err != nil {
		return err
	}
	if err := up(fd, name); err != nil {
		return err
	}
	if err := defaultRoute(fd, name); err != nil {
		return err
	}
	if len(a) >= 6 && len(a[4]) == 16 { // a host without IPv6 does without it
		if err := addIPv6(name, a[4], atoi(a[5])); err != nil && err != unix.EAFNOSUPPORT {
			return err
		}
	}
	send(msgTUN, nil, h.tun)
	_ = unix.Close(h.tun)
	h.tun = -1
	return nil
}

// route is the kernel's struct rtentry on 64-bit machines.
type route struct {
	_                  uint64
	dst, gateway, mask unix.RawSockaddr
	flags              uint16
	_                  [2]uint64
	metric             int16
	device             *byte
	mtu, window        uint64
	irtt               uint16
}

// defaultRoute sends everything through the device.
func defaultRoute(fd int, name string) error {
	device := append([]byte(name), 0)
	r := route{flags: unix.RTF_UP, device: &device[0]}
	r.dst.Family, r.gateway.Family, r.mask.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	return nil
}

// addIPv6 adds the device's second address and the default route of its family.
func addIPv6(name, address string, prefix int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq(name)
	if err != nil {
		return unix.EINVAL
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return err
	}
	set := struct { // the kernel's struct in6_ifreq
		address       [16]byte
		prefix, index uint32
	}{prefix: uint32(prefix), index: r.Uint32()}
	copy(set.address[:], address)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&set)))
	if e == unix.EACCES || e == unix.EPERM { // IPv6 is switched off for new devices
		return nil
	}
	if e != 0 {
		return e
	}
	route := struct { // the kernel's struct in6_rtmsg
		dst, src, gateway [16]byte
		kind              uint32
		dstLen, srcLen    uint16
		metric            uint32
		info              uint64
		flags, index      uint32
	}{metric: 1, flags: unix.RTF_UP, index: r.Uint32()}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route))); e != 0 {
		return e
	}
	return nil
}

// parseIP reads a dotted IPv4 address; the driver writes no other.
func parseIP(s string) (ip [4]byte) {
	i := 0
	for j := range len(s) {
		if s[j] == '.' {
			i = min(i+1, 3)
			continue
		}
		ip[i] = ip[i]*10 + s[j] - '0'
	}
	return ip
}

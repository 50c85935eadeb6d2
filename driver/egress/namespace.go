package egress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TUNPath is the device that Attach needs.
const TUNPath = "/dev/net/tun"

// deviceName is the TUN device's name inside a sandbox.
const deviceName = "tun0"

// NewNamespace makes a network namespace with nothing but a loopback interface
// that is up. It lives until the file, of which other processes may hold
// copies, is closed and the last process in it has ended. It needs
// CAP_SYS_ADMIN.
func NewNamespace() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := setUp("lo"); err != nil {
			return err
		}
		var err error
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// Attach makes the TUN device of a sandbox in its network namespace, with the
// addresses and routes of this package, and returns it for Start. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN over the namespace.
func Attach(ns *os.File) (*os.File, error) {
	var tun *os.File
	err := onThread(func() error {
		// Setns takes a descriptor, which must live until it returns.
		defer runtime.KeepAlive(ns)
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		// The device belongs to the namespace in which the file was opened.
		fd, err := unix.Open(TUNPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: TUNPath, Err: err}
		}
		tun = os.NewFile(uintptr(fd), TUNPath)
		return attach(fd)
	})
	if err != nil {
		if tun != nil {
			err = errors.Join(err, tun.Close())
		}
		return nil, err
	}
	return tun, nil
}

// attach gives fd a device in this thread's namespace and configures it.
func attach(fd int) error {
	req, err := unix.NewIfreq(deviceName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	dev, err := netlink.LinkByName(deviceName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(dev, MTU); err != nil {
		return err
	}
	for _, cidr := range []string{GuestIPv4, GuestIPv6} {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		v6 := addr.IP.To4() == nil
		if v6 {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(dev, addr); err != nil {
			if v6 && withoutIPv6(err) {
				continue
			}
			return fmt.Errorf("give %s the address %s: %w", deviceName, cidr, err)
		}
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return err
	}
	for _, gateway := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, err := net.ParseCIDR(gateway)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: dst}); err != nil {
			if dst.IP.To4() == nil && withoutIPv6(err) {
				continue
			}
			return fmt.Errorf("route %s to %s: %w", gateway, deviceName, err)
		}
	}
	return nil
}

// withoutIPv6 tells whether err is that of a kernel that has no IPv6, or has it
// switched off.
func withoutIPv6(err error) bool {
	for _, e := range []error{unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.EACCES, unix.EPERM, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func setUp(name string) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(dev)
}

// onThread runs fn on a thread that ends with it: whatever namespaces fn has
// entered, nothing else runs there.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		// Not the main thread: the kernel would keep it as a zombie.
		if syscall.Gettid() == os.Getpid() {
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}

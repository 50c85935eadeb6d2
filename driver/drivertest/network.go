package drivertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// networkEnv is "new" in the process that Main has started, and "ready" once its
// network is.
const networkEnv = "HEARTH_TEST_NETWORK"

// Main runs the tests of a driver in a network namespace of their own that has
// no way out and in which the host has private and metadata addresses, so the
// egress cases can tell whether a sandbox reaches them and nobody outside is
// ever asked. Without root it runs them where they are, and those parts are
// left out. It returns the exit status:
//
//	func TestMain(m *testing.M) { os.Exit(drivertest.Main(m)) }
func Main(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run()
	}
	switch os.Getenv(networkEnv) {
	case "ready": // a test has started the binary again
		return m.Run()
	case "new":
		if err := setUpNetwork(); err != nil {
			fmt.Fprintf(os.Stderr, "set up the network of the tests: %v\n", err)
			return 1
		}
		_ = os.Setenv(networkEnv, "ready")
		return m.Run()
	}
	self, err := os.Executable()
	if err != nil {
		return m.Run()
	}
	runtime.LockOSThread()                    // Pdeathsig is sent when the thread ends
	cmd := exec.Command(self, os.Args[1:]...) //nolint:noctx // it is the whole test run
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), networkEnv+"=new")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return m.Run() // no namespaces here
	}
	return cmd.ProcessState.ExitCode()
}

func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, cidr := range []string{
		"169.254.169.254/32", "10.255.255.254/32", "172.31.255.254/32", "192.168.255.254/32", "100.100.100.200/32",
		"93.184.216.34/32", "fd00:ec2::254/128",
	} {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if strings.Contains(cidr, ":") {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(lo, a); err != nil && !errors.Is(err, syscall.EEXIST) {
			return err
		}
	}
	return netlink.LinkSetUp(lo)
}

// Command testguest is the guest of the driver conformance suite: it runs inside
// a sandbox and does what the suite tells it to, well-behaved and hostile.
//
// It speaks lines of JSON on the stream whose descriptor HEARTH_FD names, one
// answer for each request, in order; see package drivertest for the types.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

// request is what the suite asks; which fields count depends on Op.
type request struct {
	Op      string
	Path    string
	Text    string
	N       int64
	Timeout time.Duration
}

// answer is what the guest says; Err and Errno are empty on success.
type answer struct {
	Err   string            `json:",omitempty"`
	Errno int               `json:",omitempty"`
	Text  string            `json:",omitempty"`
	List  []string          `json:",omitempty"`
	Map   map[string]string `json:",omitempty"`
	N     int64             `json:",omitempty"`
}

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	// A guest that fills its memory must meet the sandbox's limit, not the
	// collector's idea of how to live within it.
	debug.SetGCPercent(100)
	fd, err := strconv.Atoi(os.Getenv("HEARTH_FD"))
	if err != nil {
		fatal("HEARTH_FD is not a number: %v", err)
	}
	f := os.NewFile(uintptr(fd), "stream")
	conn, err := net.FileConn(f)
	if err != nil {
		fatal("HEARTH_FD is no socket: %v", err)
	}
	f.Close()
	dec, enc := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var r request
		if dec.Decode(&r) != nil {
			return // the host has closed the stream
		}
		if r.Op == "close-stream" {
			conn.Close()
			silent()
		}
		op, ok := ops[r.Op]
		if !ok {
			fatal("unknown operation %q", r.Op)
		}
		a, err := op(r)
		if err != nil {
			a.Err = err.Error()
			if e, ok := errno(err); ok {
				a.Errno = int(e)
			}
		}
		if enc.Encode(a) != nil {
			return
		}
	}
}

// silent stays alive. Without a timer Go's runtime would find that nothing can
// ever happen, and end the program.
func silent() {
	for {
		time.Sleep(time.Hour)
	}
}

func fatal(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testguest: "+format+"\n", args...)
	os.Exit(90)
}

// child is what copies of the guest started by itself do.
func child(args []string) {
	switch args[0] {
	case "sleep":
		time.Sleep(time.Hour)
	case "id": // of a program that may be set-user-ID
		fmt.Printf("%d %d", os.Getuid(), os.Geteuid())
	case "orphan": // a grandchild in a session of its own
		attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}}
		if _, err := syscall.ForkExec("/proc/self/exe", []string{"testguest", "sleep"}, attr); err != nil {
			fatal("%v", err)
		}
	}
}

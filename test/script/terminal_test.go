package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// terminal is a real pseudo terminal with a program in it, and a screen that shows what
// the program writes.
type terminal struct {
	pty, tty *os.File
	before   *unix.Termios
	screen   *vt.SafeEmulator
	cmd      *exec.Cmd
	exited   chan error
	pumps    sync.WaitGroup

	mu  sync.Mutex
	all bytes.Buffer // what was written
}

// terminals holds that of each script between commands.
var terminals sync.Map // of *testscript.TestScript → *terminal

// terminalCmds are the commands of scripts that use a terminal.
var terminalCmds = map[string]func(*testscript.TestScript, bool, []string){
	"terminal": openTerminal,
	"resize":   resizeTerminal,
	"types":    typeInTerminal,
	"sees":     seeInTerminal,
	"signal":   signalTerminal,
	"leaves":   leaveTerminal,
}

func parseSize(ts *testscript.TestScript, text string) (size pty.Winsize) {
	if _, err := fmt.Sscanf(text, "%dx%d", &size.Cols, &size.Rows); err != nil {
		ts.Fatalf("%q is no size such as 80x24: %v", text, err)
	}
	return size
}

// openTerminal starts a program in a terminal: terminal 80x24 PROGRAM ARGS….
func openTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: terminal WIDTHxHEIGHT PROGRAM ARGS…")
	}
	size := parseSize(ts, args[0])
	t := &terminal{screen: vt.NewSafeEmulator(int(size.Cols), int(size.Rows)), exited: make(chan error, 1)}
	var err error
	t.pty, t.tty, err = pty.Open()
	ts.Check(err)
	ts.Check(pty.Setsize(t.pty, &size))
	t.before, err = unix.IoctlGetTermios(int(t.tty.Fd()), unix.TCGETS)
	ts.Check(err)
	path, err := lookPath(ts, args[1])
	ts.Check(err)
	t.cmd = exec.CommandContext(context.Background(), path, args[2:]...) // ended by the script, however it ends
	t.cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "HEARTH_URL=" + ts.Getenv("HEARTH_URL"), "NO_COLOR=" + ts.Getenv("NO_COLOR"), "TERM=xterm-256color"}
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = t.tty, t.tty, t.tty
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(t.cmd.Start())
	go func() { t.exited <- t.cmd.Wait() }()
	t.pumps.Go(t.show)
	t.pumps.Go(t.answer)
	terminals.Store(ts, t)
	ts.Defer(func() {
		if _, ok := terminals.LoadAndDelete(ts); ok {
			t.cmd.Process.Kill() //nolint:errcheck // it may be gone
			<-t.exited
			t.close()
		}
	})
}

func lookPath(ts *testscript.TestScript, program string) (string, error) {
	return exec.LookPath(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0] + "/" + program)
}

// show shows what the program writes.
func (t *terminal) show() {
	b := make([]byte, 32<<10)
	for {
		n, err := t.pty.Read(b)
		t.mu.Lock()
		t.all.Write(b[:n])
		t.mu.Unlock()
		t.screen.Write(b[:n]) //nolint:errcheck // it takes everything
		if err != nil {
			return
		}
	}
}

// answer answers what the program asks the terminal.
func (t *terminal) answer() {
	b := make([]byte, 1<<10)
	for {
		n, err := t.screen.Read(b)
		if err != nil {
			return
		}
		t.pty.Write(b[:n]) //nolint:errcheck // the program is gone
	}
}

func (t *terminal) close() {
	t.tty.Close()
	t.pty.Close()
	t.screen.InputPipe().(io.Closer).Close() // its own Close races with Read
	t.pumps.Wait()
}

func terminalOf(ts *testscript.TestScript) *terminal {
	v, ok := terminals.Load(ts)
	if !ok {
		ts.Fatalf("there is no terminal")
	}
	return v.(*terminal)
}

// resizeTerminal gives the terminal another size: resize 120x40.
func resizeTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: resize WIDTHxHEIGHT")
	}
	t, size := terminalOf(ts), parseSize(ts, args[0])
	t.screen.Resize(int(size.Cols), int(size.Rows))
	ts.Check(pty.Setsize(t.pty, &size))
}

// typeInTerminal types text, in which \r is enter: types TEXT.
func typeInTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: types TEXT")
	}
	text := strings.NewReplacer(`\r`, "\r", `\e`, "\x1b", `^C`, "\x03").Replace(args[0])
	_, err := terminalOf(ts).pty.WriteString(text)
	ts.Check(err)
}

// seeInTerminal waits until the screen has what a regular expression matches, or has it
// no more: sees REGEXP.
func seeInTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] sees REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	t := terminalOf(ts)
	deadline := time.Now().Add(readyTimeout)
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		text := ansi.Strip(t.screen.Render())
		if re.MatchString(text) != neg {
			return
		}
		select {
		case err := <-t.exited:
			t.exited <- err
			ts.Fatalf("the program ended (%v); the screen is\n%s\n%s", err, text, t.screen.Render())
		default:
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the screen is still\n%s", text)
		}
	}
}

// signalTerminal sends a signal to the program: signal TERM.
func signalTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || unix.SignalNum("SIG"+args[0]) == 0 {
		ts.Fatalf("usage: signal NAME")
	}
	ts.Check(terminalOf(ts).cmd.Process.Signal(unix.SignalNum("SIG" + args[0])))
}

// leaveTerminal waits for the program's end, which is to be with 0, and checks that the
// terminal is as it was.
func leaveTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: leaves")
	}
	t := terminalOf(ts)
	terminals.Delete(ts)
	var err error
	select {
	case err = <-t.exited:
	case <-time.After(readyTimeout):
		t.cmd.Process.Kill() //nolint:errcheck // it may be gone
		err = errors.Join(errors.New("the program did not end"), <-t.exited)
	}
	after, terr := unix.IoctlGetTermios(int(t.tty.Fd()), unix.TCGETS)
	t.close()
	if err != nil || terr != nil {
		ts.Fatalf("%v, %v\n%s", err, terr, &t.all)
	}
	if *after != *t.before {
		ts.Fatalf("the terminal is left as %+v, and was %+v", after, t.before)
	}
	for _, end := range []string{"\x1b[?1049l", "\x1b[?25h"} { // the screen of before, the cursor
		begin := strings.TrimRight(end, "lh") + map[byte]string{'l': "h", 'h': "l"}[end[len(end)-1]]
		if all := t.all.String(); strings.LastIndex(all, end) < strings.LastIndex(all, begin) || !strings.Contains(all, end) {
			ts.Fatalf("%q does not follow the last %q", end, begin)
		}
	}
	if strings.Contains(t.all.String(), "\x1b[31m") {
		ts.Fatalf("there are colours in spite of NO_COLOR")
	}
}

// Command hearth is the server and the command line of Hearth, a self-hosted
// serverless function platform.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // so that every machine knows the zones of schedules

	"github.com/hearthrun/hearth/bench"
)

// version is set by the linker.
var version = "dev"

func main() {
	bench.MaybeServeReference()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is one run of the command line.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	// url and output are flags shared by the commands that talk to a server.
	url, output string
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/term"

	"github.com/hearthrun/hearth"
)

// input reads what a person or another program writes. A read ends when the command is
// interrupted, and its errors are of the vocabulary.
type input struct {
	ctx  context.Context // of the command
	from io.ReadCloser
	buf  []byte // what a read that was given up may still write to
}

// input returns standard input.
func (a *app) input(ctx context.Context) *input {
	return &input{ctx: ctx, from: io.NopCloser(a.stdin)}
}

// openInput opens a file, which may be a pipe; - is standard input. The hint says what
// else could have been given. Errors: CodeInvalid, CodeCanceled.
func (a *app) openInput(ctx context.Context, name, hint string) (*input, error) {
	if name == "-" {
		return a.input(ctx), nil
	}
	f, err := interruptible(ctx, func() (*os.File, error) { return os.Open(name) })
	switch {
	case hearth.ErrorCode(err) == hearth.CodeCanceled:
		return nil, err
	case errors.Is(err, fs.ErrNotExist):
		return nil, hearth.Errorf(hearth.CodeInvalid, "there is no file %s", name).WithHint("%s", hint)
	case err != nil:
		return nil, hearth.Errorf(hearth.CodeInvalid, "%w", err).WithHint("%s", hint)
	}
	return &input{ctx: ctx, from: f}, nil
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	in.buf = slices.Grow(in.buf[:0], len(p))[:len(p)]
	n, err := interruptible(in.ctx, func() (int, error) { return in.from.Read(in.buf) })
	var h *hearth.Error
	if err != nil && !errors.Is(err, io.EOF) && !errors.As(err, &h) {
		err = hearth.Errorf(hearth.CodeInvalid, "%w", err)
	}
	return copy(p, in.buf[:n]), err
}

// Close implements io.Closer.
func (in *input) Close() error { return in.from.Close() }

// password asks for a line on the terminal that is standard input, without showing it.
func (a *app) password(ctx context.Context, terminal *os.File, question string) ([]byte, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(a.stderr, question)
	defer fmt.Fprintln(a.stderr)
	line, err := interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if err != nil {
		_ = term.Restore(fd, before) // a read that was given up has not done it
	}
	return line, err
}

// interruptible returns what f does, which may wait for a person or another program:
// nothing else ends a read of a terminal or a named pipe. If ctx ends, f is left alone
// until the process ends. Errors: those of f, CodeCanceled.
func interruptible[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	if ctx.Err() == nil {
		go func() {
			v, err := f()
			done <- result{v, err}
		}()
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, &hearth.Error{Code: hearth.CodeCanceled, Message: "interrupted", Err: ctx.Err()}
	}
}

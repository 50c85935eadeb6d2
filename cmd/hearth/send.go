package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) sendCmd() *cobra.Command {
	var data string
	var lines bool
	var m client.Message
	cmd := &cobra.Command{
		Use:   "send QUEUE",
		Short: "Put messages into a queue",
		Long: `Send puts a message into a queue, or with --lines each line of its input as one,
and prints their ids when they have reached the server's disk. A function that
names the queue in its hearth.yaml gets them in batches:

  queues:
    orders: {batch_size: 10, batch_window: 5s}

A message is text, often JSON. It is passed at least once, and again when the
function fails or reports that it could not handle it. "hearth queue list
queue:QUEUE" shows what became of the messages.`,
		Example: `  hearth send orders --data '{"order":7}'
  hearth send orders --data '{"order":7}' --delay 30s --dedup order-7
  hearth send orders --data @order.xml
  hearth send orders --lines --data @orders.txt
  jq -c '.[]' orders.json | hearth send orders --lines
  tail -F app.log | hearth send lines --lines`,
		Args:              oneQueue,
		ValidArgsFunction: a.completeQueue,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if data == "" {
				if !lines {
					return &usageError{errors.New("which message?\n\nadd --data TEXT, --data @FILE, --data - for standard input, or --lines")}
				}
				data = "-"
			}
			if m.Delay < 0 {
				return &usageError{fmt.Errorf("--delay %s is negative", m.Delay)}
			}
			if lines && m.DeduplicationKey != "" {
				return &usageError{errors.New("--dedup is for one message\n\nleave out --lines")}
			}
			in, err := a.event(ctx, data, true)
			if err != nil {
				return err
			}
			if f, ok := in.(io.Closer); ok {
				defer f.Close()
			}
			s := sender{a: a, c: c, queue: args[0]}
			if lines {
				return s.lines(ctx, in, m)
			}
			body, err := io.ReadAll(io.LimitReader(in, hearth.MaxQueueMessage+1))
			if err != nil {
				return err
			}
			if len(body) > hearth.MaxQueueMessage {
				return hearth.Errorf(hearth.CodeInvalid, "the message is longer than a message can be, %s", hearth.Bytes(hearth.MaxQueueMessage)).
					WithHint("send a link to the data, or with --lines each line as a message")
			}
			m.Body = string(body)
			if err := s.add(ctx, m); err != nil {
				return err
			}
			return s.flush(ctx)
		}),
	}
	cmd.Flags().StringVarP(&data, "data", "d", "", "the message: text, `@FILE`, or - for standard input")
	cmd.Flags().BoolVar(&lines, "lines", false, "each line is a message; without --data those of standard input")
	durationVar(cmd.Flags(), &m.Delay, "delay", 0, "how long they wait at least, such as 30s")
	cmd.Flags().StringVar(&m.DeduplicationKey, "dedup", "", "`KEY` under which the message is accepted once only")
	return a.talks(cmd)
}

// sender puts messages into a queue, several at once.
type sender struct {
	a     *app
	c     *client.Client
	queue string
	list  []client.Message
	size  int // of list
	sent  int
}

const (
	// sendCount and sendBytes are what a request has at most. As JSON a message takes up
	// to six times its bytes, of which the server takes 16 MiB.
	sendCount = 1000
	sendBytes = 5 << 19
	// sendPause is how long a message waits for others.
	sendPause = 100 * time.Millisecond
)

// lines sends each line, which is like m. Empty lines are left out.
func (s *sender) lines(ctx context.Context, in io.Reader, m client.Message) error {
	type line struct {
		number int
		text   string
	}
	lines, stop := make(chan line), make(chan struct{})
	defer close(stop)
	var readErr error
	go func() {
		defer close(lines)
		scan := bufio.NewScanner(in)
		scan.Buffer(nil, hearth.MaxQueueMessage+1)
		n := 0
		for scan.Scan() {
			n++
			select {
			case lines <- line{n, scan.Text()}:
			case <-stop:
				return
			}
		}
		if readErr = scan.Err(); errors.Is(readErr, bufio.ErrTooLong) {
			readErr = hearth.Errorf(hearth.CodeInvalid, "line %d is longer than a message can be, %s", n+1, hearth.Bytes(hearth.MaxQueueMessage))
		}
	}()
	var pause <-chan time.Time
	for {
		select {
		case l, ok := <-lines:
			switch {
			case !ok:
				if err := s.flush(ctx); err != nil || readErr != nil {
					return s.broken(cmp.Or(err, readErr))
				}
				fmt.Fprintf(s.a.stderr, "sent %s to %s\n", count(s.sent, "message"), s.queue)
				return nil
			case l.text == "":
				continue
			}
			m.Body = l.text
			if err := s.add(ctx, m); err != nil {
				return s.broken(fmt.Errorf("line %d: %w", l.number, err))
			}
			if pause == nil {
				pause = time.After(sendPause)
			}
		case <-pause:
			if err := s.flush(ctx); err != nil {
				return s.broken(err)
			}
			pause = nil
		case <-ctx.Done():
			return s.broken(ctx.Err())
		}
	}
}

// broken says how far it came.
func (s *sender) broken(err error) error {
	fmt.Fprintf(s.a.stderr, "%s sent to %s before\n", count(s.sent, "message"), s.queue)
	return err
}

func (s *sender) add(ctx context.Context, m client.Message) error {
	if err := (hearth.Message{Body: m.Body}).Validate(); err != nil {
		return err
	}
	if len(s.list) == sendCount || s.size+len(m.Body) > sendBytes {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	s.list = append(s.list, m)
	s.size += len(m.Body)
	return nil
}

func (s *sender) flush(ctx context.Context) error {
	if len(s.list) == 0 {
		return nil
	}
	sent, err := s.c.Send(ctx, s.queue, s.list...)
	if err != nil {
		return err
	}
	for _, m := range sent {
		if m.Duplicate {
			fmt.Fprintln(s.a.stderr, "it was accepted before, under the same key")
		}
		if _, err := fmt.Fprintln(s.a.stdout, printable(m.ID)); err != nil {
			return err
		}
	}
	s.sent += len(sent)
	s.list, s.size = s.list[:0], 0
	return nil
}

func (a *app) queuesCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "queues",
		Short: "List the queues of messages",
		Long: `Queues lists the queues whose messages a function takes, and those that have
messages: how many wait (of which some are not due yet), are with the function, were
handled and are kept, and are dead letters. LATE is for how long the next one of
those that wait has been due.`,
		Example: `  hearth queues
  hearth queue list queue:orders --state dead
  hearth queue redrive queue:orders`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Queues(ctx)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			if len(list) == 0 {
				fmt.Fprintln(a.stderr, "There are no queues.")
				return nil
			}
			now := time.Now()
			rows := [][]string{append([]string{"QUEUE", "FUNCTION"}, countColumns...)}
			for _, q := range list {
				rows = append(rows, append([]string{q.Name, orDash(q.Function)}, countRow(q.QueueCounts, now)...))
			}
			return a.printTable(rows)
		}),
	}))
}

// countColumns are the heads of what countRow returns.
var countColumns = []string{"QUEUED", "DELAYED", "RUNNING", "SUCCEEDED", "DEAD", "CANCELED", "LATE", "SIZE"}

// countRow returns the columns of counts at a time.
func countRow(c hearth.QueueCounts, now time.Time) []string {
	late := "-"
	if d := now.Sub(c.OldestDue); !c.OldestDue.IsZero() && d > 0 {
		late = span(d)
	}
	var row []string
	for _, n := range []int64{c.Queued, c.Delayed, c.Running, c.Succeeded, c.Dead, c.Canceled} {
		row = append(row, strconv.FormatInt(n, 10))
	}
	return append(row, late, size(c.Bytes))
}

// oneQueue accepts exactly one argument, the name of a queue.
func oneQueue(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fmt.Errorf("which queue?\n\nwrite %s QUEUE; hearth queues lists them", cmd.CommandPath())
	case len(args) > 1:
		return fmt.Errorf("%q is too much after the name of a queue\n\nwrite --data TEXT, or --data @FILE for what is in a file", args[1])
	case hearth.QueueOf(args[0]) != "":
		return fmt.Errorf("a queue is named without %s here\n\nwrite %s %s", hearth.QueuePrefix, cmd.CommandPath(), hearth.QueueOf(args[0]))
	}
	if err := hearth.ValidateQueueName(args[0]); err != nil {
		e := hearth.AsError(err)
		return fmt.Errorf("%s\n\n%s", e.Message, e.Hint)
	}
	return nil
}

// completeQueue completes the name of a queue.
func (a *app) completeQueue(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeFrom(cmd, args, func(ctx context.Context, c *client.Client) (names []string, err error) {
		list, err := c.Queues(ctx)
		for _, q := range list {
			names = append(names, q.Name)
		}
		return names, err
	})
}

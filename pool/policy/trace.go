package policy

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Call is one call of a trace.
type Call struct {
	Function string
	// Start is when it came, counted from the start of the trace.
	Start    time.Duration
	Duration time.Duration
	// MemoryMB is what an instance of the function takes; 0 if that is not known.
	MemoryMB float64
}

// Trace is calls in the order in which they came; an error ends it.
type Trace = iter.Seq2[Call, error]

// traceHeader is the first line of a trace; its last column may be missing.
var traceHeader = []string{"function", "start_s", "duration_s", "memory_mb"}

// maxSeconds bounds the times of a trace, so that none overflows: a century.
const maxSeconds = 100 * 365 * 24 * 3600

// ReadTrace reads a trace from CSV with the header
// function,start_s,duration_s[,memory_mb], line by line as it is consumed.
// Errors tell the line.
func ReadTrace(r io.Reader) Trace {
	return func(yield func(Call, error) bool) {
		in := csv.NewReader(r)
		in.ReuseRecord = true
		in.FieldsPerRecord = -1 // so that the message is ours
		header, err := in.Read()
		if errors.Is(err, io.EOF) {
			err = errors.New("is empty")
		}
		if err != nil {
			yield(Call{}, fmt.Errorf("trace: %w", err))
			return
		}
		header[0] = strings.TrimPrefix(header[0], "\ufeff") // spreadsheets begin with it
		columns := len(header)
		if columns < 3 || columns > 4 || !slices.Equal(header, traceHeader[:columns]) {
			yield(Call{}, fmt.Errorf("trace: line 1 is %q, not the header function,start_s,duration_s or function,start_s,duration_s,memory_mb", strings.Join(header, ",")))
			return
		}
		var last Call
		for {
			record, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil { // it has the line
				yield(Call{}, fmt.Errorf("trace: %w", err))
				return
			}
			call, err := parseCall(record, columns)
			if err == nil && call.Start < last.Start {
				err = fmt.Errorf("start_s %s is before that of the line above; sort the trace by start_s", record[1])
			}
			if err != nil {
				line, _ := in.FieldPos(0)
				yield(Call{}, fmt.Errorf("trace: line %d: %w", line, err))
				return
			}
			if last = call; !yield(call, nil) {
				return
			}
		}
	}
}

func parseCall(record []string, columns int) (Call, error) {
	if len(record) != columns {
		return Call{}, fmt.Errorf("%d columns, but the header has %d", len(record), columns)
	}
	if record[0] == "" {
		return Call{}, errors.New("function is empty")
	}
	var values [3]float64
	for i, s := range record[1:] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v >= 0 && v <= maxSeconds) { // not NaN either
			return Call{}, fmt.Errorf("%s %q is not a number from 0 to %d", traceHeader[i+1], s, maxSeconds)
		}
		values[i] = v
	}
	nanos := func(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }
	return Call{
		Function: strings.Clone(record[0]),
		Start:    nanos(values[0]), Duration: nanos(values[1]), MemoryMB: values[2],
	}, nil
}

// WriteTrace writes a trace as ReadTrace reads it, with milliseconds and
// memory_mb. It returns the first error of the trace or of w.
func WriteTrace(w io.Writer, trace Trace) error {
	b := bufio.NewWriter(w)
	out := csv.NewWriter(b)
	out.Write(traceHeader) //nolint:errcheck // Error tells it
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	for call, err := range trace {
		if err != nil {
			return err
		}
		err = out.Write([]string{
			call.Function,
			number(call.Start.Round(time.Millisecond).Seconds()),
			number(call.Duration.Round(time.Millisecond).Seconds()),
			number(call.MemoryMB),
		})
		if err != nil {
			return err
		}
	}
	out.Flush()
	return errors.Join(out.Error(), b.Flush())
}

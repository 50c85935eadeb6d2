package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

const (
	// lookBack is how many of the latest calls tell about cold starts.
	lookBack = 200
	// shownCalls is how many cold calls are listed.
	shownCalls = 5
	// sameStart is how far the pool's time of a cold start and the one that
	// follows from the record of the call may differ.
	sameStart = time.Second
)

func (a *app) poolWhyCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "why FUNCTION",
		Short: "Tell why calls of a function were cold starts",
		Long: fmt.Sprintf(`Why tells why the latest cold call of a function found no instance that was
ready and where its time went, how often that happens and for which reasons, how
long the function is kept warm, and what one could do about it. It looks at the
last %d calls and at what the pool remembers since the server's start.

Reasons: first (no instance since the deploy or the server's start), expired (no
call for a while), scale (all instances were busy), evicted (others needed the
memory), died (the instance ended by itself or did not start).`, lookBack),
		Example: `  hearth pool why hello
  hearth pool why hello -o json | jq -r '.advice[]'`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			w, err := lookInto(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(w)
			}
			w.write(a.stdout, time.Now())
			return nil
		},
	}))
}

// coldStory is what is known about the cold starts of a function.
type coldStory struct {
	Function string `json:"function"`
	// Pool is what the pool knows of the live version; null if it has no instance
	// and was not called lately.
	Pool      *hearth.PoolFunction `json:"pool"`
	Instances []hearth.Instance    `json:"instances"`
	// RecentCalls is how many of the latest calls were looked at, RecentCold those
	// that were cold, the latest first.
	RecentCalls int                 `json:"recent_calls"`
	RecentCold  []hearth.Invocation `json:"recent_cold"`
	Advice      []string            `json:"advice"`

	config hearth.Config
	status hearth.PoolStatus
}

// lookInto asks the server for what it knows.
func lookInto(ctx context.Context, c *client.Client, name string) (*coldStory, error) {
	f, err := c.Function(ctx, name)
	if err != nil {
		return nil, err
	}
	calls, _, err := c.Invocations(ctx, hearth.InvocationFilter{Function: name}, lookBack, "")
	if err != nil {
		return nil, err
	}
	st, err := c.Pool(ctx, name)
	if err != nil {
		return nil, err
	}
	w := &coldStory{Function: name, RecentCalls: len(calls), RecentCold: []hearth.Invocation{}, config: f.Config, status: st, Instances: []hearth.Instance{}}
	for _, call := range calls {
		if call.Cold {
			w.RecentCold = append(w.RecentCold, call)
		}
	}
	for _, p := range st.Functions {
		if p.Version == f.Live {
			w.Pool = &p
		}
	}
	for _, i := range st.Instances {
		if i.Version == f.Live {
			w.Instances = append(w.Instances, i)
		}
	}
	w.Advice = w.advise()
	return w, nil
}

// latest returns the latest cold start and the call that waited for it, nil if
// there is no record of one.
func (w *coldStory) latest() (*hearth.ColdStart, *hearth.Invocation) {
	var last *hearth.ColdStart
	if w.Pool != nil {
		last = w.Pool.LastCold
	}
	if len(w.RecentCold) == 0 {
		return last, nil
	}
	call := &w.RecentCold[0]
	got := call.StartedAt.Add(call.Timings.Queue + call.Timings.Start + call.Timings.Init)
	if last != nil && last.Reason == call.ColdReason && last.Time.Sub(got).Abs() < sameStart {
		return &hearth.ColdStart{Time: last.Time, Reason: last.Reason, Explanation: last.Explanation, Timings: call.Timings}, call
	}
	return &hearth.ColdStart{Time: got, Reason: call.ColdReason, Explanation: coldWords[call.ColdReason], Timings: call.Timings}, call
}

// coldWords are the reasons in words, for calls of which the pool has forgotten
// the details.
var coldWords = map[hearth.ColdReason]string{
	hearth.ColdFirst:   "the version had no instance since it was deployed or the server started",
	hearth.ColdExpired: "no call had come for a while, and its instances were ended",
	hearth.ColdScale:   "all instances were busy",
	hearth.ColdEvicted: "its instances were ended because others needed the memory, or somebody asked for it",
	hearth.ColdDied:    "the last instance ended by itself or did not start",
}

// counts are the cold starts by reason: those the pool counted or, if it knows
// nothing, those of the recent calls.
func (w *coldStory) counts() map[hearth.ColdReason]int64 {
	if w.Pool != nil && w.Pool.Calls > 0 {
		return w.Pool.ColdStarts
	}
	counts := map[hearth.ColdReason]int64{}
	for _, call := range w.RecentCold {
		counts[call.ColdReason]++
	}
	return counts
}

// byCount returns the reasons there are, the most frequent first.
func byCount[K, N cmp.Ordered](counts map[K]N) []K {
	return slices.SortedFunc(maps.Keys(counts), func(a, b K) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}

// write tells the story to people.
func (w *coldStory) write(out io.Writer, now time.Time) {
	line := func(format string, args ...any) { fmt.Fprintln(out, printable(fmt.Sprintf(format, args...))) }
	switch last, call := w.latest(); {
	case last == nil:
		line("No cold start of %s is known: no call on record was one, and there was none since the server's start.", w.Function)
	default:
		what := "cold call"
		if call == nil {
			what = "cold start"
		}
		line("The latest %s of %s was %s: %s", what, w.Function, ago(last.Time, now), last.Reason)
		line("  Why: %s.", last.Explanation)
		line("  It took %s: queue %s, start %s (sandbox and runtime), init %s (your code).",
			ms(last.Queue+last.Start+last.Init), ms(last.Queue), ms(last.Start), ms(last.Init))
		if call == nil {
			line("  It is not one of the last calls on record: it was the test of a deploy, is older, or its call still runs.")
		}
	}
	line("")
	line("%s", share(len(w.RecentCold), w.RecentCalls))
	for _, call := range w.RecentCold[:min(shownCalls, len(w.RecentCold))] {
		t := call.Timings
		line("  %s  %-7s  queue %s, start %s, init %s  %s", stamp(call.StartedAt), call.ColdReason, ms(t.Queue), ms(t.Start), ms(t.Init), call.ID)
	}
	if w.Pool != nil && len(w.Pool.ColdStarts) > 0 {
		line("Cold starts since the server's start: %s.", coldCounts(w.Pool.ColdStarts))
	}
	line("")
	line("%s", w.next())
	line("%s", w.kept())
	if len(w.Advice) > 0 {
		line("\nWhat you can do:")
	}
	for _, text := range w.Advice {
		line("- %s", text)
	}
}

// share says how many of the recent calls were cold.
func share(cold, calls int) string {
	switch {
	case calls == 0:
		return "There is no record of a call yet."
	case cold == 1:
		return fmt.Sprintf("1 of the last %s was cold:", count(calls, "call"))
	case cold == 0:
		return fmt.Sprintf("None of the last %s was cold.", count(calls, "call"))
	}
	return fmt.Sprintf("%d of the last %d calls were cold:", cold, calls)
}

// next says what happens to the next call.
func (w *coldStory) next() string {
	ready, busy := 0, 0
	for _, i := range w.Instances {
		switch i.State {
		case hearth.InstanceIdle, hearth.InstancePaused:
			ready++
		case hearth.InstanceBusy:
			busy++
		}
	}
	switch {
	case ready > 0:
		return "Now: " + count(ready, "instance") + " ready, so the next call is warm."
	case busy > 0:
		return "Now: all of its " + count(busy, "instance") + " busy; another call waits for one of them or for a new one."
	}
	return "Now: no instance is ready, so the next call is a cold start."
}

// kept says what keeps the function warm.
func (w *coldStory) kept() string {
	var why []string
	if w.config.Warm.Min > 0 {
		text := fmt.Sprintf("warm.min %d", w.config.Warm.Min)
		if w.config.Warm.Schedule != "" {
			text += " in the minutes of " + w.config.Warm.Schedule
		}
		why = append(why, text)
	}
	if w.Pool != nil && w.Pool.KeepAlive != "" {
		why = append(why, w.Pool.KeepAlive)
	}
	if why == nil {
		return "Keep-alive: nothing is known yet, as no call has come since the server's start."
	}
	return "Keep-alive: " + strings.Join(why, "; ") + "."
}

// advise says what one could do, for the most frequent reasons first.
func (w *coldStory) advise() []string {
	list := []string{}
	reasons := map[string]string{} // by what helps
	var remedies []string
	for _, reason := range byCount(w.counts()) {
		text := w.remedy(reason)
		if reasons[text] == "" {
			remedies = append(remedies, text)
			reasons[text] = string(reason)
		} else {
			reasons[text] += ", " + string(reason)
		}
	}
	for _, text := range remedies {
		list = append(list, "("+reasons[text]+") "+text)
	}
	last, _ := w.latest()
	if last == nil {
		return list
	}
	if last.Init > 100*time.Millisecond && last.Init > last.Start {
		list = append(list, "most of the start is init, the loading of your code: import less at the top of its files, or import where it is used")
	}
	if last.Start > 200*time.Millisecond && last.Start > last.Init {
		list = append(list, "most of the start is the sandbox under "+w.config.Isolation+": hearth bench compare measures how fast others are on this machine")
	}
	return list
}

// remedy says what helps against cold starts for the reason.
func (w *coldStory) remedy(reason hearth.ColdReason) string {
	warm := w.config.Warm
	switch reason {
	case hearth.ColdFirst, hearth.ColdExpired:
		if warm.Min == 0 {
			return "warm: {min: 1} in hearth.yaml keeps an instance ready, also after a restart; with a schedule only at certain times"
		}
		text := fmt.Sprintf("warm.min is %d: such calls came before the instances were ready", warm.Min)
		if warm.Schedule != "" {
			text += ", or outside of warm.schedule (" + warm.Schedule + ")"
		}
		return text
	case hearth.ColdScale:
		text := fmt.Sprintf("raise warm.min (now %d) to how many calls usually come at once", warm.Min)
		if w.config.InstanceConcurrency == 1 {
			text += "; if the handler is async and waits most of the time, instance_concurrency lets one instance run several"
		}
		return text
	case hearth.ColdEvicted:
		return "memory is scarce (" + memory(w.status) + " used now): give the server more with --memory-budget, let functions use less, or protect this one with warm.min"
	case hearth.ColdDied:
		return "hearth logs " + w.Function + " shows what its instances said before they ended; if they ran out of memory, raise memory (now " + w.config.Memory.String() + ")"
	}
	return "this client does not know the reason; its version differs from the server's"
}

package policy

import (
	"fmt"
	"math"
	"time"
)

// The constants of the hybrid histogram policy: M. Shahrad et al., "Serverless
// in the Wild: Characterizing and Optimizing the Serverless Workload at a Large
// Cloud Provider", USENIX ATC 2020, section 4.2 unless another is named.
const (
	hybridBin    = time.Minute // as fine as the histogram is
	hybridBins   = 240         // its range is 4 hours
	hybridHead   = 0.05        // percentile of the pre-warming window
	hybridTail   = 0.99        // percentile that the keep-alive window reaches to
	hybridMargin = 0.10        // by which the head is earlier and the tail later
	// A histogram whose bins vary less than this (standard deviation over mean)
	// tells nothing; section 5.2 compares 0 to 10.
	hybridVariation = 2
	// Above this share of idle times beyond its range the histogram is not
	// asked.
	hybridOutOfBounds = 0.5
	// hybridEnough is ours: with fewer idle times, each in a bin of its own, any
	// histogram varies enough.
	hybridEnough = 10
	// hybridFull is ours, too: counts are halved when there are this many, so that
	// a function that changes is followed. The paper ages by days.
	hybridFull = 1024
)

// Hybrid is the hybrid histogram policy of the paper, without ARIMA: functions
// with most idle times above 4 hours get the fixed window. The zero value knows
// nothing yet.
type Hybrid struct {
	// Wide keeps functions whose histogram tells nothing for all of its range, as
	// the paper does, rather than 10 minutes.
	Wide bool

	bins   [hybridBins]uint16
	total  uint16 // of bins
	beyond uint16
}

// Observe tells that a call came after this long without any in flight.
func (h *Hybrid) Observe(idle time.Duration) {
	if bin := idle / hybridBin; bin < hybridBins {
		h.bins[max(0, bin)]++
		h.total++
	} else {
		h.beyond++
	}
	if h.total+h.beyond < hybridFull {
		return
	}
	h.total = 0
	for i := range h.bins {
		h.bins[i] /= 2
		h.total += h.bins[i]
	}
	h.beyond /= 2
}

// Windows are those after a call that ends now.
func (h *Hybrid) Windows() Windows {
	switch n := h.total + h.beyond; {
	case n < hybridEnough:
		return Windows{KeepAlive: fallback, Reason: fmt.Sprintf("only %d of %d idle times known yet: kept %s", n, hybridEnough, human(fallback))}
	case float64(h.beyond) > hybridOutOfBounds*float64(n):
		return Windows{KeepAlive: fallback, Reason: "most calls come after more than 4 h: kept " + human(fallback)}
	case h.variation() < hybridVariation:
		w := Windows{KeepAlive: fallback}
		if h.Wide {
			w.KeepAlive = hybridBins * hybridBin
		}
		w.Reason = "calls come without a pattern: kept " + human(w.KeepAlive)
		return w
	}
	head, tail := h.percentile(hybridHead), h.percentile(hybridTail)+1 // rounded down and up
	until := time.Duration(float64(tail) * (1 + hybridMargin) * float64(hybridBin))
	w := Windows{PreWarm: time.Duration(float64(head) * (1 - hybridMargin) * float64(hybridBin))}
	w.KeepAlive = until - w.PreWarm
	w.Reason = "calls come every " + span(time.Duration(head)*hybridBin, time.Duration(tail)*hybridBin)
	if w.PreWarm == 0 {
		w.Reason += ": kept " + human(w.KeepAlive) + " after each"
	} else {
		w.Reason += ": stopped after each, started again " + human(w.PreWarm) + " later"
	}
	return w
}

// percentile returns the bin that the share p of the idle times reaches to.
func (h *Hybrid) percentile(p float64) int {
	rank, sum := math.Ceil(p*float64(h.total)), 0.0
	for i, n := range h.bins {
		if sum += float64(n); sum >= rank {
			return i
		}
	}
	return hybridBins - 1
}

// variation is the coefficient of variation of the bins' counts: large if idle
// times concentrate in few bins.
func (h *Hybrid) variation() float64 {
	mean := float64(h.total) / hybridBins
	var squares float64
	for _, n := range h.bins {
		squares += (float64(n) - mean) * (float64(n) - mean)
	}
	return math.Sqrt(squares/hybridBins) / mean
}

package guesttest

import (
	"math/rand/v2"
	"slices"
)

// random makes defects; the same seed makes the same ones.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 0))} }

// mutate returns b with a few defects.
func (r random) mutate(b []byte) []byte {
	for range 1 + r.IntN(3) {
		i := r.IntN(len(b))
		n := min(1+r.IntN(20), len(b)-i)
		switch r.IntN(6) {
		case 0: // flip a bit
			b[i] ^= 1 << r.IntN(8)
		case 1: // another byte
			b[i] = byte(r.Uint32())
		case 2: // cut a piece out
			b = slices.Delete(b, i, i+n)
		case 3: // put a piece in twice
			b = slices.Insert(b, i, slices.Clone(b[i:i+n])...)
		case 4: // put noise in
			noise := make([]byte, n)
			for j := range noise {
				noise[j] = byte(r.Uint32())
			}
			b = slices.Insert(b, i, noise...)
		case 5: // break off
			b = b[:max(i, 1)]
		}
	}
	return b
}

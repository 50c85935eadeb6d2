package policy

// saturated is the part of the cores that must be busy for them to count as
// saturated. The rest is what the kernel's ticks of a hundredth of a second hide.
const saturated = 0.9

// Cores is what was seen lately of the machine's cores.
type Cores struct {
	// All is how many there are, Busy how many of them were busy with whatever, and
	// Used how many of those with the instances of one version.
	All, Busy, Used float64
	// Crowds is how many versions have calls waiting, or a limit.
	Crowds int
}

// Parallel returns how many instances of a version should have calls at the same
// time from now on, if limit did until now and running have; 0 means that there is
// no limit. Once all cores are busy and the version has a good part in it, more at
// once only make each of them slower, those of other versions with them: so there
// are fewer, down to two for each core, until some core is idle again. Calls that
// wait for something else than a core use next to none, and have no limit.
func Parallel(limit, running int, c Cores) int {
	fairHalf := c.All / float64(2*max(2, c.Crowds))
	switch {
	case c.Busy >= saturated*c.All && c.Used >= fairHalf:
		if limit == 0 || running < limit {
			limit = running
		}
		return max(ceil(2*c.All), limit*3/4)
	case limit == 0:
		return 0
	}
	return limit + max(1, limit/4)
}

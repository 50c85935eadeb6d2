package policy

import "testing"

func TestParallel(t *testing.T) {
	for _, tt := range []struct {
		name           string
		limit, running int
		cores          Cores
		want           int
	}{
		{"idle cores", 0, 40, Cores{All: 4, Busy: 3.5, Used: 3, Crowds: 1}, 0},
		{"nothing known", 0, 40, Cores{All: 4}, 0},
		{"computing", 0, 40, Cores{All: 4, Busy: 4, Used: 3, Crowds: 1}, 30},
		{"still computing", 30, 30, Cores{All: 4, Busy: 3.7, Used: 3, Crowds: 1}, 22},
		{"at least two for each core", 9, 9, Cores{All: 4, Busy: 4, Used: 4, Crowds: 1}, 8},
		{"less than that", 0, 3, Cores{All: 4, Busy: 4, Used: 3, Crowds: 1}, 8},
		{"the limit is not reached yet", 30, 12, Cores{All: 4, Busy: 4, Used: 3, Crowds: 1}, 9},
		{"waiting while others compute", 0, 40, Cores{All: 4, Busy: 4, Used: 0.2, Crowds: 2}, 0},
		{"half of a fair share of two", 0, 40, Cores{All: 4, Busy: 4, Used: 1, Crowds: 2}, 30},
		{"one of many that compute", 0, 40, Cores{All: 4, Busy: 4, Used: 0.5, Crowds: 8}, 30},
		{"no longer saturated", 8, 8, Cores{All: 4, Busy: 3, Used: 3, Crowds: 1}, 10},
		{"a small limit grows too", 2, 2, Cores{All: 1, Busy: 0.5, Used: 0.5, Crowds: 1}, 3},
	} {
		if got := Parallel(tt.limit, tt.running, tt.cores); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

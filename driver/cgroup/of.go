package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Of returns the control group that a process of somebody else's container is
// in, for looking at it: its limits and its end are the affair of who made it.
// The group's path must contain mark, so that a process which was left in a
// group with others tells nothing of those; otherwise, and where the hierarchy
// cannot be seen, ok is false and the group is an empty one.
func Of(pid int, mark string) (g Group, ok bool) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return noGroup{}, false
	}
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return noGroup{}, false
	}
	paths := map[string]string{} // controller, "" for v2 → path
	for line := range strings.Lines(string(groups)) {
		p := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(p) != 3 || !strings.Contains(p[2], mark) {
			continue
		}
		for c := range strings.SplitSeq(p[1], ",") {
			paths[c] = p[2]
		}
	}
	one := &group1{dir: map[string]string{}}
	two := ""
	for line := range strings.Lines(string(mounts)) {
		head, tail, found := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !found || len(h) < 5 || len(t) < 3 || t[0] != "cgroup" && t[0] != "cgroup2" {
			continue
		}
		options := t[2]
		if t[0] == "cgroup2" {
			options = ""
		}
		for c := range strings.SplitSeq(options, ",") {
			path, has := paths[c]
			rel, err := filepath.Rel(h[3], path)
			if !has || err != nil || strings.HasPrefix(rel, "..") {
				continue
			}
			dir := filepath.Join(h[4], rel)
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			if c == "" {
				two = dir
			} else if one.dir[c] == "" {
				one.dir[c] = dir
				one.dirs = append(one.dirs, dir)
			}
		}
	}
	switch {
	case one.dir["memory"] != "":
		return one, true
	case two != "":
		return &group2{dir: two}, true
	}
	return noGroup{}, false
}

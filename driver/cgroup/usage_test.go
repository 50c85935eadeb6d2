package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
)

// What the kernel's files say, of several devices.
func TestUsage(t *testing.T) {
	files := func(content map[string]string) string {
		t.Helper()
		dir := t.TempDir()
		for name, text := range content {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	want := driver.Usage{CPU: 1500 * time.Millisecond, Memory: 4096, MemoryPeak: 8192, DiskRead: 4096 + 512, DiskWritten: 1024}
	two := &group2{dir: files(map[string]string{
		"cpu.stat":       "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
		"memory.current": "4096\n", "memory.peak": "8192\n",
		"io.stat": "8:0 rbytes=4096 wbytes=1024 rios=1 wios=1 dbytes=7 dios=1\n259:1 rbytes=512 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
	})}
	if u := two.Usage(); u != want {
		t.Errorf("version 2: %+v, want %+v", u, want)
	}
	dir := files(map[string]string{
		"cpuacct.usage": "1500000000\n", "memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "8192\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 1024\n8:0 Sync 5120\n8:0 Async 0\n8:0 Discard 7\n8:0 Total 5127\n259:1 Read 512\n259:1 Write 0\nTotal 5639\n",
	})
	one := &group1{dir: map[string]string{"memory": dir, "cpuacct": dir, "blkio": dir}}
	if u := one.Usage(); u != want {
		t.Errorf("version 1: %+v, want %+v", u, want)
	}
	for _, g := range []Group{&group2{dir: t.TempDir()}, &group1{dir: map[string]string{"memory": t.TempDir(), "blkio": t.TempDir()}}, noGroup{}} {
		if u := g.Usage(); u != (driver.Usage{}) {
			t.Errorf("nothing is known, but %+v", u)
		}
	}
}

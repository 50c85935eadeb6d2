package guesttest

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// initFiles checks that the files of INIT are there when the function is loaded,
// and are nobody else's.
func (s *suite) initFiles(t *testing.T) {
	place := func() string {
		if s.Start != nil {
			return "/tmp/init-files"
		}
		return filepath.Join(t.TempDir(), "files")
	}
	give := func(dir any, files any) (*peer, frame) {
		p := s.start(t)
		p.hello()
		head := map[string]any{
			"function": "fixture", "version": 7, "handler": "conformance.files", "code": s.code, "memory_mb": 128,
			"env": map[string]any{"FILES": dir}, "files": files, "files_dir": dir,
		}
		p.send(initialize, 0, mustJSON(head))
		return p, p.initialized()
	}
	big := make([]byte, 64<<10)
	for i := range big {
		big[i] = byte(i * i)
	}
	files := map[string][]byte{"key.pem": []byte("a\nb\n"), "empty": {}, "big.bin": big}
	p, f := give(place(), files)
	if f.typ != ready {
		t.Fatalf("INIT was answered with %s", f)
	}
	r := p.wait(p.invoke("event", nil, []byte("{}")))
	var got struct {
		Mode  string
		Found map[string][2]string
	}
	if err := json.Unmarshal([]byte(r.body()), &got); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if got.Mode != "700" || len(got.Found) != len(files) {
		t.Errorf("the directory has mode %s and %d files", got.Mode, len(got.Found))
	}
	for name, content := range files {
		if f := got.Found[name]; f[0] != "400" || f[1] != hex.EncodeToString(content) {
			t.Errorf("%s has mode %s and %.80s", name, f[0], f[1])
		}
	}
	p.stop()

	for name, bad := range map[string]struct {
		dir   string
		files map[string][]byte
	}{
		"no such place":  {"/nowhere/files", map[string][]byte{"a": nil}},
		"already there":  {s.code, map[string][]byte{"a": nil}},
		"a name outside": {place(), map[string][]byte{"../outside": []byte("hush")}},
	} {
		p, f := give(bad.dir, bad.files)
		s.checkInitError(t, f, "Runtime.InvalidFiles", bad.dir)
		if strings.Contains(f.String(), "hush") {
			t.Errorf("%s: the error tells of the content: %s", name, f)
		}
		if _, err := os.Lstat(filepath.Join(bad.dir, "../outside")); err == nil && s.Start == nil {
			t.Errorf("%s: a file was written outside of %s", name, bad.dir)
		}
		p.close(0)
	}
	for _, bad := range []struct{ dir, files any }{{1, map[string]string{"a": ""}}, {place(), []string{"a"}}, {place(), "a"}} {
		p := s.start(t)
		p.hello()
		p.send(initialize, 0, mustJSON(map[string]any{"handler": "conformance.files", "code": s.code, "files": bad.files, "files_dir": bad.dir}))
		p.ends(70)
	}
}

package client_test

import (
	"archive/tar"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// sourceServer answers every request with an archive of the headers, whose files
// have their own name as content. It breaks off before the end if cut.
func sourceServer(t *testing.T, cut bool, headers ...tar.Header) *client.Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/aliases") {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(`{"aliases":[]}`)) //nolint:errcheck // the client may have left
			return
		}
		gz := gzip.NewWriter(w)
		tw := tar.NewWriter(gz)
		for _, h := range headers {
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(h.Name))
			}
			if err := tw.WriteHeader(&h); err != nil {
				t.Error(err)
			}
			if h.Typeflag == tar.TypeReg {
				tw.Write([]byte(h.Name)) //nolint:errcheck // the client may have left
			}
		}
		if cut {
			gz.Flush() //nolint:errcheck // as above
			panic(http.ErrAbortHandler)
		}
		tw.Close() //nolint:errcheck // as above
		gz.Close() //nolint:errcheck // as above
	}))
	t.Cleanup(s.Close)
	c, err := client.New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func exported(name string) client.Function {
	return client.Function{Function: hearth.Function{Name: name, Live: 1, Config: hearth.Config{Runtime: "python3.11"}.WithDefaults()}}
}

// TestExportStaysInside exports from a server that wants to write elsewhere.
func TestExportStaysInside(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
	}
	for name, headers := range map[string][]tar.Header{
		"parent":            {file("../evil")},
		"parent inside":     {file("a/../../evil")},
		"absolute":          {file("/evil")},
		"backslash":         {file(`..\evil`)},
		"link outside":      {link("a", "../../evil")},
		"absolute link":     {link("a", "/etc/passwd")},
		"through a link":    {link("a", ".."), file("a/evil")},
		"twice":             {file("a"), file("a")},
		"file as directory": {file("a"), file("a/b")},
		"hard link":         {file("a"), {Typeflag: tar.TypeLink, Name: "b", Linkname: "a", Mode: 0o644}},
		"device":            {{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			dir := filepath.Join(top, "x/out")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			c := sourceServer(t, false, headers...)
			if _, err := c.Export(t.Context(), exported("f"), dir); hearth.ErrorCode(err) != hearth.CodeInvalid {
				t.Errorf("the error is %v", err)
			}
			onlyDirs(t, top)
		})
	}
	t.Run("broken off", func(t *testing.T) {
		dir := t.TempDir()
		c := sourceServer(t, true, file("main.py"))
		if _, err := c.Export(t.Context(), exported("f"), dir); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("the error is %v", err)
		}
		onlyDirs(t, dir)
	})
	t.Run("name", func(t *testing.T) {
		c := sourceServer(t, false, file("main.py"))
		if _, err := c.Export(t.Context(), exported("../f"), t.TempDir()); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("the error is %v", err)
		}
	})
}

// onlyDirs fails if anything but the directories x and x/out is below top.
func onlyDirs(t *testing.T, top string) {
	t.Helper()
	err := filepath.WalkDir(top, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(top, p); rel != "." && rel != "x" && rel != "x/out" {
			t.Errorf("%s was left", rel)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestExportReplaces exports into a directory in which there is something.
func TestExportReplaces(t *testing.T) {
	dir := t.TempDir()
	elsewhere := tree(t, map[string]string{"lib/keep.py": "theirs"})
	for p, text := range map[string]string{
		"f/old/gone.py": "x", "f/main.py": "old", "f/hearth.yaml": "name: f", "f/.git/config": "mine", "f/.venv/bin/x": "mine", "f/dir/a": "x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, p)), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, p), text)
	}
	// What is ignored, and so stays, leads elsewhere.
	put(t, filepath.Join(dir, "f/.hearthignore"), "lib\n")
	if err := os.Symlink(filepath.Join(elsewhere, "lib"), filepath.Join(dir, "f/lib")); err != nil {
		t.Fatal(err)
	}
	c := sourceServer(t, false,
		tar.Header{Typeflag: tar.TypeReg, Name: "main.py", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "dir/b", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeReg, Name: "hearth.yaml", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeReg, Name: "x~", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "dir/b", Mode: 0o777})
	leftOut, err := c.Export(t.Context(), exported("f"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x~"}, leftOut); diff != "" {
		t.Errorf("left out (-want +got):\n%s", diff)
	}
	got := map[string]string{}
	for _, p := range []string{"main.py", "dir/b", "link", ".git/config", ".venv/bin/x", "hearth.yaml"} {
		b, err := os.ReadFile(filepath.Join(dir, "f", p))
		if err != nil {
			t.Error(err)
		}
		got[p] = string(b)
	}
	want := map[string]string{
		"main.py": "main.py", "dir/b": "dir/b", "link": "dir/b", ".git/config": "mine", ".venv/bin/x": "mine",
		"hearth.yaml": "name: f\nruntime: python3.11\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, p := range []string{"old", "dir/a", ".hearthignore"} {
		if _, err := os.Lstat(filepath.Join(dir, "f", p)); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "f/main.py")); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("main.py is not executable: %v, %v", info, err)
	}

	// A link among what stays is not followed.
	if err := os.WriteFile(filepath.Join(dir, "f/.hearthignore"), []byte("lib\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c = sourceServer(t, false, tar.Header{Typeflag: tar.TypeReg, Name: "lib/keep.py", Mode: 0o644})
	if _, err := c.Export(t.Context(), exported("f"), dir); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("through a link: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(elsewhere, "lib/keep.py")); err != nil || string(b) != "theirs" {
		t.Errorf("outside: %q, %v", b, err)
	}
}

// TestManifestYAML writes configurations and reads them again.
func TestManifestYAML(t *testing.T) {
	odd := []string{"", " ", "true", "null", "~", "1.50", "0x10", "2026-01-01", "a: b", "- x", "# no", "'\"", "a\nb\n", "\ttab ", "trailing\n\n", "é\u2028", "\r\n", "!tag", "&a", "*a", "%", "@", "`", "|", ">", strings.Repeat("long ", 100)}
	env := map[string]string{}
	for i, s := range odd {
		env["V"+string(rune('A'+i))] = s
	}
	for name, c := range map[string]hearth.Config{
		"least": {Runtime: "python"},
		"env":   {Runtime: "nodejs20", Env: env},
		"all": {
			Runtime: "python3.11", Handler: "app.run", Isolation: "docker", Timeout: hearth.Duration(90e9), Memory: 100e6, CPU: 0.5,
			Concurrency: 8, InstanceConcurrency: 2, Egress: hearth.EgressNone, Labels: map[string]string{"a/b": "true", "x": ""},
			Warm:    hearth.Warm{Min: 1, Schedule: "* 8-18 * * MON-FRI", Call: map[string]any{"a": []any{1.5, "2", nil, true}}},
			Routes:  []hearth.Route{"GET /a/{b...}", "/c"},
			Secrets: map[string]string{"DB_PASSWORD": "db-password"}, SecretFiles: map[string]string{"tls.pem": "tls-key", "1": "db-password"},
			Cache: &hearth.Cache{TTL: map[hearth.Route]hearth.Duration{"/fn": hearth.Duration(1500e6), "GET /a/{b...}": 0}, Authorized: true},
		},
	} {
		m := client.Manifest{Name: "f", Config: c.WithDefaults()}
		b, err := m.YAML()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := client.ParseManifest("f.yaml", b)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, b)
			continue
		}
		if want := c.WithDefaults(); !reflect.DeepEqual(want, got.WithDefaults()) {
			t.Errorf("%s (-want +got):\n%s\n%s", name, cmp.Diff(want, got.WithDefaults()), b)
		}
	}
	m := client.Manifest{Name: "f", Config: hearth.Config{
		Runtime: "python3.11", Egress: hearth.EgressInternet, Labels: map[string]string{hearth.SetLabel: "x"},
	}.WithDefaults()}
	b, err := m.YAML()
	if want := "name: f\nruntime: python3.11\n"; err != nil || string(b) != want {
		t.Errorf("got %q, %v, want %q", b, err, want)
	}
	if m.Labels[hearth.SetLabel] != "x" {
		t.Error("YAML changes the labels of its manifest")
	}
}

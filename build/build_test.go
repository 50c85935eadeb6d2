package build_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

// entry is one entry of an archive to make.
type entry struct {
	name, body, link string
	mode             fs.FileMode // with type bits; 0 means 0644
	typ              byte        // for tar, if mode cannot say it
	flags            uint16      // for zip
}

func makeZip(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Flags: e.flags}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h.SetMode(e.mode)
		body := e.body
		if e.mode&fs.ModeSymlink != 0 {
			body = e.link
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.body)), Linkname: e.link, Typeflag: tar.TypeReg}
		if e.mode != 0 {
			h.Mode = int64(e.mode.Perm())
		}
		if e.mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		switch {
		case e.typ != 0:
			h.Typeflag = e.typ
		case e.mode.IsDir():
			h.Typeflag = tar.TypeDir
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag = tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// inside returns an empty directory within another that holds nothing else, to
// see that nothing was written beside it.
func inside(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "in")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func checkNothingBeside(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Fatalf("beside the directory: %v, %v", entries, err)
	}
}

// listing returns path → "mode content" for what lies in dir.
func listing(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		s := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += " " + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s = "link " + target
		}
		if info.Mode()&fs.ModeSymlink == 0 && info.ModTime().UTC().Format("2006-01-02T15:04:05") != "1980-01-01T00:00:00" {
			t.Errorf("%s has the time %v", rel, info.ModTime())
		}
		got[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func extract(t testing.TB, b []byte, f build.Format, l build.Limits) (build.Summary, string, error) {
	t.Helper()
	dir := inside(t)
	s, err := build.Extract(t.Context(), bytes.NewReader(b), f, dir, l)
	checkNothingBeside(t, dir)
	return s, dir, err
}

func TestSameContentSameDigest(t *testing.T) {
	want := map[string]string{
		"main.py":         "-rw-r--r-- print(1)",
		"bin":             "drwxr-xr-x",
		"bin/tool":        "-rwxr-xr-x #!/bin/sh",
		"lib":             "drwxr-xr-x",
		"lib/a":           "drwxr-xr-x",
		"lib/a/__init.py": "-rw-r--r-- ",
		"link":            "link lib/a/__init.py",
	}
	zipped := makeZip(t, entry{name: "link", link: "lib/a/__init.py", mode: 0o777 | fs.ModeSymlink},
		entry{name: "lib/a/__init.py"}, entry{name: "bin/", mode: fs.ModeDir | 0o700},
		entry{name: "bin/tool", body: "#!/bin/sh", mode: 0o700}, entry{name: "main.py", body: "print(1)", mode: 0o600})
	tarred := makeTar(t, entry{name: "./", mode: fs.ModeDir | 0o700}, entry{name: "./main.py", body: "print(1)"},
		entry{name: "./bin/tool", body: "#!/bin/sh", mode: 0o755 | fs.ModeSetuid}, entry{name: "./lib/", mode: fs.ModeDir | 0o777},
		entry{name: "./lib/a/__init.py"}, entry{name: "./link", link: "lib/a/__init.py", mode: fs.ModeSymlink})
	digests := map[string]bool{}
	for name, c := range map[string]struct {
		data   []byte
		format build.Format
	}{"zip": {zipped, build.Zip}, "tar": {tarred, build.Tar}, "tar.gz": {gz(t, tarred), build.TarGz}} {
		s, dir, err := extract(t, c.data, c.format, build.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, listing(t, dir)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if s.Files != 4 || s.Bytes != 17 || !strings.HasPrefix(s.Digest, "sha256:") || len(s.Digest) != 71 {
			t.Errorf("%s: summary %+v", name, s)
		}
		digests[s.Digest] = true
	}
	if len(digests) != 1 {
		t.Errorf("the digests differ: %v", digests)
	}
}

func TestInlineFiles(t *testing.T) {
	files := map[string]string{"main.py": "x = 1", "pkg/mod.py": ""}
	dir := inside(t)
	a, err := build.WriteFiles(t.Context(), files, dir, build.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := extract(t, makeZip(t, entry{name: "pkg/mod.py"}, entry{name: "main.py", body: "x = 1"}), build.Zip, build.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if a != b || a.Files != 2 || a.Bytes != 5 {
		t.Errorf("inline %+v, zip %+v", a, b)
	}
	for change, f := range map[string]map[string]string{
		"content": {"main.py": "x = 2", "pkg/mod.py": ""},
		"name":    {"main2.py": "x = 1", "pkg/mod.py": ""},
		"place":   {"main.py": "x = 1", "mod.py": ""},
	} {
		c, err := build.WriteFiles(t.Context(), f, inside(t), build.Limits{})
		if err != nil || c.Digest == a.Digest {
			t.Errorf("another %s: %+v, %v", change, c, err)
		}
	}
	for name, f := range map[string]map[string]string{
		"nothing":   {},
		"above":     {"../x": ""},
		"absolute":  {"/etc/x": ""},
		"directory": {"a/": ""},
		"conflict":  {"a": "", "a/b": ""},
	} {
		dir := inside(t)
		_, err := build.WriteFiles(t.Context(), f, dir, build.Limits{})
		checkInvalid(t, name, err)
		checkNothingBeside(t, dir)
	}
}

func checkInvalid(t testing.TB, name string, err error) {
	t.Helper()
	var e *hearth.Error
	if !errors.As(err, &e) || e.Code != hearth.CodeInvalid || e.Hint == "" {
		t.Errorf("%s: got %#v, want CodeInvalid with a hint", name, err)
	}
}

func TestHostileArchives(t *testing.T) {
	small := build.Limits{Unpacked: 1000, File: 600, Files: 10, PathLength: 40, Depth: 4}
	file := func(name string) entry { return entry{name: name, body: "x"} }
	link := func(name, target string) entry {
		return entry{name: name, link: target, mode: fs.ModeSymlink | 0o777}
	}
	many := make([]entry, 11)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i))
	}
	big := strings.Repeat("0", 500)
	both := map[string]struct {
		entries []entry
		want    string
	}{
		"absolute":             {[]entry{file("/etc/passwd")}, "absolute"},
		"above":                {[]entry{file("../evil")}, ".."},
		"above, hidden":        {[]entry{file("a/../../evil")}, ".."},
		"above, harmless":      {[]entry{file("a/../b")}, ".."},
		"backslash":            {[]entry{file(`..\evil`)}, "backslash"},
		"drive":                {[]entry{file("C:/evil")}, "drive"},
		"control":              {[]entry{file("a\nb")}, "control"},
		"link out":             {[]entry{file("a"), link("l", "../x")}, "outside"},
		"link absolute":        {[]entry{file("a"), link("l", "/etc/passwd")}, "outside"},
		"write through a link": {[]entry{link("d", "sub"), file("d/x")}, "directory"},
		"link over links":      {[]entry{file("s/t/f"), link("s/t/up", "../.."), link("l", "s/t/up/../../etc")}, "outside"},
		"link loop to outside": {[]entry{file("d/f"), link("d/up", ".."), link("l", "d/up/../x")}, "outside"},
		"file as directory":    {[]entry{file("a"), file("a/b")}, "directory"},
		"directory as file":    {[]entry{file("a/b"), file("a")}, "directory"},
		"empty":                {nil, "no files"},
		"only directories":     {[]entry{{name: "d/", mode: fs.ModeDir | 0o755}}, "no files"},
		"too many entries":     {many, "more than 10"},
		"too deep":             {[]entry{file("a/b/c/d/e")}, "deep"},
		"long path":            {[]entry{file(strings.Repeat("n", 41))}, "longer than 40"},
		"big file":             {[]entry{{name: "b", body: big + big[:200]}}, "larger than 600B"},
		"big together":         {[]entry{{name: "a", body: big}, {name: "b", body: big}, file("c")}, "together"},
		"big, replaced":        {[]entry{{name: "a", body: big}, {name: "a", body: big}, file("a")}, "together"},
	}
	for name, c := range both {
		t.Run(name, func(t *testing.T) {
			z, tr := makeZip(t, c.entries...), makeTar(t, c.entries...)
			for f, data := range map[build.Format][]byte{build.Zip: z, build.Tar: tr, build.TarGz: gz(t, tr)} {
				_, _, err := extract(t, data, f, small)
				checkInvalid(t, string(f), err)
				if err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %q does not say %q", f, err, c.want)
				}
			}
		})
	}
	for name, e := range map[string]entry{
		"fifo": {name: "p", typ: tar.TypeFifo}, "char device": {name: "c", typ: tar.TypeChar},
		"block device": {name: "b", typ: tar.TypeBlock}, "odd type": {name: "o", typ: 'Z'},
		"hard link to outside": {name: "h", link: "/etc/passwd", typ: tar.TypeLink},
		"hard link above":      {name: "h", link: "../x", typ: tar.TypeLink},
		"hard link to nothing": {name: "h", link: "none", typ: tar.TypeLink},
	} {
		_, _, err := extract(t, makeTar(t, file("a"), e), build.Tar, small)
		checkInvalid(t, name, err)
	}
	_, _, err := extract(t, makeZip(t, entry{name: "p", mode: fs.ModeNamedPipe | 0o644}), build.Zip, small)
	checkInvalid(t, "zip with a pipe", err)
	// The flag must be set after writing: the writer itself cannot encrypt.
	enc := makeZip(t, file("secret"))
	for _, sig := range []string{"PK\x03\x04", "PK\x01\x02"} {
		i := bytes.Index(enc, []byte(sig))
		enc[i+6+2*(int(sig[2])&1)] |= 1 // offset 6 in the local header, 8 in the central one
	}
	_, _, err = extract(t, enc, build.Zip, small)
	checkInvalid(t, "encrypted", err)
	if err != nil && !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("encrypted: %v", err)
	}
}

func TestLinksThatStay(t *testing.T) {
	entries := []entry{
		{name: "real/f", body: "1"},
		{name: "real/up", link: "../real/f", mode: fs.ModeSymlink},
		{name: "dangling", link: "real/none", mode: fs.ModeSymlink},
		{name: "loop", link: "loop", mode: fs.ModeSymlink},
		{name: "long", link: "ring/a", mode: fs.ModeSymlink},
		{name: "ring/a", link: "../ring/b", mode: fs.ModeSymlink},
		{name: "ring/b", link: "./a", mode: fs.ModeSymlink},
		{name: "hard", link: "real/f", typ: tar.TypeLink},
	}
	_, dir, err := extract(t, makeTar(t, entries...), build.Tar, build.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"real": "drwxr-xr-x", "real/f": "-rw-r--r-- 1", "real/up": "link ../real/f", "dangling": "link real/none",
		"loop": "link loop", "hard": "-rw-r--r-- 1",
		"long": "link ring/a", "ring": "drwxr-xr-x", "ring/a": "link ../ring/b", "ring/b": "link ./a",
	}
	if d := cmp.Diff(want, listing(t, dir)); d != "" {
		t.Error(d)
	}
}

// chain returns links that lead one to the other, the last of them to end.
func chain(n int, end string) []entry {
	links := make([]entry, n)
	for i := range links {
		links[i] = entry{name: fmt.Sprintf("l%02d", i), link: fmt.Sprintf("l%02d", i+1), mode: fs.ModeSymlink | 0o777}
	}
	links[n-1].link = end
	return links
}

// A long chain of links hides nothing: kernels follow 40 of them, os.Root 8.
func TestChainsOfLinks(t *testing.T) {
	// The target of x is inside by its text, and so are those of all others.
	out := append(chain(20, "."), entry{name: "x", link: "l00/../etc/passwd", mode: fs.ModeSymlink | 0o777})
	_, _, err := extract(t, makeTar(t, out...), build.Tar, build.Limits{})
	checkInvalid(t, "a chain that leads outside", err)
	if err != nil && !strings.Contains(err.Error(), "outside") {
		t.Errorf("a chain that leads outside: %v", err)
	}
	_, _, err = extract(t, makeTar(t, chain(41, "end")...), build.Tar, build.Limits{})
	checkInvalid(t, "41 links", err)
	if err != nil && !strings.Contains(err.Error(), "too many symbolic links") {
		t.Errorf("41 links: %v", err)
	}
	// The kernel's opinion is asked for the longest chain that is allowed.
	_, dir, err := extract(t, makeTar(t, append(chain(40, "end"), entry{name: "end", body: "the end"})...), build.Tar, build.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "l00")); err != nil || string(b) != "the end" {
		t.Errorf("40 links: %q, %v", b, err)
	}
}

func TestLastEntryWins(t *testing.T) {
	entries := []entry{{name: "a", body: "old"}, {name: "l", body: "file"}, {name: "a", body: "new"}, {name: "l", link: "a", mode: fs.ModeSymlink}}
	for f, data := range map[build.Format][]byte{build.Tar: makeTar(t, entries...), build.Zip: makeZip(t, entries...)} {
		s, dir, err := extract(t, data, f, build.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(map[string]string{"a": "-rw-r--r-- new", "l": "link a"}, listing(t, dir)); d != "" || s.Files != 2 || s.Bytes != 3 {
			t.Errorf("%s: %+v %s", f, s, d)
		}
	}
}

// TestBomb unpacks 32 MiB of zeros out of a small archive.
func TestBomb(t *testing.T) {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	const size = 32 << 20
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Size: size, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for range size / len(chunk) {
		if _, err := tw.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	_ = tw.Close()
	_ = zw.Close()
	_, dir, err := extract(t, buf.Bytes(), build.TarGz, build.Limits{Unpacked: 1 << 20})
	checkInvalid(t, "bomb", err)
	if left := len(listing(t, dir)); left != 0 {
		t.Errorf("a file was written although its header says that it is too large")
	}
}

func TestDamagedArchives(t *testing.T) {
	z := makeZip(t, entry{name: "main.py", body: strings.Repeat("abc", 1000)})
	tr := makeTar(t, entry{name: "main.py", body: strings.Repeat("abc", 1000)})
	g := gz(t, tr)
	wrong := bytes.Clone(g)
	wrong[len(wrong)-5] ^= 0xff // the checksum
	for name, c := range map[string]struct {
		data   []byte
		format build.Format
	}{
		"zip cut":        {z[:len(z)/2], build.Zip},
		"tar cut":        {tr[:1000], build.Tar},
		"tar.gz cut":     {g[:len(g)-10], build.TarGz},
		"tar.gz damaged": {wrong, build.TarGz},
		"no zip":         {tr, build.Zip},
		"no tar":         {bytes.Repeat([]byte("no tar at all "), 100), build.Tar},
		"no gzip":        {tr, build.TarGz},
		"nothing zip":    {nil, build.Zip},
		"nothing tar":    {nil, build.Tar},
		"nothing gz":     {nil, build.TarGz},
		"unknown format": {z, "rar"},
	} {
		_, _, err := extract(t, c.data, c.format, build.Limits{})
		checkInvalid(t, name, err)
	}
	for f, data := range map[build.Format][]byte{build.Zip: z, build.Tar: tr, build.TarGz: g} {
		_, _, err := extract(t, data, f, build.Limits{Compressed: int64(len(data)) - 1})
		checkInvalid(t, "one byte over the limit", err)
		if _, _, err := extract(t, data, f, build.Limits{Compressed: int64(len(data))}); err != nil {
			t.Errorf("%s just at the limit: %v", f, err)
		}
	}
}

func TestUploadBreaksOff(t *testing.T) {
	tr := makeTar(t, entry{name: "main.py", body: strings.Repeat("abc", 1000)})
	broken := io.MultiReader(bytes.NewReader(tr[:1500]), brokenReader{})
	_, err := build.Extract(t.Context(), broken, build.Tar, inside(t), build.Limits{})
	if hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = build.Extract(ctx, bytes.NewReader(tr), build.Tar, inside(t), build.Limits{})
	if hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Errorf("got %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// TestManyEmptyZipEntries checks that a directory of very many entries is
// refused before it fills the memory.
func TestManyEmptyZipEntries(t *testing.T) {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for i := range 20_000 {
		if _, err := w.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, dir, err := extract(t, buf.Bytes(), build.Zip, build.Limits{Files: 100})
	checkInvalid(t, "many", err)
	if n := len(listing(t, dir)); n != 0 {
		t.Errorf("%d files were written", n)
	}
}

func TestCheckHandler(t *testing.T) {
	dir := inside(t)
	if _, err := build.WriteFiles(t.Context(), map[string]string{
		"main.py": "", "pkg/__init__.py": "", "src/app.py": "", "index.mjs": "", "a.js": "", "b.cjs": "", "x/y/z.js": "",
	}, dir, build.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		language, handler string
		ok                bool
	}{
		{"python", "main.handler", true},
		{"python", "pkg.handler", true},
		{"python", "src/app.handler", true},
		{"python", "src.app.handler", true},
		{"python", "index.handler", false},
		{"python", "mian.handler", false},
		{"nodejs", "index.handler", true},
		{"nodejs", "a.handler", true},
		{"nodejs", "b.handler", true},
		{"nodejs", "x/y/z.handler", true},
		{"nodejs", "main.handler", false},
		{"nodejs", "../in/a.handler", false},
		{"python", "src.handler", false},
		{"python", "handler", false},
		{"go", "main.handler", true},
	} {
		err := build.CheckHandler(dir, c.language, c.handler)
		if c.ok && err != nil {
			t.Errorf("%s %s: %v", c.language, c.handler, err)
		}
		if !c.ok {
			checkInvalid(t, c.language+" "+c.handler, err)
		}
	}
	var e *hearth.Error
	if err := build.CheckHandler(dir, "python", "mian.handler"); !errors.As(err, &e) || !strings.Contains(e.Hint, "main.py") {
		t.Errorf("the hint does not list the files: %v", e.Hint)
	}
}

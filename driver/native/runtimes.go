package native

import (
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// interpreter is a language's interpreter on the host, with what a sandbox
// must see of the host for it.
type interpreter struct {
	driver.Runtime
	Exe    string   `json:"exe"`              // real path, the same inside
	Prefix string   `json:"prefix"`           // "" when all of it is below /usr
	Views  []string `json:"views,omitempty"`  // directories besides the system's
	Tried  bool     `json:"tried,omitempty"`  // started in a sandbox
	Broken string   `json:"broken,omitempty"` // why it does not start in a sandbox
	// Prepared is the directory of the shims that were compiled for it.
	Prepared string `json:"prepared,omitempty"`
}

// language is how interpreters of one language are found.
type language struct {
	name     string
	file     *regexp.Regexp // names of executables
	shim     string         // the one name that is asked if it is a script
	question []string       // arguments that print version and prefix
	oldest   [2]int
}

func languages() []language {
	return []language{
		{
			name: "python", file: regexp.MustCompile(`^python3(\.\d+)?$`), shim: "python3",
			question: []string{"-I", "-S", "-c", "import sys;print('%d.%d.%d'%sys.version_info[:3]);print(sys.base_prefix);print(getattr(sys,'_base_executable',sys.executable))"},
			oldest:   [2]int{3, 9},
		},
		{
			name: "nodejs", file: regexp.MustCompile(`^node(js)?$`), shim: "node",
			question: []string{"-p", "process.versions.node+'\\n'+require('path').dirname(require('path').dirname(process.execPath))+'\\n'+process.execPath"},
			oldest:   [2]int{18, 0},
		},
	}
}

// places are where interpreters are installed, also by version managers, whose
// programs on the PATH are slow scripts in front of these.
func places() []string {
	home, _ := os.UserHomeDir()
	patterns := []string{
		"/usr/bin", "/usr/local/bin", "/bin", "/opt/bin", "/opt/*/bin", "/usr/local/opt/*/bin",
		filepath.Join(os.Getenv("PYENV_ROOT"), "versions/*/bin"),
		filepath.Join(os.Getenv("NVM_DIR"), "versions/node/*/bin"),
	}
	if home != "" {
		for _, p := range []string{
			".pyenv/versions/*/bin", ".nvm/versions/node/*/bin", ".asdf/installs/python/*/bin",
			".asdf/installs/nodejs/*/bin", ".local/share/mise/installs/python/*/bin",
			".local/share/mise/installs/node/*/bin", ".local/share/uv/python/*/bin",
			".local/share/fnm/node-versions/*/installation/bin", ".volta/tools/image/node/*/bin",
		} {
			patterns = append(patterns, filepath.Join(home, p))
		}
	}
	var dirs []string
	for _, p := range patterns {
		if found, err := filepath.Glob(p); err == nil && filepath.IsAbs(p) {
			dirs = append(dirs, found...)
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// candidates returns the real paths of what may be an interpreter.
func candidates(l language, dirs []string) []string {
	var found []string
	add := func(p string) {
		if !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !l.file.MatchString(e.Name()) {
				continue
			}
			p, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			head := make([]byte, 4)
			f, err := os.Open(p)
			if err != nil {
				continue
			}
			_, _ = f.Read(head)
			_ = f.Close()
			switch {
			case string(head) == elf.ELFMAG:
				add(p)
			case string(head[:2]) == "#!" && e.Name() == l.shim:
				// Its path, not where it links to: one program may be the shim of many.
				add(filepath.Join(dir, e.Name()))
			}
		}
	}
	return found
}

// ask runs a candidate and returns what it says it is; ok is false for one
// that does not work or is too old.
func ask(ctx context.Context, l language, path string) (it interpreter, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, l.question...).Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != 3 {
		return it, false
	}
	version, prefix, exe := lines[0], lines[1], lines[2]
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return it, false
	}
	if major < l.oldest[0] || major == l.oldest[0] && minor < l.oldest[1] {
		return it, false
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return it, false
	}
	if prefix, err = filepath.EvalSymlinks(prefix); err != nil {
		return it, false
	}
	it.Language, it.Version, it.Exe, it.Source = l.name, version, exe, exe
	it.Name = l.name + strconv.Itoa(major)
	if l.name == "python" {
		it.Name += "." + strconv.Itoa(minor)
	}
	if systemPath(prefix) && systemPath(exe) {
		return it, true
	}
	home, _ := os.UserHomeDir()
	if prefix == "/" || prefix == home || prefix == filepath.Join(home, ".local") {
		return it, false // its lib would show far more than the interpreter
	}
	it.Prefix = prefix
	for _, sub := range []string{"bin", "lib", "lib64"} {
		dir := filepath.Join(prefix, sub)
		if info, err := os.Lstat(dir); err == nil && info.IsDir() {
			it.Views = append(it.Views, dir)
		}
	}
	if dir := filepath.Dir(exe); !within(it.Views, dir) && !systemPath(dir) {
		it.Views = append(it.Views, dir)
	}
	it.Views = append(it.Views, libraryDirs(exe, prefix, it.Views)...)
	return it, true
}

// libraryDirs returns directories of shared libraries that an interpreter and
// its own extension modules name and that neither the system's directories nor
// the known ones contain.
func libraryDirs(exe, prefix string, known []string) []string {
	files := []string{exe}
	for _, p := range []string{"lib/*.so*", "lib/python3*/lib-dynload/_ssl*.so", "lib/python3*/lib-dynload/_sqlite3*.so"} {
		more, _ := filepath.Glob(filepath.Join(prefix, p))
		files = append(files, more...)
	}
	var dirs []string
	for _, file := range files {
		f, err := elf.Open(file)
		if err != nil {
			continue
		}
		for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
			paths, _ := f.DynString(tag)
			for _, dir := range filepath.SplitList(strings.Join(paths, ":")) {
				dir = strings.NewReplacer("$ORIGIN", filepath.Dir(file), "${ORIGIN}", filepath.Dir(file)).Replace(dir)
				real, err := filepath.EvalSymlinks(dir)
				if err != nil || real != filepath.Clean(dir) || systemPath(real) || within(known, real) || within(dirs, real) {
					continue
				}
				dirs = append(dirs, real)
			}
		}
		_ = f.Close()
	}
	return dirs
}

// systemPath tells whether every sandbox sees the path anyway.
func systemPath(p string) bool {
	for _, v := range hostViews() {
		if v.link == "" && within([]string{v.source}, p) {
			return true
		}
	}
	return false
}

func within(dirs []string, p string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}

// discover returns the interpreters of this host, one for each name, and those
// that do not start in a sandbox. What it learns is kept in a file, as long as
// the interpreters and the helper do not change.
func (d *Driver) discover(ctx context.Context) (good, broken []interpreter) {
	file := filepath.Join(d.dir, "runtimes.json")
	old, fresh := map[string]interpreter{}, map[string]interpreter{}
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &old) != nil {
		old = map[string]interpreter{}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	dirs := places()
	for _, l := range languages() {
		for _, path := range candidates(l, dirs) {
			key := cacheKey(path)
			if it, ok := old[key]; ok {
				mu.Lock() // others may be under way
				fresh[key] = it
				mu.Unlock()
				continue
			}
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				it, _ := ask(ctx, l, path)
				if ctx.Err() == nil {
					mu.Lock()
					fresh[key] = it // an empty one is no interpreter
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	byName := map[string][]string{} // keys of fresh, the best first
	for key, it := range fresh {
		if it.Name != "" {
			byName[it.Name] = append(byName[it.Name], key)
		}
	}
	for _, keys := range byName {
		slices.SortFunc(keys, func(a, b string) int {
			if better(fresh[a], fresh[b]) {
				return -1
			}
			return 1
		})
	}
	for _, keys := range byName {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for _, key := range keys {
				mu.Lock()
				it := fresh[key]
				mu.Unlock()
				if !it.Tried {
					if err := d.try(ctx, it); err != nil {
						it.Broken = err.Error()
					}
					it.Tried = true
				}
				if it.Broken == "" && it.Prepared != d.shims {
					d.prepare(ctx, it)
					it.Prepared = d.shims
				}
				mu.Lock()
				fresh[key] = it
				if it.Broken == "" {
					good = append(good, it)
				} else {
					broken = append(broken, it)
				}
				mu.Unlock()
				if it.Broken == "" {
					return // others of the name are not needed
				}
			}
		})
	}
	wg.Wait()
	if b, err := json.Marshal(fresh); err == nil && ctx.Err() == nil {
		if err := writeFile(file, b, 0o600); err != nil {
			d.log.Warn("native: runtimes are looked for again at the next start", "err", err)
		}
	}
	slices.SortFunc(good, func(a, b interpreter) int {
		return cmp.Or(cmp.Compare(a.Language, b.Language), compareVersions(b.Version, a.Version))
	})
	slices.SortFunc(broken, func(a, b interpreter) int { return cmp.Compare(a.Exe, b.Exe) })
	broken = slices.CompactFunc(broken, func(a, b interpreter) bool { return a.Exe == b.Exe })
	return good, broken
}

// prepare compiles the shim for an interpreter, where that makes starts
// faster. It is our own code, so it need not run in a sandbox.
func (d *Driver) prepare(ctx context.Context, it interpreter) {
	argv := guest.PrepareCommand(it.Language, it.Exe, d.shims)
	if argv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{} // not even PATH: it starts nothing
	if out, err := cmd.CombinedOutput(); err != nil {
		d.log.Warn("native: starts will be slower: the guest could not be compiled", "runtime", it.Name, "err", err, "output", string(out))
	} else if err := publish(d.shims); err != nil {
		d.log.Warn("native: starts will be slower: the compiled guest cannot be read", "runtime", it.Name, "err", err)
	}
}

// better prefers the system's own interpreter, then the newer one.
func better(a, b interpreter) bool {
	if (a.Prefix == "") != (b.Prefix == "") {
		return a.Prefix == ""
	}
	return cmp.Or(compareVersions(a.Version, b.Version), cmp.Compare(b.Exe, a.Exe)) > 0
}

func compareVersions(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(version string) []int {
	var n []int
	for p := range strings.SplitSeq(version, ".") {
		i, _ := strconv.Atoi(p)
		n = append(n, i)
	}
	return n
}

// cacheKey changes with the interpreter, the helper and the user.
func cacheKey(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return path
	}
	return fmt.Sprintf("%s %d %d %s %d", path, info.Size(), info.ModTime().UnixNano(), helperHash(), os.Geteuid())
}

// try starts an interpreter in a sandbox.
func (d *Driver) try(ctx context.Context, it interpreter) error {
	script := map[string][]string{
		"python": {"-I", "-S", "-c", "import json, socket"},
		"nodejs": {"-e", "0"},
	}[it.Language]
	return d.tryCommand(ctx, it.views(d.system), append([]string{it.Exe}, script...), "")
}

// views are the mounts of a sandbox for the interpreter.
func (it interpreter) views(system []view) []view {
	views := slices.Clone(system)
	for _, dir := range it.Views {
		views = append(views, view{source: dir, target: dir})
	}
	return views
}

// writeShims puts the guests' files where sandboxes can see them, under a name
// that changes with their content.
func (d *Driver) writeShims() (string, error) {
	shims := guest.Shims()
	hash := sha256.New()
	files := map[string][]byte{}
	err := fs.WalkDir(shims, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files[p], err = fs.ReadFile(shims, p)
		fmt.Fprintf(hash, "%s %d\n%s", p, len(files[p]), files[p])
		return err
	})
	if err != nil {
		return "", err
	}
	dir := filepath.Join(d.dir, "guest-"+hex.EncodeToString(hash.Sum(nil)[:8]))
	for p, content := range files {
		file := filepath.Join(dir, p)
		if old, err := os.ReadFile(file); err == nil && string(old) == string(content) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		if err := writeFile(file, content, 0o644); err != nil {
			return "", err
		}
	}
	return dir, publish(dir)
}

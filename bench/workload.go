package bench

import (
	"embed"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/hearthrun/hearth/client"
)

//go:embed workloads
var workloadFiles embed.FS

// Workload is a function that Compare deploys under each driver.
type Workload struct {
	Name string `json:"name"`
	// About says in a few words what it does.
	About string `json:"about"`
}

// Workloads returns what Compare can measure, in the order it does.
func Workloads() []Workload {
	return []Workload{
		{"empty", "does nothing"},
		{"cpu", "a fixed number of interpreter steps"},
		{"response", "a response of 1 MB"},
		{"files", "writes, lists, reads and deletes 100 small files in /tmp"},
		{"imports", "loads large dependencies from PyPI or npm, then does little"},
		{"syscalls", "4,000 cheap system calls"},
	}
}

// workloadCode returns the files of a workload in a language: those that end
// with what the other language's files end with are left out.
func workloadCode(name, language string) client.Code {
	theirs := map[string][]string{
		"python": {".mjs", ".json"},
		"nodejs": {".py", ".txt"},
	}[language]
	code := client.Code{Files: map[string]string{}}
	dir := path.Join("workloads", name)
	entries, _ := workloadFiles.ReadDir(dir) // embedded: it is there
	for _, e := range entries {
		if slices.Contains(theirs, path.Ext(e.Name())) {
			continue
		}
		b, _ := fs.ReadFile(workloadFiles, path.Join(dir, e.Name()))
		code.Files[e.Name()] = string(b)
	}
	return code
}

// knownWorkload tells whether there is a workload of this name.
func knownWorkload(name string) bool {
	return slices.ContainsFunc(Workloads(), func(w Workload) bool { return w.Name == name })
}

// workloadNames lists the names for messages.
func workloadNames() string {
	var names []string
	for _, w := range Workloads() {
		names = append(names, w.Name)
	}
	return strings.Join(names, ", ")
}

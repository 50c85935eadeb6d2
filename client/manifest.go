package client

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/hearthrun/hearth"
)

// ManifestName is the name of the file that describes a function.
const ManifestName = "hearth.yaml"

// maxManifest bounds a manifest file.
const maxManifest = 256 << 10

// Manifest is what hearth.yaml says.
type Manifest struct {
	Name string `yaml:"name"`
	// Config has what was written, defaults are not filled in.
	hearth.Config `yaml:",inline"`
	// Aliases lead to the version that a deploy makes live; by name.
	Aliases map[string]ManifestAlias `yaml:"aliases,omitempty" doc:"Aliases that lead to the version that a deploy makes live, by name"`
}

// Validate checks m as LoadManifest does. Errors: CodeInvalid.
func (m Manifest) Validate() error {
	if err := hearth.ValidateName(m.Name); err != nil {
		return err
	}
	return cmp.Or(m.WithDefaults().Validate(), m.validateAliases())
}

// LoadManifest reads and checks the manifest at path, a file or a directory
// with a hearth.yaml in it. Reading is strict: unknown and repeated keys,
// aliases and values that make no sense are refused with file and line. A symbolic
// link may not leave its directory. Errors: CodeNotFound if there is no file,
// CodeInvalid.
func LoadManifest(path string) (Manifest, error) {
	file := path
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		file = filepath.Join(path, ManifestName)
	}
	f, err := openManifest(file)
	if errors.Is(err, fs.ErrNotExist) {
		if file == path && filepath.Ext(file) != ".yaml" {
			return Manifest{}, hearth.Errorf(hearth.CodeNotFound, "there is no %s", path).
				WithHint("hearth init %s makes one; or name a directory with a %s", path, ManifestName)
		}
		return Manifest{}, hearth.Errorf(hearth.CodeNotFound, "there is no %s", file).
			WithHint("hearth init %s makes one", filepath.Dir(file))
	} else if err != nil {
		return Manifest{}, unreadable(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return Manifest{}, unreadable(err)
	}
	return ParseManifest(file, b)
}

func openManifest(file string) (*os.File, error) {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openFile(root, filepath.Base(file))
}

// ParseManifest is LoadManifest for the content of a file; file is its name
// for errors. Errors: CodeInvalid.
func ParseManifest(file string, content []byte) (Manifest, error) {
	p := parser{file: file}
	if len(content) > maxManifest {
		return Manifest{}, p.err(0, "put large data into files of the function", "the file is larger than %s", hearth.Bytes(maxManifest))
	}
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return Manifest{}, p.err(0, "write at least name and runtime", "the file is empty")
	} else if err != nil {
		return Manifest{}, p.syntax(err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return Manifest{}, p.err(more.Line, "write one function in each file", "the file has more than one document")
	}
	if err := p.plain(&doc); err != nil {
		return Manifest{}, err
	}
	return p.manifest(doc.Content[0])
}

// parser makes a Manifest of YAML nodes.
type parser struct{ file string }

// err is an error at a line (0: of the file as a whole).
func (p parser) err(line int, hint, format string, args ...any) error {
	where := p.file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", p.file, line)
	}
	return (&hearth.Error{Code: hearth.CodeInvalid, Message: where + ": " + fmt.Sprintf(format, args...)}).WithHint("%s", hint)
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntax puts the file's name and line into an error of the YAML reader.
func (p parser) syntax(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	where := p.file
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		where, text = p.file+":"+m[1], m[2]
	}
	return (&hearth.Error{Code: hearth.CodeInvalid, Message: where + ": not valid YAML: " + text}).
		WithHint("write one key a line, for example: runtime: python")
}

// plain refuses aliases and anchors, with which a small file can stand for a
// huge one, and custom tags.
func (p parser) plain(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return p.err(n.Line, "write the value out", "anchors and aliases are not allowed")
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return p.err(n.Line, "write the value without it", "the tag %s is not allowed", n.Tag)
	}
	for _, c := range n.Content {
		if err := p.plain(c); err != nil {
			return err
		}
	}
	return nil
}

// manifest reads the keys and then checks the configuration after each, so that
// an error knows its line.
func (p parser) manifest(n *yaml.Node) (Manifest, error) {
	if n.Kind != yaml.MappingNode {
		return Manifest{}, p.err(n.Line, "write for example: name: hello", "expected keys and values")
	}
	var m Manifest
	read := reflect.ValueOf(&m).Elem()
	lines, err := p.keys("", n, read)
	if err != nil {
		return Manifest{}, err
	}
	if line := lines["name"]; line > 0 {
		if err := hearth.ValidateName(m.Name); err != nil {
			return Manifest{}, p.at(line, err)
		}
	}
	// checked is a valid configuration with only what was checked so far replaced.
	checked := hearth.Config{Runtime: "python"}.WithDefaults()
	known, checkedFields := fields(read), fields(reflect.ValueOf(&checked).Elem())
	place := func(key string) int {
		if dependent[key] {
			return maxManifest + lines[key] // after all others
		}
		return lines[key]
	}
	keys := slices.SortedFunc(maps.Keys(lines), func(a, b string) int { return cmp.Compare(place(a), place(b)) })
	for _, key := range keys {
		if key == "name" {
			continue
		}
		if key == "aliases" {
			if err := m.validateAliases(); err != nil {
				return Manifest{}, p.at(lines[key], err)
			}
			continue
		}
		checkedFields[key].Set(known[key])
		if err := checked.Validate(); err != nil {
			return Manifest{}, p.at(lines[key], err)
		}
	}
	for _, err := range []error{hearth.ValidateName(m.Name), m.WithDefaults().Validate()} {
		if err != nil {
			return Manifest{}, p.at(0, err)
		}
	}
	return m, nil
}

// dependent are the keys whose values must fit those of others.
var dependent = map[string]bool{"instance_concurrency": true, "warm": true, "cache": true, "cors": true}

// keys reads keys and values into a struct and returns the keys' lines. within is
// the key that they are below, with a dot, for errors.
func (p parser) keys(within string, n *yaml.Node, into reflect.Value) (lines map[string]int, err error) {
	known := fields(into)
	lines = map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field, ok := known[key.Value]
		if !ok {
			return nil, p.unknown(within, key, known)
		}
		if before := lines[key.Value]; before > 0 {
			return nil, p.err(key.Line, "remove one of them", "%s was already given in line %d", within+key.Value, before)
		}
		lines[key.Value] = key.Line
		if err := p.value(within+key.Value, key, value, field); err != nil {
			return nil, err
		}
		if least := leasts(into.Type())[key.Value]; field.Kind() == reflect.Int && field.Int() < least {
			return nil, p.err(value.Line, fmt.Sprintf("the least is %d", least), "%s %d is out of range", within+key.Value, field.Int())
		}
	}
	return lines, nil
}

// at puts file and line before an error of the vocabulary.
func (p parser) at(line int, err error) error {
	e := hearth.AsError(err)
	return p.err(line, e.Hint, "%s", e.Message)
}

// unknown is the error for a key that does not exist.
func (p parser) unknown(within string, key *yaml.Node, known map[string]reflect.Value) error {
	names := slices.Sorted(maps.Keys(known))
	hint := "the keys are " + strings.Join(names, ", ")
	if near := nearest(key.Value, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return p.err(key.Line, hint, "unknown key %q", within+clip(key.Value))
}

// value decodes one value into its field; name is the key's in full.
func (p parser) value(name string, key, value *yaml.Node, field reflect.Value) error {
	if value.Tag == "!!null" {
		return p.err(key.Line, "give it one, or remove the line", "%s has no value", name)
	}
	if value.Kind == yaml.SequenceNode && (field.Kind() == reflect.Map) {
		return p.err(value.Line, notList(value), "%s must have NAME: value on lines of their own, indented below it, and is a list", name)
	}
	if want, ok := shape(value, field.Type()); !ok {
		return p.err(value.Line, "see hearth config check --help", "%s must be %s", name, want)
	}
	if field.Kind() == reflect.Pointer {
		field.Set(reflect.New(field.Type().Elem()))
		field = field.Elem()
	}
	switch field.Kind() {
	case reflect.Struct:
		_, err := p.keys(name+".", value, field)
		return err
	case reflect.Map:
		elem := field.Type().Elem()
		if err := p.unique(name, value, elem); err != nil {
			return err
		}
		if elem.Kind() == reflect.Struct {
			return p.structs(name, value, field)
		}
	case reflect.Int:
		if value.Tag != "!!int" {
			// The YAML package would cut 1.5 to 1.
			return p.err(value.Line, "write "+example(field.Type()), "%s cannot be %q", name, clip(value.Value))
		}
	}
	err := value.Decode(field.Addr().Interface())
	var h *hearth.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &h):
		return p.err(value.Line, h.Hint, "%s: %s", name, h.Message)
	default:
		return p.err(value.Line, "write "+example(field.Type()), "%s cannot be %q", name, clip(value.Value))
	}
}

// notList says how what is in a list is written as keys and values.
func notList(n *yaml.Node) string {
	for _, c := range n.Content {
		if k, v, ok := strings.Cut(c.Value, "="); ok && c.Kind == yaml.ScalarNode {
			return fmt.Sprintf("write %s: %q in place of %s", clip(k), clip(v), clip(c.Value))
		}
	}
	return "write NAME: value, without a hyphen or brackets"
}

// structs reads a map whose values are keys and values themselves, such as cors.
func (p parser) structs(name string, value *yaml.Node, field reflect.Value) error {
	field.Set(reflect.MakeMap(field.Type()))
	for i := 0; i < len(value.Content); i += 2 {
		k, v := value.Content[i], value.Content[i+1]
		elem := reflect.New(field.Type().Elem()).Elem()
		if _, err := p.keys(name+"."+clip(k.Value)+".", v, elem); err != nil {
			return err
		}
		field.SetMapIndex(reflect.ValueOf(k.Value).Convert(field.Type().Key()), elem)
	}
	return nil
}

// unique refuses a key that is twice in a map such as env, and values that have
// not the form for elem.
func (p parser) unique(name string, value *yaml.Node, elem reflect.Type) error {
	form, hint := "texts as keys and values", "write NAME: text"
	kind := yaml.ScalarNode
	if elem.Kind() == reflect.Struct {
		form, hint, kind = "keys and values below each name", "see hearth config check --help", yaml.MappingNode
	}
	lines := map[string]int{}
	for i := 0; i < len(value.Content); i += 2 {
		k, v := value.Content[i], value.Content[i+1]
		bare := kind == yaml.MappingNode && v.Tag == "!!null" // all defaults
		if k.Kind != yaml.ScalarNode || v.Kind != kind && !bare {
			return p.err(k.Line, hint, "%s must have %s", name, form)
		}
		if bare && value.Style&yaml.FlowStyle != 0 && k.Style == 0 {
			k.Value = strings.TrimSuffix(k.Value, ":") // the YAML package wants a space in {orders:}
		}
		if before := lines[k.Value]; before > 0 {
			return p.err(k.Line, "remove one of them", "%s: %q was already given in line %d", name, clip(k.Value), before)
		}
		lines[k.Value] = k.Line
	}
	return nil
}

// shape tells whether a node has the form that a field of type t needs, and
// which form that is.
func shape(n *yaml.Node, t reflect.Type) (want string, ok bool) {
	switch t.Kind() {
	case reflect.Pointer:
		return shape(n, t.Elem())
	case reflect.Struct:
		return "keys and values, indented below it", n.Kind == yaml.MappingNode
	case reflect.Interface:
		return "", true
	case reflect.Map:
		return "NAME: value on lines of their own, indented below it", n.Kind == yaml.MappingNode
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return "a list, each entry with a hyphen", false
		}
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode || c.Tag == "!!null" {
				return "a list of texts", false
			}
		}
		return "", true
	default:
		return "a single value", n.Kind == yaml.ScalarNode
	}
}

// example says in words what a field of type t takes.
func example(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number, for example 0.5"
	default:
		return "a text"
	}
}

// fields maps the YAML keys of a struct to its fields.
func fields(v reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	for i := range v.NumField() {
		name, opts, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if opts == "inline" {
			for k, f := range fields(v.Field(i)) {
				out[k] = f
			}
		} else if name != "" {
			out[name] = v.Field(i)
		}
	}
	return out
}

// leasts maps the YAML keys of a struct to what their tags say is the least, if they
// do: what a zero means otherwise, the default, is to be left out and not written.
func leasts(t reflect.Type) map[string]int64 {
	out := map[string]int64{}
	for _, f := range reflect.VisibleFields(t) {
		if n, err := strconv.ParseInt(f.Tag.Get("minimum"), 10, 64); err == nil {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			out[name] = n
		}
	}
	return out
}

// nearest returns the name most like s, "" if none is.
func nearest(s string, names []string) string {
	best, least := "", 3
	if len(s) <= 3 {
		least = 2
	}
	for _, n := range names {
		if d := distance(strings.ToLower(clip(s)), n); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	row := make([][]int, len(a)+1)
	for i := range row {
		row[i] = make([]int, len(b)+1)
		row[i][0] = i
	}
	for j := range row[0] {
		row[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := row[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[i][j] = min(row[i-1][j]+1, row[i][j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[i][j] = min(row[i][j], row[i-2][j-2]+1)
			}
		}
	}
	return row[len(a)][len(b)]
}

// unreadable is the error for a file of the user's that cannot be read.
func unreadable(err error) error {
	var h *hearth.Error
	if errors.As(err, &h) {
		return err
	}
	return (&hearth.Error{Code: hearth.CodeInvalid, Message: err.Error(), Err: err}).
		WithHint("check that the file exists and that you may read it")
}

// clip shortens a user's value for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

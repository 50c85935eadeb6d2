package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/hearthrun/hearth"
)

// ReadPrices reads a price file, YAML with the names of hearth.Prices, over what into
// holds: keys that the file leaves out keep their values; a list of clouds replaces the
// whole list. into changes only if the file is right. Errors: CodeInvalid.
func ReadPrices(path string, into *hearth.Prices) error {
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, "%s: %w", path, fmt.Errorf(format, args...)).WithHint("%s", hint)
	}
	f, err := openManifest(path)
	if err != nil {
		return unreadable(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return unreadable(err)
	}
	if len(b) > maxManifest {
		return bad("leave out clouds that you do not compare with", "the file is larger than %s", hearth.Bytes(maxManifest))
	}
	const write = "hearth cost prices prints a price file to start with"
	p := parser{file: path}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return bad(write, "the file is empty")
	} else if err != nil {
		return p.syntax(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return bad("write one list of prices in each file", "the file has more than one document")
	}
	if err := p.plain(&doc); err != nil {
		return err
	}
	var keys map[string]any
	if err := doc.Decode(&keys); err != nil {
		return bad(write, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	text, err := json.Marshal(keys)
	if err != nil { // such as .nan, or a key that is a list
		return bad("write names as keys, and numbers and texts as values", "%w", err)
	}
	prices := *into
	prices.Clouds = nil // or the new ones would be read over the old ones
	j := json.NewDecoder(bytes.NewReader(text))
	j.DisallowUnknownFields()
	if err := j.Decode(&prices); err != nil {
		var h *hearth.Error
		if errors.As(err, &h) {
			return bad(h.Hint, "%s", h.Message)
		}
		return bad(write, "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if prices.Clouds == nil {
		prices.Clouds = into.Clouds
	}
	if err := prices.Validate(); err != nil {
		e := hearth.AsError(err)
		return bad(e.Hint, "%s", e.Message)
	}
	*into = prices
	return nil
}

// WritePrices writes prices in the form that ReadPrices reads.
func WritePrices(w io.Writer, p hearth.Prices) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	// JSON is YAML, which keeps the order of the keys.
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	plain(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(&doc), enc.Close())
}

// plain makes a document one that a person would write.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

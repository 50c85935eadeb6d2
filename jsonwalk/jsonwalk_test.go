package jsonwalk_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hearthrun/hearth/jsonwalk"
)

// FuzzWalk: what is found in valid JSON is what package json finds.
func FuzzWalk(f *testing.F) {
	for _, s := range []string{
		`[]`, ` [ ] `, `{}`, `{ }`, `null`, `-1.5e3`, `"a\"]"`, `[1,"a,b]",{"x":[2]},[[]],null , true]`,
		` { "a" : 1 , "b\u0041\"" : "}" , "a":{"c":[{}]} , "":null } `, "[\n1\t,\r2 ]", `[1,{"a":[1,2,{"b":"\\"}]}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		jsonwalk.AtMost(v, 3) // takes anything
		if !json.Valid(v) {
			return
		}
		if err := jsonwalk.Readable(v); (err == nil) != utf8.Valid(v) && len(v) <= jsonwalk.MaxNumber {
			t.Errorf("%q: %v", v, err)
		}
		if err := jsonwalk.Paired(v); err != nil && !bytes.Contains(bytes.ToLower(v), []byte(`\ud`)) {
			t.Errorf("%q: %v", v, err)
		}
		if first := bytes.TrimLeft(v, " \t\r\n")[0]; jsonwalk.Kind(v) != first {
			t.Errorf("%q: kind %q", v, jsonwalk.Kind(v))
		}
		var elements []json.RawMessage
		json.Unmarshal(v, &elements) //nolint:errcheck // then it has none
		found := slices.Collect(jsonwalk.Elements(v))
		if !slices.EqualFunc(elements, found, func(a json.RawMessage, b []byte) bool { return bytes.Equal(a, b) }) {
			t.Errorf("%q: elements %q, want %q", v, found, elements)
		}
		var members map[string]json.RawMessage
		json.Unmarshal(v, &members) //nolint:errcheck // as above
		last := map[string][]byte{}
		for name, value := range jsonwalk.Members(v) {
			last[name] = value
		}
		if len(last) != len(members) {
			t.Errorf("%q: members %q, want %q", v, last, members)
		}
		for name, value := range members {
			if !bytes.Equal(last[name], value) {
				t.Errorf("%q: member %q is %q, want %q", v, name, last[name], value)
			}
		}
	})
}

func TestAtMost(t *testing.T) {
	for body, n := range map[string]int{
		`0`: 0, `[]`: 1, `[1,2]`: 2, `{"a":1,"b":[1,2,3]}`: 5, `"[,{"`: 0, `["\",",","]`: 2, `[`: 1, `"`: 0, `[[[`: 3,
	} {
		if !jsonwalk.AtMost([]byte(body), n) || n > 0 && jsonwalk.AtMost([]byte(body), n-1) {
			t.Errorf("%s has not %d", body, n)
		}
	}
}

func TestReadable(t *testing.T) {
	digits := strings.Repeat("1", jsonwalk.MaxNumber)
	for body, want := range map[string]string{
		`["ä\"",-1.5e3,"\ud800"]`: "", digits: "", `{"` + digits + `1":-` + digits[1:] + `}`: "",
		digits + "1": "number at byte 0", `[1, -` + digits + `]`: "number at byte 4",
		"[1,\"a\xff\"]": "text at byte 3 is not UTF-8", "{\"\xed\xa0\x80\":1}": "text at byte 1",
	} {
		if err := jsonwalk.Readable([]byte(body)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", body, err, want)
		}
	}
}

func TestPaired(t *testing.T) {
	for body, want := range map[string]string{
		`"\ud83d\uDE00\u0041\\ud800\\\"\n"`: "", `"\ufffd\u0000"`: "",
		`"\ud800"`: `\ud800 at byte 1`, `"\uDC00"`: `\uDC00 at byte 1`, `"\ud83d\ud83d\ude00"`: "at byte 1",
		`"\\\ud800x\udc00"`: "at byte 3", `{"\ude00\ud83d":1}`: "at byte 2", `"\ud83d\ude00\ude00"`: "at byte 13",
	} {
		if err := jsonwalk.Paired([]byte(body)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}

// TestWalkAllocates: the walk does not grow with what it walks over.
func TestWalkAllocates(t *testing.T) {
	body := []byte(`{"a":[` + strings.Repeat("0,", 1<<20) + `0],"b":"` + strings.Repeat("x", 1<<20) + `"}`)
	allocs := testing.AllocsPerRun(2, func() {
		for _, v := range jsonwalk.Members(body) {
			for range jsonwalk.Elements(v) {
				continue
			}
		}
	})
	if allocs > 20 {
		t.Errorf("%g allocations", allocs)
	}
}

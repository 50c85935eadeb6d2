// Package jsonwalk goes through JSON that strangers sent without building anything of
// it. Unmarshalled into any, a body of 16 MiB that says [0,0,0,…] takes hundreds of MiB;
// here an element is a part of the body, and whoever asked for it can stop.
//
// All but AtMost take valid JSON, as json.Valid has it, which allocates nothing that
// grows with its input but for its depth, which it bounds.
package jsonwalk

import (
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"unicode/utf8"
)

// MaxNumber is how many characters a number may have that every language reads:
// Python refuses integers of more digits.
const MaxNumber = 4300

// Kind returns the first byte of a value, which tells what it is: { [ " t f n, a digit
// or the minus of a number; 0 if there is none.
func Kind(v []byte) byte {
	if v = v[space(v):]; len(v) == 0 {
		return 0
	}
	return v[0]
}

// Elements goes through the elements of an array. Any other value has none. The
// elements are parts of v.
func Elements(v []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if Kind(v) != '[' {
			return
		}
		for rest := inside(v); Kind(rest) != ']' && len(rest) > 0; rest = next(rest) {
			var e []byte
			if e, rest = cut(rest); !yield(e) {
				return
			}
		}
	}
}

// Members goes through the members of an object with their names, of which some may be
// there more than once. Any other value has none. The values are parts of v.
func Members(v []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		if Kind(v) != '{' {
			return
		}
		for rest := inside(v); Kind(rest) != '}' && len(rest) > 0; rest = next(rest) {
			var quoted, value []byte
			quoted, rest = cut(rest)
			value, rest = cut(next(rest)) // the colon
			var name string
			if json.Unmarshal(quoted, &name) != nil || !yield(name, value) {
				return
			}
		}
	}
}

// AtMost tells whether JSON, which need not be valid, has at most n values, counted
// with the arrays and objects that hold them.
func AtMost(v []byte, n int) bool {
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '"':
			i += text(v[i:]) - 1
		case '{', '[', ',':
			// Each begins something of the value around it or is one.
			if n--; n < 0 {
				return false
			}
		}
	}
	return true
}

// Readable tells what of valid JSON a reader may refuse all the same: text that is not
// UTF-8, or a number of more than MaxNumber characters.
func Readable(v []byte) error {
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c == '"':
			n := text(v[i:])
			if !utf8.Valid(v[i : i+n]) {
				return fmt.Errorf("the text at byte %d is not UTF-8", i)
			}
			i += n - 1
		case c == '-' || c >= '0' && c <= '9':
			n := length(v[i:])
			if n > MaxNumber {
				return fmt.Errorf("the number at byte %d has more than %d characters", i, MaxNumber)
			}
			i += n - 1
		}
	}
	return nil
}

// Paired tells whether each \u escape of a surrogate in valid JSON is one of a pair. One
// that is alone is no character: to unmarshal it puts U+FFFD in its place.
func Paired(v []byte) error {
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' {
			continue // outside of texts there are none
		}
		first := escaped(v[i:])
		switch {
		case first < 0xd800 || first > 0xdfff:
			i++
		case first < 0xdc00 && escaped(v[i+6:])>>10 == 0xdc00>>10:
			i += 11
		default:
			return fmt.Errorf("the surrogate %s at byte %d is not one of a pair", v[i:i+6], i)
		}
	}
	return nil
}

// escaped returns the number of the \u escape with which v begins, 0 if it begins with none.
func escaped(v []byte) uint64 {
	if len(v) < 6 || v[0] != '\\' || v[1] != 'u' {
		return 0
	}
	n, _ := strconv.ParseUint(string(v[2:6]), 16, 16) //nolint:errcheck // it is valid
	return n
}

// cut returns the first value and what follows.
func cut(v []byte) (value, rest []byte) {
	v = v[space(v):]
	n := length(v)
	return v[:n], v[n:]
}

// inside is what follows the first byte of a value.
func inside(v []byte) []byte { return v[space(v)+1:] }

// next is what follows a comma or colon; what may be in its place ends a value and stays.
func next(v []byte) []byte {
	if k := Kind(v); k == ',' || k == ':' {
		return inside(v)
	}
	return v
}

// length is that of the value with which v begins.
func length(v []byte) int {
	depth := 0
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '"':
			if i += text(v[i:]) - 1; depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			} else if depth < 0 {
				return i
			}
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(v)
}

// text is the length of the string with which v begins, its quotes included.
func text(v []byte) int {
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(v)
}

// space is how much of the beginning of v is space.
func space(v []byte) int {
	for i, c := range v {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return i
		}
	}
	return len(v)
}

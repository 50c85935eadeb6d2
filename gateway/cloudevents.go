package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/jsonwalk"
)

// This file is about CloudEvents over HTTP: how they come in as version 1.0.2 of its
// HTTP binding and JSON format has them, and how a function answers.

const (
	// maxBatch bounds the events of one request.
	maxBatch = 1000
	// maxAttributes bounds the attributes of an event.
	maxAttributes = 200
	// maxText bounds a body that becomes a JSON string, in bytes of that: any text
	// that does not consist of control characters fits.
	maxText = 2 * maxAsyncBody
)

func badEvent(format string, args ...any) error {
	return hearth.Errorf(hearth.CodeInvalid, "not a CloudEvent: "+format, args...).
		WithHint("see https://github.com/cloudevents/spec for what an event must have: specversion, id, source and type")
}

// cloudEvents returns the events of a request in their JSON format; batch tells that
// it was a batch, which may have none. Without events, and not a batch, the request
// is an ordinary one. Errors: CodeInvalid.
func cloudEvents(h http.Header, body []byte) (events [][]byte, batch bool, err error) {
	mode, err := hearth.EventModeOf(h)
	if err != nil {
		return nil, false, err
	}
	var event []byte
	switch mode {
	case hearth.StructuredEvent:
		event, err = structured(body)
	case hearth.BinaryEvent:
		event, err = fromHeaders(h, body)
	case hearth.BatchedEvents:
		events, err = batched(body)
		return events, true, err
	default:
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return [][]byte{event}, false, nil
}

// batched returns the events of a batch, which are parts of the body.
func batched(body []byte) ([][]byte, error) {
	const noBatch = "a batch is a JSON array of events"
	if err := checkJSON(body, noBatch); err != nil {
		return nil, err
	}
	if jsonwalk.Kind(body) != '[' {
		return nil, badEvent(noBatch)
	}
	events := [][]byte{}
	for e := range jsonwalk.Elements(body) {
		if len(events) == maxBatch {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the batch has more than %d events", maxBatch).WithHint("send the others in another one")
		}
		if err := checkEvent(e); err != nil {
			he := hearth.AsError(err)
			return nil, hearth.Errorf(hearth.CodeInvalid, "event %d of the batch: %s", len(events)+1, he.Message).WithHint("%s", he.Hint)
		}
		events = append(events, e)
	}
	return events, nil
}

// structured checks an event in the JSON format and returns it.
func structured(body []byte) ([]byte, error) {
	if err := checkJSON(body, "it is no JSON object"); err != nil {
		return nil, err
	}
	return body, checkEvent(body)
}

// checkJSON checks that body is JSON which all functions can read; no says that it is none.
func checkJSON(body []byte, no string) error {
	if !json.Valid(body) {
		return badEvent("%s", no)
	}
	if err := jsonwalk.Readable(body); err != nil {
		return badEvent("%s", err)
	}
	return nil
}

// checkEvent checks an event in the JSON format, which is valid JSON. It stops at the
// first thing that is wrong, before it has made anything of it.
func checkEvent(event []byte) error {
	if jsonwalk.Kind(event) != '{' {
		return badEvent("it is no JSON object")
	}
	seen, attributes := map[string]bool{}, map[string]string{}
	for name, value := range jsonwalk.Members(event) {
		switch {
		case len(seen) > maxAttributes:
			return badEvent("it has too many attributes, more than %d", maxAttributes)
		case seen[name]:
			return badEvent("%q is there more than once", clip(name))
		}
		seen[name] = true
		if name == "data" || name == "data_base64" {
			if seen["data"] && seen["data_base64"] {
				return badEvent("it has both data and data_base64")
			}
			if name == "data_base64" {
				if err := checkBase64(value); err != nil {
					return err
				}
			}
			continue
		}
		text, there, err := attribute(name, value)
		if err != nil {
			return err
		}
		if there {
			attributes[name] = text
		}
	}
	return checkAttributes(attributes)
}

// attribute returns the value of an attribute as text; null is the same as none.
func attribute(name string, value []byte) (text string, there bool, err error) {
	switch kind := jsonwalk.Kind(value); {
	case kind == 'n':
		return "", false, nil
	case kind == '"':
		if json.Unmarshal(value, &text) != nil {
			return "", false, badEvent("attribute %q is not valid", clip(name))
		}
		return text, true, nil
	case kind == '{' || kind == '[':
		return "", false, badEvent("attribute %q is neither text, number nor boolean", clip(name))
	case core[name]:
		return "", false, badEvent("attribute %s is no text", name)
	case kind != 't' && kind != 'f':
		if _, err := strconv.ParseInt(string(value), 10, 32); err != nil {
			return "", false, badEvent("attribute %q is a number but not a whole one of 32 bits", clip(name))
		}
	}
	return string(value), true, nil
}

func checkBase64(value []byte) error {
	if jsonwalk.Kind(value) != '"' {
		return badEvent("data_base64 is no text")
	}
	text := value[1 : len(value)-1]
	if bytes.IndexByte(text, '\\') >= 0 {
		var plain string
		if json.Unmarshal(value, &plain) != nil {
			return badEvent("data_base64 is no text")
		}
		text = []byte(plain)
	}
	if _, err := base64.StdEncoding.AppendDecode(nil, text); err != nil {
		return badEvent("data_base64 is not base64")
	}
	return nil
}

// core are the attributes whose value is text.
var core = map[string]bool{
	"specversion": true, "id": true, "source": true, "type": true,
	"datacontenttype": true, "dataschema": true, "subject": true, "time": true,
}

func checkAttributes(attributes map[string]string) error {
	if len(attributes) > maxAttributes {
		return badEvent("it has %d attributes, which are too many", len(attributes))
	}
	for _, name := range []string{"specversion", "id", "source", "type"} {
		if attributes[name] == "" {
			return badEvent("it has no %s", name)
		}
	}
	if v := attributes["specversion"]; v != "1.0" {
		return badEvent("specversion %q is not known; it must be 1.0", clip(v))
	}
	for name, value := range attributes {
		for _, c := range []byte(name) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return badEvent("the attribute name %q has other characters than a to z and digits", clip(name))
			}
		}
		var err error
		switch name {
		case "":
			return badEvent("an attribute has no name")
		case "time":
			_, err = time.Parse(time.RFC3339, value)
		case "source":
			_, err = url.Parse(value)
		case "dataschema":
			var u *url.URL
			if u, err = url.Parse(value); err == nil && !u.IsAbs() {
				err = errors.New("not absolute")
			}
		case "datacontenttype":
			_, _, err = mime.ParseMediaType(value)
		}
		if err != nil {
			return badEvent("%s %q is not valid", name, clip(value))
		}
	}
	return nil
}

// fromHeaders makes the JSON format of an event in binary mode.
func fromHeaders(h http.Header, body []byte) ([]byte, error) {
	attributes := map[string]string{}
	for key, values := range h {
		name, ok := strings.CutPrefix(strings.ToLower(key), "ce-")
		switch {
		case !ok:
			continue
		case name == "datacontenttype" || name == "data" || name == "data_base64":
			return nil, badEvent("the header %s is not allowed; data is the body and its type is Content-Type", clip(key))
		case len(values) != 1:
			return nil, badEvent("the header %s is there more than once", clip(key))
		}
		value, err := headerValue(values[0])
		if err != nil {
			return nil, badEvent("the value of header %s is not valid: %s", clip(key), err)
		}
		attributes[name] = value
	}
	content := h.Get("Content-Type")
	if content != "" {
		attributes["datacontenttype"] = content
	}
	if err := checkAttributes(attributes); err != nil {
		return nil, err
	}
	media, _, _ := mime.ParseMediaType(content)
	var data string // the member that has the body
	var appendData func([]byte) []byte
	size := len(body)
	switch {
	case len(body) == 0:
	case media == "application/json" || strings.HasSuffix(media, "+json"):
		if err := checkJSON(body, "the body is no JSON, although Content-Type says so"); err != nil {
			return nil, err
		}
		data, appendData = "data", func(b []byte) []byte {
			buf := bytes.NewBuffer(b)
			json.Compact(buf, body) //nolint:errcheck // it is valid
			return buf.Bytes()
		}
	case utf8.Valid(body) && (strings.HasPrefix(media, "text/") || media == "application/xml" || strings.HasSuffix(media, "+xml")):
		if size = quotedLen(body); size > maxText {
			return nil, hearth.AsError(badEvent("the body is called text, but has too many control characters")).WithHint("send it as application/octet-stream")
		}
		data, appendData = "data", func(b []byte) []byte { return appendString(b, string(body)) }
	default:
		size = base64.StdEncoding.EncodedLen(len(body))
		data, appendData = "data_base64", func(b []byte) []byte {
			return append(base64.StdEncoding.AppendEncode(append(b, '"'), body), '"')
		}
	}
	names := slices.Collect(maps.Keys(attributes))
	if data != "" {
		names = append(names, data)
	}
	slices.Sort(names)
	event, n := append(make([]byte, 0, size+1024), '{'), 0
	for _, name := range names {
		event = append(appendString(appendComma(event, &n), name), ':')
		if name == data {
			event = appendData(event)
		} else {
			event = appendString(event, attributes[name])
		}
	}
	return append(event, '}'), nil
}

// quotedLen is how long text becomes as a JSON string, but for its quotes.
func quotedLen(text []byte) int {
	n := len(text)
	for _, c := range text {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
			n++
		case c < ' ':
			n += 5
		}
	}
	return n
}

// headerValue decodes the value of a header as the HTTP binding says: quotes are
// taken away, then what is percent-encoded is decoded. A percent sign that encodes
// nothing stays.
func headerValue(s string) (string, error) {
	if n := len(s); n >= 2 && s[0] == '"' && s[n-1] == '"' {
		s = unquote(s[1 : n-1])
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(c))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	if !utf8.Valid(b) {
		return "", errors.New("it is not UTF-8")
	}
	return string(b), nil
}

// unquote takes away the backslashes of a quoted string.
func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// CloudEvents returns the events that a request for a target carries, in their JSON
// format, if the function takes them. batch tells that they came as a batch, which
// may be empty; an ordinary request has neither. Errors: CodeInvalid.
func (g *Gateway) CloudEvents(target string, h http.Header, body []byte) (events [][]byte, batch bool, err error) {
	cfg, err := g.AsyncConfig(target)
	if err != nil || !cfg.CloudEvents {
		return nil, false, err
	}
	return cloudEvents(h, body)
}

// AcceptEvents stores a call for each event, all of them or none, and answers with
// their ids. After an error there was no answer. Errors: those of AcceptEvent.
func (g *Gateway) AcceptEvents(ctx context.Context, w http.ResponseWriter, target string, events [][]byte, h http.Header) error {
	all, err := asyncRequest(h, time.Now())
	if err != nil {
		return err
	}
	all.Target = target
	return g.acceptEvents(ctx, w, all, events, h)
}

// acceptEvents stores a call for each event of a request with the headers; the calls are
// otherwise as all says.
func (g *Gateway) acceptEvents(ctx context.Context, w http.ResponseWriter, all hearth.AsyncRequest, events [][]byte, h http.Header) error {
	if all.DeduplicationKey != "" {
		return hearth.Errorf(hearth.CodeInvalid, "a batch cannot have a Hearth-Deduplication-Key").WithHint("send the events one by one, each with its own")
	}
	all.Kind = hearth.KindEvent
	list := make([]hearth.AsyncRequest, len(events))
	for i, event := range events {
		list[i] = all
		list[i].ID, list[i].Body, list[i].Trace = newInvocationID(), event, g.traceOfEvent(h, event)
		if all.Public {
			function, _, _ := strings.Cut(all.Target, "@")
			list[i].Trace = g.public(function, list[i].Trace)
		}
	}
	calls, err := g.cfg.Queue.AcceptAll(ctx, list)
	if err != nil {
		return err
	}
	writeAcceptedBatch(w, calls)
	return nil
}

// serveCloudEvents answers a request that carries events.
func (g *Gateway) serveCloudEvents(w http.ResponseWriter, r *http.Request, t *target, later bool, now time.Time) (rec hearth.Invocation) {
	rec = g.newRecord(t.alias, t.version, hearth.KindEvent, hearth.Trace{}, now)
	rec.Method, rec.Path, rec.HTTPRoute = r.Method, r.URL.Path, t.httpRoute()
	value, called, err := g.takeCloudEvents(w, r, t, &rec, later, now)
	if called {
		g.finish(&rec, err)
	}
	switch {
	case err != nil && called:
		writeError(w, r, &rec, err)
	case err != nil:
		writeError(w, r, nil, err)
	case called:
		setHeaders(w.Header(), &rec)
		writeEventValue(w, value)
	}
	return rec
}

// takeCloudEvents has a function handle an event and returns its value, or stores
// calls and answers; called tells which.
func (g *Gateway) takeCloudEvents(w http.ResponseWriter, r *http.Request, t *target, rec *hearth.Invocation, later bool, now time.Time) (value []byte, called bool, err error) {
	if err := allow(t.limit, now); err != nil {
		return nil, false, err
	}
	ctx, cancel, end := deadline(r.Context(), t.version, now)
	defer cancel()
	body, free, err := g.readStored(ctx, w, r, end)
	defer free()
	if err != nil {
		return nil, false, blame(err, end)
	}
	events, batch, err := cloudEvents(r.Header, body)
	if err != nil {
		return nil, false, err
	}
	if batch || later {
		all, err := g.publicRequest(r, t, now)
		if err != nil {
			return nil, false, err
		}
		if batch {
			return nil, false, g.acceptEvents(ctx, w, all, events, r.Header)
		}
		if r.Header["Traceparent"] == nil {
			all.Trace = g.public(t.version.Function, g.traceOfEvent(nil, events[0]))
		}
		call, first, err := g.acceptEvent(ctx, all, events[0])
		if err == nil {
			writeAccepted(w, r, call, first)
		}
		return nil, false, err
	}
	rec.BytesIn = int64(len(body))
	if r.Header["Traceparent"] == nil {
		rec.Trace = g.public(t.version.Function, g.traceOfEvent(nil, events[0]))
	}
	waits, err := g.spoolEvent(events[0])
	if err != nil {
		return nil, false, err
	}
	defer waits.Close()
	body, events = nil, nil // they have been spooled
	free()
	call := &guest.Call{ID: rec.ID, Deadline: end, Kind: hearth.KindEvent, Body: waits.head, Trace: rec.Running()}
	if waits.rest != nil {
		call.Rest = waits.rest
	}
	sink := &valueSink{limit: min(g.maxResponse(t.version), maxAsyncBody)}
	err = blame(g.invoke(ctx, t.version, call, rec, sink), end)
	rec.BytesOut = int64(sink.Len())
	if err == nil {
		if rec.Status = http.StatusOK; emptyValue(sink.Bytes()) {
			rec.Status = http.StatusNoContent
		}
	}
	return sink.Bytes(), true, err
}

// spoolEvent keeps an event as long bodies of other calls are kept while they wait for
// an instance. Errors: those of collect.
func (g *Gateway) spoolEvent(event []byte) (*spooled, error) {
	if len(event) <= spooledInMemory {
		return &spooled{spool: &g.spool, head: event, size: int64(len(event))}, nil
	}
	return g.spool.collect(bytes.NewReader(event))
}

// emptyValue tells whether a handler returned nothing.
func emptyValue(value []byte) bool {
	value = bytes.TrimSpace(value)
	return len(value) == 0 || string(value) == "null"
}

// writeEventValue answers with what a handler returned: nothing, an event, or another
// JSON value.
func writeEventValue(w http.ResponseWriter, value []byte) {
	if emptyValue(value) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	kind := "application/json"
	if _, err := structured(value); err == nil {
		kind = hearth.StructuredEventType
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(value)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(value) // the client may be gone
}

// writeAcceptedBatch answers a batch whose calls were stored, in its order.
func writeAcceptedBatch(w http.ResponseWriter, calls []hearth.AsyncCall) {
	ids := make([]string, len(calls))
	for i, c := range calls {
		ids[i] = c.ID
	}
	body, _ := json.Marshal(map[string]any{"invocations": ids}) //nolint:errcheck // strings
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(body) // the client may be gone
}

// valueSink keeps a handler's value.
type valueSink struct {
	bytes.Buffer
	limit int64
}

// Head implements guest.Sink.
func (s *valueSink) Head(*guest.Head) error { return nil }

// Data implements guest.Sink.
func (s *valueSink) Data(p []byte, _ bool) error {
	if int64(s.Len()+len(p)) > s.limit {
		return responseTooLarge(s.limit)
	}
	_, err := s.Write(p)
	return err
}

// Flush implements guest.Sink.
func (s *valueSink) Flush() error { return nil }

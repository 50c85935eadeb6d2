package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

func eventHeader(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

func binaryHeader(pairs ...string) http.Header {
	return eventHeader(append([]string{"ce-specversion", "1.0", "ce-id", "7", "ce-source", "/shop", "ce-type", "order"}, pairs...)...)
}

// TestBinaryCloudEvent: attributes come from headers, data from the body.
func TestBinaryCloudEvent(t *testing.T) {
	const head = `"id":"7","source":"/shop","specversion":"1.0"`
	for _, c := range []struct {
		h    http.Header
		body string
		want string
	}{
		{binaryHeader(), "", `{` + head + `,"type":"order"}`},
		{binaryHeader("Content-Type", "application/json"), `{"n": 1}`, `{"data":{"n":1},"datacontenttype":"application/json",` + head + `,"type":"order"}`},
		{binaryHeader("Content-Type", "application/vnd.x+json"), `null`, `{"data":null,"datacontenttype":"application/vnd.x+json",` + head + `,"type":"order"}`},
		{binaryHeader("Content-Type", "text/plain"), "hä", `{"data":"hä","datacontenttype":"text/plain",` + head + `,"type":"order"}`},
		{binaryHeader("Content-Type", "text/plain"), "\xff", `{"data_base64":"/w==","datacontenttype":"text/plain",` + head + `,"type":"order"}`},
		{binaryHeader(), "abc", `{"data_base64":"YWJj",` + head + `,"type":"order"}`},
		{binaryHeader("Ce-Subject", "Euro%20%E2%82%AC%20%F0%9F%98%80 100%"), "", `{` + head + `,"subject":"Euro € 😀 100%","type":"order"}`},
		{binaryHeader("Ce-Subject", `"a \"b\" %22"`), "", `{` + head + `,"subject":"a \"b\" \"","type":"order"}`},
	} {
		events, batch, err := cloudEvents(c.h, []byte(c.body))
		if err != nil || batch || len(events) != 1 || string(events[0]) != c.want {
			t.Errorf("%v %q: %v\n got %s\nwant %s", c.h, c.body, err, events, c.want)
		}
	}
}

// TestInvalidCloudEvents: what is no event is refused, and says why.
func TestInvalidCloudEvents(t *testing.T) {
	structuredHeader, batchHeader := eventHeader("Content-Type", hearth.StructuredEventType+"; charset=utf-8"), eventHeader("Content-Type", hearth.BatchedEventsType)
	const ok = `"specversion":"1.0","id":"1","source":"/s","type":"t"`
	for _, c := range []struct {
		h    http.Header
		body string
		want string
	}{
		{eventHeader("Ce-Specversion", "1.0"), "", "it has no id"},
		{eventHeader("Ce-Specversion", "0.3", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"), "", `specversion "0.3"`},
		{binaryHeader("Ce-Id", "8"), "", "more than once"},
		{binaryHeader("Ce-Time", "noon"), "", `time "noon"`},
		{binaryHeader("Ce-My_attribute", "x"), "", "attribute name"},
		{binaryHeader("Ce-Datacontenttype", "x/y"), "", "not allowed"},
		{binaryHeader("Ce-Subject", "%ff"), "", "UTF-8"},
		{binaryHeader("Content-Type", "application/json"), "{", "no JSON"},
		{eventHeader("Content-Type", "application/cloudevents+avro"), "", "format"},
		{structuredHeader, "", "no JSON object"},
		{structuredHeader, "[]", "no JSON object"},
		{structuredHeader, "null", "no JSON object"},
		{structuredHeader, `{"specversion":"1.0","id":1,"source":"/s","type":"t"}`, "id is no text"},
		{structuredHeader, `{` + ok + `,"data":1,"data_base64":"YQ=="}`, "both"},
		{structuredHeader, `{` + ok + `,"data_base64":"?"}`, "base64"},
		{structuredHeader, `{` + ok + `,"data_base64":7}`, "no text"},
		{structuredHeader, `{` + ok + `,"data_base64":"YQ\u003d"}`, "base64"},
		{structuredHeader, `{` + ok + `,"type":null}`, "more than once"},
		{structuredHeader, `{` + ok + `,"data":"` + "\xff" + `"}`, "byte 62 is not UTF-8"},
		{structuredHeader, `{` + ok + `,"data":[-` + strings.Repeat("9", 6000) + `]}`, "more than 4300 characters"},
		{binaryHeader("Content-Type", "application/json"), strings.Repeat("9", 6000), "more than 4300 characters"},
		{binaryHeader("Content-Type", "application/json"), "\"\xff\"", "not UTF-8"},
		{batchHeader, `[{` + ok + `,"data":"` + "\xff" + `"}]`, "not UTF-8"},
		{structuredHeader, `{` + ok + `,"time":true}`, "time is no text"},
		{structuredHeader, `{` + ok + `}{}`, "no JSON object"},
		{structuredHeader, `{` + ok + `,"extension":{}}`, "neither text"},
		{structuredHeader, `{` + ok + `,"extension":1.5}`, "32 bits"},
		{structuredHeader, `{` + ok + `,"dataschema":"x"}`, "dataschema"},
		{batchHeader, `{}`, "JSON array"},
		{batchHeader, `[{` + ok + `},{}]`, "event 2 of the batch: not a CloudEvent: it has no specversion"},
		{batchHeader, `[` + strings.Repeat(`{`+ok+`},`, 1000) + `{}]`, "more than 1000 events"},
	} {
		if _, _, err := cloudEvents(c.h, []byte(c.body)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %q: %v, want %q", c.h, c.body, err, c.want)
		}
	}
	if events, batch, err := cloudEvents(batchHeader, []byte(`[{`+ok+`,"count":3,"flag":true,"gone":null},{`+ok+`}]`)); err != nil || !batch || len(events) != 2 {
		t.Error(events, batch, err)
	}
	if events, batch, err := cloudEvents(eventHeader("Content-Type", "application/json"), []byte(`{`+ok+`}`)); err != nil || batch || events != nil {
		t.Error("an ordinary request was taken for an event", err)
	}
}

// FuzzCloudEvent: whatever a client sends, what is accepted is a valid event.
func FuzzCloudEvent(f *testing.F) {
	f.Add("1.0", "7", "a%20b", "application/json", []byte(`{"n":1}`))
	f.Add("1.0", "\"x\\", "%", "text/plain", []byte("\xff"))
	f.Add("", "", "", hearth.StructuredEventType, []byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`))
	f.Add("", "", "", hearth.BatchedEventsType, []byte(`[{"specversion":"1.0","id":"1","source":"/s","type":"t"}]`))
	f.Add("", "", "", hearth.StructuredEventType, []byte(` { "specversion" : "1.0","id":"1","source":"\u002fs","type":"t","n":-7,"b":true,"data_base64":"YQ\u003d=" } `))
	f.Add("", "", "", hearth.StructuredEventType, []byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"id":[1,{}]},"gone":null,"i\u0064":"2"}`))
	f.Add("", "", "", hearth.BatchedEventsType, []byte(`[{"specversion":"1.0","id":"1","source":"/s","type":"t"} , 0]`))
	f.Add("1.0", "7", "x", "", []byte("abc"))
	f.Add("1.0", "7", "x", "text/plain", []byte("a\x01\n\"<\u2028"))
	f.Fuzz(func(t *testing.T, version, id, extension, media string, body []byte) {
		h := http.Header{"Ce-Id": {id}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}, "Ce-Extension": {extension}, "Content-Type": {media}}
		if version != "" {
			h["Ce-Specversion"] = []string{version}
		}
		events, _, err := cloudEvents(h, body)
		if err != nil {
			return
		}
		for _, e := range events {
			if _, err := structured(e); err != nil {
				t.Errorf("%s: %v", e, err)
			}
			// What a function gets is what was checked, for any parser.
			var got map[string]any
			if err := json.Unmarshal(e, &got); err != nil {
				t.Fatalf("%s: %v", e, err)
			}
			for _, name := range []string{"id", "source", "type", "specversion"} {
				if text, ok := got[name].(string); !ok || text == "" {
					t.Errorf("%s has no %s", e, name)
				}
			}
			if len(got) > maxAttributes+1 {
				t.Errorf("%d members", len(got))
			}
			for name, value := range got {
				switch v := value.(type) {
				case string, bool, nil:
				case float64:
					if name != "data" && v != float64(int32(v)) {
						t.Errorf("%s: %s is %g", e, name, v)
					}
				default:
					if name != "data" {
						t.Errorf("%s: %s is %T", e, name, v)
					}
				}
			}
			if mode, _ := hearth.EventModeOf(h); mode == hearth.BinaryEvent {
				checkData(t, got, body)
			}
		}
	})
}

// checkData tells whether the data of an event in binary mode is its body.
func checkData(t *testing.T, event map[string]any, body []byte) {
	t.Helper()
	var want any
	switch data := event["data"].(type) {
	case string:
		if data == string(body) {
			return
		}
	case nil:
		text, _ := event["data_base64"].(string)
		if plain, err := base64.StdEncoding.DecodeString(text); text != "" || len(body) == 0 {
			if err != nil || !bytes.Equal(plain, body) {
				t.Errorf("data_base64 is %q, the body %q", text, body)
			}
			return
		}
	}
	if err := json.Unmarshal(body, &want); err != nil || !reflect.DeepEqual(event["data"], want) {
		t.Errorf("data is %v, the body %q", event["data"], body)
	}
}

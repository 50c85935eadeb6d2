package api_test

import (
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

// allocated is what fn allocates in bytes, with all that runs meanwhile.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHostileBodies: a body takes no more than a few times its size, whatever is in it.
func TestHostileBodies(t *testing.T) {
	h := newHost(t)
	h.queues = map[string]string{"q": "f"}
	zeros := func(bytes int) string { return "[" + strings.Repeat("0,", bytes/2) + "0]" }
	const large = 4<<20 - 100
	for _, c := range []struct{ method, path, body, detail string }{
		{"POST", "/v1/queues/q/messages", `{"messages":` + zeros(large) + `}`, "body.messages[0]: expected object"},
		{"POST", "/v1/queues/q/messages", `{"messages":[{"body":` + zeros(large) + `}]}`, "messages[0]: the message has"},
		{"POST", "/v1/queues/q/messages", `{"messages":[{"body":"` + strings.Repeat(`\u0001`, 1<<20+1) + `"}]}`, "messages[0]: the message has"},
		{"POST", "/v1/queues/q/messages", `{"messages":[` + strings.Repeat(`{"body":1},`, large/11-1) + `{}]}`, "more than 1000"},
		{"POST", "/v1/queues/q/messages", `{"messages":[{"body":1,"x":` + zeros(large) + `}]}`, "body.messages[0].x: unknown field"},
		{"POST", "/v1/queues/q/messages", zeros(large), "body: expected object"},
		{"POST", "/v1/functions/f/plan", `{"files":` + zeros(large) + `}`, "more than 100000 values"},
		{"PUT", "/v1/functions/f", `{"routes":` + zeros(large) + `}`, "more than 100000 values"},
		{"POST", "/v1/functions", `{"files":{` + strings.Repeat(`"":0,`, 1<<20) + `"":0}}`, "more than 100000 values"},
		{"POST", "/v1/queues/q/redrive", `{"ids":` + zeros(1<<20-100) + `}`, "more than 100000 values"},
		{"POST", "/v1/functions/f/queue/redrive", `{"ids":` + zeros(99_000*2) + `}`, "expected array length <= 1000"},
	} {
		var a answer
		took := allocated(func() { a = h.do(c.method, c.path, c.body) })
		if detail := a.Body.String(); a.Code != 400 || !strings.Contains(detail, c.detail) {
			t.Errorf("%s %.60s…: %d %.200s, want %s", c.path, c.body, a.Code, detail, c.detail)
		}
		t.Logf("%s %.40s…: %d MiB of memory for %d MiB", c.path, c.body, took>>20, len(c.body)>>20)
		if took > 80<<20 {
			t.Errorf("%s %.60s…: %s of memory for %s", c.path, c.body, hearth.Bytes(took), hearth.Bytes(len(c.body)))
		}
	}
}

// TestLargestPlan: a plan of as many files as there may be is no hostile body.
func TestLargestPlan(t *testing.T) {
	h := newHost(t)
	var files []hearth.SourceFile
	for i := range 20_000 {
		files = append(files, hearth.SourceFile{Path: strconv.Itoa(i) + ".py", Executable: true, SHA256: strings.Repeat("0", 64)})
	}
	body := map[string]any{"runtime": "python", "handler": "main.handler", "files": files}
	if a := h.do("POST", "/v1/functions/f/plan", body); a.Code != http.StatusOK {
		t.Errorf("%d %.300s", a.Code, a.Body)
	}
}

// TestSendBody: what is no list of messages is refused with what is wrong and where.
func TestSendBody(t *testing.T) {
	h := newHost(t)
	h.queues = map[string]string{"q": "f"}
	for body, want := range map[string]string{
		`{}`:                                    "body: messages is missing",
		`null`:                                  "body: expected object",
		`{"messages":[`:                         "not valid JSON",
		`{"messages":[]}`:                       "body.messages: there is none",
		`{"messages":{}}`:                       "body.messages: expected array",
		`{"messages":[{"body":1}],"x":1}`:       "body.x: unknown field",
		`{"messages":[{"body":1},{}]}`:          "body.messages[1]: body is missing",
		`{"messages":[{"body":1},{"body":""}]}`: "messages[1]: the message is empty",
		`{"messages":[{"body":1},{"body":1,"delays":"1s"}]}`:                               "body.messages[1].delays: unknown field",
		`{"messages":[{"body":1,"delay":1}]}`:                                              "body.messages[0].delay: expected string",
		`{"messages":[{"body":1,"delay":"soon"}]}`:                                         `body.messages[0].delay: \"soon\" is not valid`,
		`{"messages":[{"body":1,"delay":"-1s"}]}`:                                          "messages[0]: delay -1s is negative",
		`{"messages":[{"body":1,"deduplication_key":{}}]}`:                                 "body.messages[0].deduplication_key: expected string",
		`{"messages":[{"body":1,"deduplication_key":"` + strings.Repeat("ä", 257) + `"}]}`: "expected length <= 256",
		"{\"messages\":[{\"body\":\"a\xff\"}]}":                                            "the messages are not UTF-8",
		`{"messages":[{"body":"\ud800"}]}`:                                                 `the surrogate \\ud800 at byte 22 is not one of a pair`,
		`{"messages":[{"body":"\uDC00\ud800"}]}`:                                           `the surrogate \\uDC00 at byte 22`,
		`{"messages":[{"body":"\ud83d\uDE00 \\ud800 \ufffd 😀"},1]}`:                        "body.messages[1]: expected object", // a pair is fine
		`{"messages":[{"body":1,"deduplication_key":"\ud83d-"}]}`:                          `the surrogate \\ud83d`,
	} {
		a := h.do("POST", "/v1/queues/q/messages", body)
		if got := a.Body.String(); a.Code != 400 || !strings.Contains(got, want) {
			t.Errorf("%s: %d %s, want %s", body, a.Code, got, want)
		}
	}
	if a := h.do("POST", "/v1/queues/q/messages", nil); a.Code != http.StatusBadRequest {
		t.Errorf("no body: %d %s", a.Code, a.Body)
	}
}

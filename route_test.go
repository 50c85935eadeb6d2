package hearth_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func TestRouteValidate(t *testing.T) {
	for route, want := range map[string]string{
		"/a":                               "",
		"GET /a/{b}/{c...}":                "",
		"api.example.com/":                 "",
		"GET *.example.com/v1/x":           "", // below its own host all paths are free
		"POST xn--bcher-kva.example/fn":    "",
		"a":                                "no path",
		"GET api.example.com":              "no path",
		"/v1/x":                            "belongs to Hearth",
		"/%76%31/x":                        "belongs to Hearth",
		"GET /%661/%66n":                   "",
		"GET /%66%6E/x":                    "belongs to Hearth",
		"/v1%2Fx":                          "belongs to Hearth",
		"/v1%2fx/{y...}":                   "belongs to Hearth",
		"/openapi%2ejson":                  "belongs to Hearth",
		"/%2576%31/x":                      "", // decoded once it is %76
		"/a%20b/%":                         "",
		"api.example.com/%76%31":           "",
		"/a/%2e%2E/v1":                     "empty segment",
		"localhost/x":                      "belongs to Hearth",
		"GET products/":                    "has no dot",
		"a.localhost/x":                    "belongs to Hearth",
		"api.example.com:8080/x":           "without a port",
		"API.example.com/":                 "small letters",
		"a.*.example.com/":                 "must be a name",
		"*/x":                              "must be a name",
		"127.0.0.1/x":                      "an address",
		"-a.example.com/":                  "must be a name",
		strings.Repeat("a.", 130) + "com/": "must be a name",
		"get /a":                           "capital letters",
		"CONNECT /a":                       "CONNECT",
		"/a//b":                            "empty segment",
		"/{a}/{a}":                         "given twice",
		"/{a...}/b":                        "at the end",
	} {
		err := hearth.Route(route).Validate()
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || hearth.AsError(err).Hint == "") {
			t.Errorf("%q: %v, want %q", route, err, want)
		}
	}
	m, h, p := hearth.Route("GET api.example.com/a/{b}").Parts()
	if m != "GET" || h != "api.example.com" || p != "/a/{b}" {
		t.Errorf("parts %q %q %q", m, h, p)
	}
}

func TestCORSAndLimits(t *testing.T) {
	for name, c := range map[string]struct {
		config hearth.Config
		want   string
	}{
		"all":               {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"*": {Origins: []string{"*"}}}}, ""},
		"wildcard":          {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"https://*.example.com"}, Credentials: true}}}, ""},
		"credentials":       {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"*"}, Credentials: true}}}, "every origin"},
		"no origin":         {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {}}}, "no origins"},
		"path":              {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"https://a.example/x"}}}}, "not valid"},
		"unknown route":     {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/x": {Origins: []string{"*"}}}}, "the function has not"},
		"method":            {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"*"}, Methods: []string{"get"}}}}, "method"},
		"header":            {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"*"}, Headers: []string{"a b"}}}}, "header"},
		"age":               {hearth.Config{CORS: map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"*"}, MaxAge: hearth.Duration(48 * time.Hour)}}}, "max_age"},
		"limits":            {hearth.Config{Limits: hearth.Limits{Rate: 100, Burst: 10, Request: 1, Response: 1}}, ""},
		"burst alone":       {hearth.Config{Limits: hearth.Limits{Burst: 10}}, "limits nothing"},
		"negative request":  {hearth.Config{Limits: hearth.Limits{Request: -1}}, "out of range"},
		"negative response": {hearth.Config{Limits: hearth.Limits{Response: -1}}, "out of range"},
	} {
		config := c.config
		config.Runtime = "python"
		err := config.WithDefaults().Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || hearth.AsError(err).Hint == "") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for text, want := range map[string]string{"100/s": "100/s", "30/m": "30/m", "5/h": "5/h", "60/m": "1/s", "0.5/s": "30/m", "2.5/s": "150/m", " 1 / s ": "1/s"} {
		var r hearth.Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || r.String() != want {
			t.Errorf("%q is %s, %v; want %s", text, r, err, want)
		}
	}
	for _, text := range []string{"", "1", "1/d", "0/s", "-1/s", "NaN/s", "1e99/s", "/s"} {
		if err := new(hearth.Rate).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a rate", text)
		}
	}
}

func TestAlias(t *testing.T) {
	for name, c := range map[string]struct {
		alias hearth.Alias
		want  string
	}{
		"one":      {hearth.Alias{Name: "beta", Versions: hearth.Weights{1: 100}, Env: map[string]string{"A": "b"}, Routes: []hearth.Route{"beta.example.com/"}}, ""},
		"split":    {hearth.Alias{Name: "live", Versions: hearth.Weights{7: 90, 8: 10}, Sticky: "header:X-User"}, ""},
		"sum":      {hearth.Alias{Name: "live", Versions: hearth.Weights{7: 90, 8: 20}}, "sum to 110"},
		"zero":     {hearth.Alias{Name: "live", Versions: hearth.Weights{7: 100, 8: 0}}, "0 percent"},
		"none":     {hearth.Alias{Name: "live"}, "sum to 0"},
		"number":   {hearth.Alias{Name: "live", Versions: hearth.Weights{-1: 100}}, "version -1"},
		"name":     {hearth.Alias{Name: "7", Versions: hearth.Weights{1: 100}}, "not valid"},
		"sticky":   {hearth.Alias{Name: "live", Versions: hearth.Weights{1: 100}, Sticky: "ip"}, "sticky"},
		"reserved": {hearth.Alias{Name: "b", Versions: hearth.Weights{1: 100}, Env: map[string]string{"HEARTH_X": "b"}}, "reserved"},
		"live":     {hearth.Alias{Name: "live", Versions: hearth.Weights{1: 100}, Routes: []hearth.Route{"/a"}}, "routes of its version"},
		"twice":    {hearth.Alias{Name: "b", Versions: hearth.Weights{1: 100}, Routes: []hearth.Route{"/a", "/a"}}, "twice"},
	} {
		err := c.alias.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || hearth.AsError(err).Hint == "") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if main := (hearth.Alias{Versions: hearth.Weights{9: 50, 3: 50}}).Main(); main != 3 {
		t.Errorf("of two halves %d is the main one, want the older", main)
	}
	for text, want := range map[string]string{"7": "7", "7=90,8=10": "8=10,7=90", " 7 = 90% , 8=10 ": "8=10,7=90"} {
		if w, err := hearth.ParseWeights(text); err != nil || w.String() != want {
			t.Errorf("%q is %s, %v; want %s", text, w, err, want)
		}
	}
	for _, text := range []string{"", "x", "7=", "7=1,7=99", "=1"} {
		if w, err := hearth.ParseWeights(text); err == nil {
			t.Errorf("%q is %v", text, w)
		}
	}
	for target, want := range map[hearth.Target]string{"f": "f", "f@live": "f", "f@7": "f 7", "f@beta": "f beta", "f@": "error", "f@07": "error", "f@-1": "error", "f@B": "error"} {
		f, alias, n, err := target.Parts()
		got := f
		switch {
		case err != nil:
			got = "error"
		case n > 0:
			got += " 7"
		case alias != "":
			got += " " + alias
		}
		if got != want {
			t.Errorf("%s is %s, want %s", target, got, want)
		}
	}
}

func TestConditions(t *testing.T) {
	good := hearth.Traffic{Calls: 1000, Errors: 1, Percentiles: map[int]float64{50: 0.010, 90: 0.020, 95: 0.030, 99: 0.050}}
	with := func(change func(*hearth.Traffic)) hearth.Traffic {
		c := good
		c.Percentiles = map[int]float64{50: 0.010, 90: 0.020, 95: 0.030, 99: 0.050}
		change(&c)
		return c
	}
	for _, c := range []struct {
		condition  string
		fresh, old hearth.Traffic
		want       string // "" if it does not hold
	}{
		{"error_rate>2%", with(func(x *hearth.Traffic) { x.Errors = 21 }), good, "error_rate is 2.1%, and 0.1% with the old version"},
		{"error_rate>2%", with(func(x *hearth.Traffic) { x.Errors = 20 }), good, ""},
		{"error_rate>2%", with(func(x *hearth.Traffic) { x.Errors = 500 }), with(func(x *hearth.Traffic) { x.Errors = 500 }), ""}, // both suffer
		{"error_rate>2%", hearth.Traffic{}, good, ""},
		{"error_rate>5x", with(func(x *hearth.Traffic) { x.Errors = 6 }), good, "error_rate is 0.6%"},
		{"error_rate>5x", with(func(x *hearth.Traffic) { x.Errors = 5 }), good, ""},
		{"p99>2x", with(func(x *hearth.Traffic) { x.Percentiles[99] = 0.101 }), good, "p99 is 101ms, and 50ms with the old version"},
		{"p99>2x", with(func(x *hearth.Traffic) { x.Percentiles[99] = 0.099 }), good, ""},
		{"p99>2x", with(func(x *hearth.Traffic) { x.Calls, x.Percentiles[99] = 99, 1 }), good, ""}, // too few to tell
		{"p99>2x", with(func(x *hearth.Traffic) { x.Percentiles[99] = 1 }), with(func(x *hearth.Traffic) { x.Calls = 99 }), ""},
		{"p50>2x", with(func(x *hearth.Traffic) { x.Percentiles[50] = 0.009 }), with(func(x *hearth.Traffic) { x.Percentiles[50] = 0.001 }), ""}, // noise
		{"p95>40ms", with(func(x *hearth.Traffic) { x.Percentiles[95] = 0.041 }), hearth.Traffic{}, "p95 is 41ms"},
		{"p90>20ms", good, good, ""},
	} {
		list, err := hearth.ParseConditions(c.condition)
		if err != nil || len(list) != 1 || list[0].String() != c.condition {
			t.Errorf("%s: %v, %v", c.condition, list, err)
			continue
		}
		why, breaks := list[0].Breaks(c.fresh, c.old)
		if breaks != (c.want != "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: %v %q, want %q", c.condition, breaks, why, c.want)
		}
	}
	for _, text := range []string{"", "p99", "p98>1s", "error_rate>2", "error_rate>200%", "p99>0.5x", "p99>-1s", "p99>1s|", "p99>NaNx"} {
		if list, err := hearth.ParseConditions(text); err == nil {
			t.Errorf("%q is %v", text, list)
		}
	}
	c := hearth.Canary{Shares: []int{30}}.WithDefaults()
	if err := c.Validate(); err != nil || len(c.Shares) != 3 || c.Shares[2] != 90 || c.MinCalls != hearth.DefaultCanaryMinCalls {
		t.Errorf("%+v, %v", c, err)
	}
	for _, shares := range [][]int{nil, {0}, {100}, {50, 50}, {60, 50}, {-5}} {
		if err := (hearth.Canary{Shares: shares}).WithDefaults().Validate(); err == nil {
			t.Errorf("the shares %v are taken", shares)
		} else if msg := err.Error(); len(shares) == 1 && !strings.Contains(msg, "between 1% and 99%") || len(shares) == 2 && !strings.Contains(msg, "grow") {
			t.Errorf("of the shares %v is said: %v", shares, err)
		}
	}
}

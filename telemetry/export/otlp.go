package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hearthrun/hearth"
)

// otlp sends lines by OTLP over HTTP.
type otlp struct {
	url     string
	headers map[string]string
	version string
	client  *http.Client
}

// maxAnswer is how much of an answer is read.
const maxAnswer = 64 << 10

func newOTLP(u *url.URL, headers map[string]string, version string) (*otlp, error) {
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, invalid("%q is no address of a collector; credentials belong into OTEL_EXPORTER_OTLP_HEADERS", u.Redacted())
	}
	to := *u
	if !strings.HasSuffix(strings.TrimSuffix(to.Path, "/"), "/v1/logs") {
		to = *u.JoinPath("v1", "logs")
	}
	return &otlp{
		url: to.String(), headers: headers, version: version,
		client: &http.Client{
			Transport: http.DefaultTransport.(*http.Transport).Clone(),
			// A header with a key must not go anywhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (o *otlp) close() { o.client.CloseIdleConnections() }

func (o *otlp) send(ctx context.Context, lines []hearth.LogLine) (rejected int, err error) {
	body, err := proto.Marshal(o.request(lines))
	if err != nil {
		return 0, refusal{error: err}
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(body); err != nil {
		return 0, err
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, &packed)
	if err != nil {
		return 0, refusal{error: err}
	}
	for k, v := range o.headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	req.Header.Set("User-Agent", "Hearth/"+o.version)
	resp, err := o.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode/100 == 2:
		if err != nil {
			return 0, nil //nolint:nilerr // it has taken them; how it says so does not matter
		}
		partial, _ := field(answer, 1)
		_, n := field(partial, 1)
		return int(min(n, uint64(len(lines)))), nil
	default:
		return 0, failure(resp)
	}
}

// failure says what an answer means, as the specification of OTLP does.
func failure(resp *http.Response) error {
	err := fmt.Errorf("its answer is %s", resp.Status)
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return busy{err, retryAfter(resp.Header.Get("Retry-After"))}
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusProxyAuthRequired:
		return refusal{err, true}
	default:
		return refusal{err, resp.StatusCode/100 == 3}
	}
}

// retryAfter understands seconds and dates; others are 0.
func retryAfter(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// field returns a field of a message, as far as it has one. The answer, an
// ExportLogsServiceResponse, says in its field 1, partial_success, how many lines were not
// taken: field 1, rejected_log_records. Its generated type would bring all of gRPC along.
func field(message []byte, number protowire.Number) (b []byte, n uint64) {
	for len(message) > 0 {
		got, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			break
		}
		value := message[size:]
		if size = protowire.ConsumeFieldValue(got, kind, value); size < 0 {
			break
		}
		if got == number && kind == protowire.BytesType {
			b, _ = protowire.ConsumeBytes(value)
		} else if got == number && kind == protowire.VarintType {
			n, _ = protowire.ConsumeVarint(value)
		}
		message = value[size:]
	}
	return b, n
}

// request groups lines by what wrote them. LogsData is on the wire what an
// ExportLogsServiceRequest is.
func (o *otlp) request(lines []hearth.LogLine) *logs.LogsData {
	type origin struct {
		function, instance string
		version            int
	}
	req := &logs.LogsData{}
	groups := map[origin]*logs.ScopeLogs{}
	now := uint64(time.Now().UnixNano())
	for i := range lines {
		l := &lines[i]
		from := origin{l.Function, l.Instance, l.Version}
		g := groups[from]
		if g == nil {
			g = &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: "hearth", Version: o.version}}
			groups[from] = g
			req.ResourceLogs = append(req.ResourceLogs, &logs.ResourceLogs{
				Resource: &resource.Resource{Attributes: []*common.KeyValue{
					text("service.name", l.Function), text("faas.instance", l.Instance),
					{Key: "hearth.version", Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: int64(l.Version)}}},
				}},
				ScopeLogs: []*logs.ScopeLogs{g},
			})
		}
		r := &logs.LogRecord{
			TimeUnixNano: uint64(l.Time.UnixNano()), ObservedTimeUnixNano: now, Body: value(l.Text),
			SeverityNumber: severities[l.Level], SeverityText: string(l.Level),
			Attributes: []*common.KeyValue{text("log.iostream", l.Stream)},
		}
		if l.Invocation != "" {
			r.Attributes = append(r.Attributes, text("faas.invocation_id", l.Invocation))
		}
		g.LogRecords = append(g.LogRecords, r)
	}
	return req
}

// severities are those of OTLP; a line without a level has none.
var severities = map[hearth.LogLevel]logs.SeverityNumber{
	hearth.LevelTrace: logs.SeverityNumber_SEVERITY_NUMBER_TRACE,
	hearth.LevelDebug: logs.SeverityNumber_SEVERITY_NUMBER_DEBUG,
	hearth.LevelInfo:  logs.SeverityNumber_SEVERITY_NUMBER_INFO,
	hearth.LevelWarn:  logs.SeverityNumber_SEVERITY_NUMBER_WARN,
	hearth.LevelError: logs.SeverityNumber_SEVERITY_NUMBER_ERROR,
	hearth.LevelFatal: logs.SeverityNumber_SEVERITY_NUMBER_FATAL,
}

func value(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}

func text(key, s string) *common.KeyValue { return &common.KeyValue{Key: key, Value: value(s)} }

// jitter keeps many servers from coming at the same time.
func jitter(most time.Duration) time.Duration { return rand.N(most + 1) }

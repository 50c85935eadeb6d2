package hearth

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// HTTPEvent is the event of an HTTP request: API Gateway's payload format 2.0.
type HTTPEvent struct {
	Version  string `json:"version" doc:"Version of the format" example:"2.0"`
	RouteKey string `json:"routeKey" doc:"Route that led here, or $default below /fn" example:"GET /users/{id}"`
	// RawPath is decoded, as API Gateway's is, and without /fn/{name}.
	RawPath               string             `json:"rawPath" doc:"Decoded path, without /fn/{name}" example:"/users/7"`
	RawQueryString        string             `json:"rawQueryString" doc:"Query as it was sent" example:"name=Ada"`
	Cookies               []string           `json:"cookies,omitempty" doc:"Cookies, each as NAME=VALUE"`
	Headers               map[string]string  `json:"headers" doc:"Headers in lower case; repeated ones are joined by commas"`
	QueryStringParameters map[string]string  `json:"queryStringParameters,omitempty" doc:"Decoded query; repeated parameters are joined by commas"`
	PathParameters        map[string]string  `json:"pathParameters,omitempty" doc:"Parameters of the route"`
	RequestContext        HTTPRequestContext `json:"requestContext" doc:"What Hearth knows of the request"`
	Body                  string             `json:"body,omitempty" doc:"Body, in base64 if isBase64Encoded; missing if there is none"`
	IsBase64Encoded       bool               `json:"isBase64Encoded" doc:"Whether the body is in base64, as one that is not text is"`
}

// HTTPRequestContext is what Hearth knows of an HTTP request.
type HTTPRequestContext struct {
	AccountID  string          `json:"accountId" doc:"Always hearth" example:"hearth"`
	APIID      string          `json:"apiId" doc:"Name of the function" example:"hello"`
	DomainName string          `json:"domainName" doc:"Host that was asked for" example:"127.0.0.1:8080"`
	HTTP       HTTPDescription `json:"http" doc:"The request"`
	RequestID  string          `json:"requestId" doc:"Id of the invocation"`
	RouteKey   string          `json:"routeKey" doc:"As in the event" example:"$default"`
	Stage      string          `json:"stage" doc:"Always $default" example:"$default"`
	Time       string          `json:"time" doc:"When the request came" example:"12/Mar/2026:19:03:58 +0000"`
	TimeEpoch  int64           `json:"timeEpoch" doc:"The same in milliseconds since 1970"`
}

// HTTPDescription is the request of an HTTPEvent.
type HTTPDescription struct {
	Method    string `json:"method" doc:"Method" example:"GET"`
	Path      string `json:"path" doc:"As rawPath" example:"/users/7"`
	Protocol  string `json:"protocol" doc:"Protocol" example:"HTTP/1.1"`
	SourceIP  string `json:"sourceIp" doc:"Address of the client" example:"127.0.0.1"`
	UserAgent string `json:"userAgent" doc:"What the client calls itself"`
}

// ScheduleEvent is the event of a schedule, in the form of Amazon EventBridge.
type ScheduleEvent struct {
	Version    string         `json:"version" doc:"Version of the format" example:"0"`
	ID         string         `json:"id" doc:"Id of the call"`
	DetailType string         `json:"detail-type" doc:"Always Scheduled Event" example:"Scheduled Event"`
	Source     string         `json:"source" doc:"Always hearth.schedules" example:"hearth.schedules"`
	Account    string         `json:"account" doc:"Always hearth" example:"hearth"`
	Time       time.Time      `json:"time" doc:"Time of the schedule, however late the call is"`
	Region     string         `json:"region" doc:"Always local" example:"local"`
	Resources  []string       `json:"resources" doc:"Path of the schedule in the API"`
	Detail     ScheduleDetail `json:"detail" doc:"The schedule"`
}

// ScheduleDetail tells which schedule a ScheduleEvent is of.
type ScheduleDetail struct {
	Function string `json:"function" doc:"Name of the function" example:"hello"`
	Schedule string `json:"schedule" doc:"Name of the schedule" example:"nightly"`
	Manual   bool   `json:"manual,omitempty" doc:"Whether somebody asked for this call"`
}

// NewScheduleEvent returns the event of a schedule's call.
func NewScheduleEvent(id, function, schedule string, due time.Time, manual bool) ScheduleEvent {
	return ScheduleEvent{
		Version: "0", ID: id, DetailType: "Scheduled Event", Source: "hearth.schedules", Account: "hearth", Time: due.UTC(), Region: "local",
		Resources: []string{"/v1/functions/" + function + "/schedules/" + schedule},
		Detail:    ScheduleDetail{Function: function, Schedule: schedule, Manual: manual},
	}
}

// QueueEvent is a batch of messages as Amazon SQS sends it.
type QueueEvent struct {
	Records []QueueRecord `json:"Records" doc:"The messages"`
}

// QueueRecord is one message of a QueueEvent.
type QueueRecord struct {
	MessageID         string                    `json:"messageId" doc:"Id of the message, for batchItemFailures"`
	ReceiptHandle     string                    `json:"receiptHandle" doc:"What SQS deletes the message by"`
	Body              string                    `json:"body" doc:"The message, often JSON in a text"`
	Attributes        map[string]string         `json:"attributes" doc:"What the queue knows of the message"`
	MessageAttributes map[string]QueueAttribute `json:"messageAttributes" doc:"What the sender said besides"`
	MD5OfBody         string                    `json:"md5OfBody" doc:"MD5 of the body in hex digits"`
	EventSource       string                    `json:"eventSource" doc:"Always aws:sqs" example:"aws:sqs"`
	EventSourceARN    string                    `json:"eventSourceARN" doc:"Name of the queue"`
	AWSRegion         string                    `json:"awsRegion" doc:"Region of the queue"`
}

// QueueAttribute is one attribute of a QueueRecord.
type QueueAttribute struct {
	DataType    string `json:"dataType" doc:"String, Number or Binary" example:"String"`
	StringValue string `json:"stringValue" doc:"The value"`
}

// CloudEvent is an event in the JSON format of CloudEvents 1.0.
type CloudEvent struct {
	SpecVersion     string    `json:"specversion" doc:"Version of CloudEvents" example:"1.0"`
	ID              string    `json:"id" doc:"Unique for the source"`
	Source          string    `json:"source" doc:"Who tells, a URI" example:"/shop/orders"`
	Type            string    `json:"type" doc:"What happened" example:"com.example.order.created"`
	Subject         string    `json:"subject,omitempty" doc:"To what"`
	Time            time.Time `json:"time" doc:"When"`
	DataContentType string    `json:"datacontenttype,omitempty" doc:"Media type of the data" example:"application/json"`
	Data            any       `json:"data,omitempty" doc:"What there is to say about it"`
}

// Example is a typical event.
type Example struct {
	Name    string `json:"name" doc:"Name of the example" example:"http"`
	Summary string `json:"summary" doc:"What it is the event of"`
	// Event is an HTTPEvent, ScheduleEvent, QueueEvent or CloudEvent.
	Event any `json:"event" doc:"The event"`
}

// ExampleOptions say what examples are to be like. The zero value is ready to use.
type ExampleOptions struct {
	Function string // default hello
	// Method and Path, with a query if it has one, are those of the HTTP request;
	// default GET / and, with a body, POST /.
	Method, Path string
	// Body is that of the HTTP request.
	Body []byte
	// Time is when it all happened.
	Time time.Time
}

// ExampleSecret is what the example webhook is signed with.
const ExampleSecret = "example"

const (
	exampleID     = "01980f5e-8c1b-7d3a-9f27-5e1a4c0b2d61"
	exampleRegion = "us-east-1"
	exampleHost   = "127.0.0.1:8080"
)

// Examples returns typical events for handlers. HTTP requests are as Hearth
// passes them on; what there is no HTTP request for is as AWS Lambda gets it or as
// its standard says. Errors: CodeInvalid for a method or path that makes no sense.
func Examples(o ExampleOptions) ([]Example, error) {
	o.Function = cmp.Or(o.Function, "hello")
	get, err := exampleHTTP(o, nil)
	if err != nil {
		return nil, err
	}
	hook := o
	if hook.Body == nil {
		hook.Body = []byte(`{"action":"opened","number":7,"repository":{"full_name":"example/shop"},"sender":{"login":"ada"}}`)
	}
	mac := hmac.New(sha256.New, []byte(ExampleSecret))
	mac.Write(hook.Body)
	post, err := exampleHTTP(hook, map[string]string{
		"user-agent": "GitHub-Hookshot/1", "x-github-delivery": exampleID, "x-github-event": "pull_request",
		"x-hub-signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	})
	if err != nil {
		return nil, err
	}
	at := o.Time.UTC().Truncate(time.Second)
	return []Example{
		{"http", "an HTTP request", get},
		{"webhook", "a webhook: a POST request, signed with the secret " + ExampleSecret + " as GitHub does", post},
		{"schedule", "a schedule, in the form of Amazon EventBridge", NewScheduleEvent(exampleID, o.Function, "nightly", at, false)},
		{"queue", "two messages of a queue, as Amazon SQS sends them", exampleQueue(o.Function, at)},
		{"cloudevent", "an event in the JSON format of CloudEvents", CloudEvent{
			SpecVersion: "1.0", ID: exampleID, Source: "/shop/orders", Type: "com.example.order.created", Subject: "7",
			Time: at, DataContentType: "application/json", Data: map[string]any{"order": 7, "total": 12.5},
		}},
	}, nil
}

// exampleHTTP makes an HTTP request below /fn. It has what package gateway gives
// the handler, which its tests check.
func exampleHTTP(o ExampleOptions, headers map[string]string) (HTTPEvent, error) {
	method := cmp.Or(o.Method, "GET")
	if o.Method == "" && o.Body != nil {
		method = "POST"
	}
	if !methodRE.MatchString(method) {
		return HTTPEvent{}, Errorf(CodeInvalid, "the method %q is not valid", clip(method)).WithHint("write it in capital letters, for example POST")
	}
	u, err := url.ParseRequestURI(cmp.Or(o.Path, "/"))
	if err != nil || !strings.HasPrefix(o.Path, "/") && o.Path != "" {
		return HTTPEvent{}, Errorf(CodeInvalid, "the path %q is not valid", clip(o.Path)).WithHint("write for example /hello?name=Ada")
	}
	e := HTTPEvent{
		Version: "2.0", RouteKey: "$default", RawPath: u.Path, RawQueryString: u.RawQuery,
		Headers: map[string]string{
			"accept": "*/*", "host": exampleHost, "user-agent": "curl/8.14.1",
			"traceparent":     "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"x-forwarded-for": "127.0.0.1", "x-forwarded-host": exampleHost,
			"x-forwarded-prefix": "/fn/" + o.Function, "x-forwarded-proto": "http",
		},
	}
	if u.RawQuery != "" {
		e.QueryStringParameters = map[string]string{}
		for k, v := range u.Query() {
			e.QueryStringParameters[k] = strings.Join(v, ",")
		}
	}
	if len(o.Body) > 0 {
		kind := "application/json"
		switch {
		case json.Valid(o.Body):
			e.Body = string(o.Body)
		case utf8.Valid(o.Body):
			kind, e.Body = "text/plain; charset=utf-8", string(o.Body)
		default:
			kind, e.Body, e.IsBase64Encoded = "application/octet-stream", base64.StdEncoding.EncodeToString(o.Body), true
		}
		e.Headers["content-type"], e.Headers["content-length"] = kind, strconv.Itoa(len(o.Body))
	}
	for k, v := range headers {
		e.Headers[k] = v
	}
	at := o.Time.UTC()
	e.RequestContext = HTTPRequestContext{
		AccountID: "hearth", APIID: o.Function, DomainName: exampleHost, RequestID: exampleID,
		RouteKey: e.RouteKey, Stage: "$default", Time: at.Format("02/Jan/2006:15:04:05 -0700"), TimeEpoch: at.UnixMilli(),
		HTTP: HTTPDescription{Method: method, Path: e.RawPath, Protocol: "HTTP/1.1", SourceIP: "127.0.0.1", UserAgent: e.Headers["user-agent"]},
	}
	return e, nil
}

func exampleQueue(queue string, at time.Time) QueueEvent {
	messages := []AsyncEntry{
		{AsyncCall: AsyncCall{ID: "059f36b4-87a3-44ab-83d2-661975830a7d", AcceptedAt: at}, AsyncPayload: AsyncPayload{Body: []byte(`{"order":7}`)}},
		{AsyncCall: AsyncCall{ID: "2e1424d4-f796-459a-8184-9c92662be6da", AcceptedAt: at}, AsyncPayload: AsyncPayload{Body: []byte(`{"order":8}`)}},
	}
	return NewQueueEvent(queue, messages)
}

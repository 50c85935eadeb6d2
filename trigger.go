package hearth

import (
	"crypto/md5" //nolint:gosec // what SQS calls md5OfBody; nothing depends on it
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// QueueTrigger calls a function with batches of the messages of a queue. They are
// retried as Async says.
type QueueTrigger struct {
	// BatchSize is how many messages a call gets at most; default DefaultBatch.
	BatchSize int `json:"batch_size,omitempty" yaml:"batch_size,omitempty" minimum:"1" maximum:"1000" doc:"How many messages a call gets at most; default 10" example:"10"`
	// BatchWindow is how long messages wait for others to come; default 0.
	BatchWindow Duration `json:"batch_window,omitempty" yaml:"batch_window,omitempty" doc:"How long messages wait for others, to make a full batch; default 0" example:"5s"`
	// Concurrency is how many batches are with the function at the same time; default
	// three quarters of its own.
	Concurrency int `json:"concurrency,omitempty" yaml:"concurrency,omitempty" minimum:"1" doc:"How many batches of the queue are with the function at the same time; default three quarters of its concurrency" example:"2"`
}

const (
	// DefaultBatch and MaxBatch are of QueueTrigger.BatchSize.
	DefaultBatch = 10
	MaxBatch     = 1000
	// MaxBatchBytes is how many bytes of messages a batch has, but for a single one.
	MaxBatchBytes = 6 << 20
	// MaxBatchWindow is of QueueTrigger.BatchWindow.
	MaxBatchWindow = 5 * time.Minute
	// MaxQueues bounds the queues that a function takes messages of.
	MaxQueues = 20
	// MaxQueueMessage bounds a message in bytes.
	MaxQueueMessage = 1 << 20
	// QueuePrefix begins the target of a queue, as of Destination: "queue:orders".
	// It is in the place of a function's name wherever calls have one.
	QueuePrefix = "queue:"
)

// KindQueue is a message of a queue and, of an invocation, a batch of them.
const KindQueue Kind = "queue"

// QueueTarget returns the target that stands for a queue.
func QueueTarget(queue string) string { return QueuePrefix + queue }

// QueueOf returns the name of the queue that a target stands for, "" if it is none.
func QueueOf(target string) string {
	name, _ := strings.CutPrefix(target, QueuePrefix)
	if name == target {
		return ""
	}
	return name
}

// ValidateQueueName checks the name of a queue. Errors: CodeInvalid.
func ValidateQueueName(name string) error {
	if scheduleRE.MatchString(name) {
		return nil
	}
	return Errorf(CodeInvalid, "queue name %q is not valid", clip(name)).
		WithHint("use at most 63 lower-case letters, digits, hyphens and underscores, starting with a letter")
}

func (c Config) validateQueues() error {
	if len(c.Queues) > MaxQueues {
		return Errorf(CodeInvalid, "%d queues are too many", len(c.Queues)).WithHint("use at most %d", MaxQueues)
	}
	for name, t := range c.Queues {
		if err := ValidateQueueName(name); err != nil {
			return err
		}
		bad := func(hint, format string, args ...any) error {
			return Errorf(CodeInvalid, "queues."+name+"."+format, args...).WithHint("%s", hint)
		}
		switch {
		case t.BatchSize < 0 || t.BatchSize > MaxBatch:
			return bad("choose between 1 and "+strconv.Itoa(MaxBatch), "batch_size %d is out of range", t.BatchSize)
		case t.BatchWindow < 0 || time.Duration(t.BatchWindow) > MaxBatchWindow:
			return bad("the longest is "+Duration(MaxBatchWindow).String(), "batch_window %s is out of range", t.BatchWindow)
		case t.Concurrency < 0 || t.Concurrency > c.Concurrency:
			return bad("choose between 1 and the function's concurrency, "+strconv.Itoa(c.Concurrency), "concurrency %d is out of range", t.Concurrency)
		}
	}
	return nil
}

// Queue is a queue of messages.
type Queue struct {
	Name string `json:"name" doc:"Name of the queue" example:"orders"`
	// Function takes its messages; empty if none does.
	Function string `json:"function,omitempty" doc:"Function that takes its messages; missing if none does" example:"invoice"`
	QueueCounts
}

// Message is to be put into a queue.
type Message struct {
	Body string
	// NotBefore is when it may be passed on; zero means now.
	NotBefore time.Time
	// DeduplicationKey and Trace are those of AsyncRequest.
	DeduplicationKey string
	Trace            Trace
}

// SentMessage is a message that is in a queue.
type SentMessage struct {
	ID string `json:"id" doc:"Id of the message"`
	// Duplicate tells that it was there before, under the same key.
	Duplicate bool `json:"duplicate,omitempty" doc:"It is the earlier message with the same key"`
}

// Validate checks the message. Errors: CodeInvalid.
func (m Message) Validate() error {
	switch {
	case m.Body == "":
		return Errorf(CodeInvalid, "the message is empty").WithHint("send text, for example JSON")
	case len(m.Body) > MaxQueueMessage:
		return Errorf(CodeInvalid, "the message has %s", Bytes(len(m.Body))).WithHint("send at most %s, or a link to the data", Bytes(MaxQueueMessage))
	case !utf8.ValidString(m.Body):
		return Errorf(CodeInvalid, "the message is not text in UTF-8").WithHint("encode what is no text, for example in base64")
	}
	return nil
}

// NewQueueEvent returns the event of a batch of messages.
func NewQueueEvent(queue string, messages []AsyncEntry) QueueEvent {
	e := QueueEvent{Records: make([]QueueRecord, len(messages))}
	for i, m := range messages {
		sum := md5.Sum(m.Body) //nolint:gosec // as above
		sent := strconv.FormatInt(m.AcceptedAt.UnixMilli(), 10)
		first := sent
		if len(m.Failures) > 0 {
			first = strconv.FormatInt(m.Failures[0].StartedAt.UnixMilli(), 10)
		}
		e.Records[i] = QueueRecord{
			MessageID: m.ID, ReceiptHandle: m.ID, Body: string(m.Body), MD5OfBody: hex.EncodeToString(sum[:]),
			Attributes: map[string]string{
				"ApproximateReceiveCount": strconv.Itoa(m.Attempts + 1), "SentTimestamp": sent,
				"ApproximateFirstReceiveTimestamp": first, "SenderId": "hearth",
			},
			MessageAttributes: map[string]QueueAttribute{}, EventSource: "aws:sqs",
			EventSourceARN: "arn:aws:sqs:local:hearth:" + queue, AWSRegion: "local",
		}
		if m.DeduplicationKey != "" {
			e.Records[i].Attributes["MessageDeduplicationId"] = m.DeduplicationKey
		}
	}
	return e
}

// BatchFailures reads what a function answered to a batch of messages with these ids:
// those that it could not handle. If it did not say so, none failed.
// Errors: CodeFunction for an answer of which it is not clear what it means; then the
// whole batch counts as failed, as with Amazon SQS.
func BatchFailures(answer []byte, ids []string) (failed map[string]bool, err error) {
	bad := func(format string, args ...any) error {
		e := Errorf(CodeFunction, "the answer to the batch is not clear: "+format, args...)
		e.Function = &FunctionError{Type: "Response.BatchItemFailures", Message: e.Message}
		return e.WithHint(`answer {"batchItemFailures": [{"itemIdentifier": "MESSAGE ID"}]}, or nothing if all were handled`)
	}
	if len(answer) > 0 && !json.Valid(answer) {
		return nil, bad("it is not JSON")
	}
	var a map[string]json.RawMessage
	if json.Unmarshal(answer, &a) != nil {
		return nil, nil // another value than an object
	}
	for key := range a {
		if key != "batchItemFailures" && strings.EqualFold(key, "batchItemFailures") {
			return nil, bad("%q is to be written batchItemFailures", key)
		}
	}
	if a["batchItemFailures"] == nil {
		return nil, nil
	}
	var items []struct {
		ID *string `json:"itemIdentifier"`
	}
	if err := json.Unmarshal(a["batchItemFailures"], &items); err != nil {
		return nil, bad("batchItemFailures is not a list of objects with an itemIdentifier")
	}
	known := map[string]bool{}
	for _, id := range ids {
		known[id] = true
	}
	failed = map[string]bool{}
	for _, item := range items {
		switch {
		case item.ID == nil || *item.ID == "":
			return nil, bad("one of batchItemFailures has no itemIdentifier")
		case !known[*item.ID]:
			return nil, bad("batchItemFailures has %q, which is no message of the batch", clip(*item.ID))
		}
		failed[*item.ID] = true
	}
	return failed, nil
}

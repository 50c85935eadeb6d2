package hearth

import (
	"mime"
	"strings"
)

// EventMode is how a request carries CloudEvents.
type EventMode int

const (
	// NoEvent: it carries none.
	NoEvent EventMode = iota
	// BinaryEvent: the attributes are headers, the data is the body.
	BinaryEvent
	// StructuredEvent: the body is an event in the JSON format.
	StructuredEvent
	// BatchedEvents: the body is an array of such events.
	BatchedEvents
)

// The media types of the JSON format of CloudEvents.
const (
	StructuredEventType = "application/cloudevents+json"
	BatchedEventsType   = "application/cloudevents-batch+json"
)

// EventModeOf tells how a request with these headers, in their canonical form, carries
// CloudEvents. Errors: CodeInvalid for a format of CloudEvents other than JSON.
func EventModeOf(h map[string][]string) (EventMode, error) {
	var media string
	if v := h["Content-Type"]; len(v) > 0 {
		media, _, _ = mime.ParseMediaType(v[0]) //nolint:errcheck // what is no media type is none of these
	}
	switch {
	case media == StructuredEventType:
		return StructuredEvent, nil
	case media == BatchedEventsType:
		return BatchedEvents, nil
	case strings.HasPrefix(media, "application/cloudevents"):
		return NoEvent, Errorf(CodeInvalid, "the CloudEvents format %q is not known", clip(media)).
			WithHint("send %s or %s, or the binary mode", StructuredEventType, BatchedEventsType)
	case len(h["Ce-Specversion"]) > 0:
		return BinaryEvent, nil
	}
	return NoEvent, nil
}

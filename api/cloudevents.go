package api

import (
	"net/http"
	"strings"

	"github.com/hearthrun/hearth"
)

// carriesEvents tells whether a request may carry CloudEvents. No page of another
// origin can send one without asking.
func carriesEvents(r *http.Request) bool {
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/invocations") {
		return false
	}
	mode, err := hearth.EventModeOf(r.Header)
	return mode != hearth.NoEvent || err != nil // events of a format that is not known are such
}

// eventOf returns the event of a call with this body, nil for null. A batch of
// CloudEvents it stores and answers itself; then done is true.
func (s *API) eventOf(w http.ResponseWriter, r *http.Request, body []byte) (event []byte, done bool, err error) {
	if !carriesEvents(r) {
		event, err = validEvent(body)
		return event, false, err
	}
	target := r.PathValue("name")
	events, batch, err := s.Acceptor.CloudEvents(target, r.Header, body)
	switch {
	case err != nil:
		return nil, false, err
	case batch:
		err := s.Acceptor.AcceptEvents(r.Context(), w, target, events, r.Header)
		return nil, err == nil, err
	case len(events) == 1:
		return events[0], false, nil
	}
	// The function takes none: it is an event like any other.
	if err := checkJSON(r); err != nil {
		return nil, false, withStatus(http.StatusUnsupportedMediaType, hearth.AsError(err).WithHint("set cloudevents: true in hearth.yaml to pass CloudEvents to the function"))
	}
	event, err = validEvent(body)
	return event, false, err
}

package hearth

import "errors"

// ErrKeyReused is the cause of an error of KeyReused, which is answered with 422.
var ErrKeyReused = errors.New("the key belongs to another request")

// KeyReused says that another request came with the same key, which is called what.
// Its code is CodeInvalid.
func KeyReused(what string) *Error {
	return &Error{
		Code: CodeInvalid, Message: "another request was sent with the same " + what,
		Hint: "use a new key for each request, and the same only to send it again", Err: ErrKeyReused,
	}
}

// KeptState is what is known of a call with an idempotency key.
type KeptState string

const (
	// KeptRunning: it runs.
	KeptRunning KeptState = "running"
	// KeptDone: its response is kept.
	KeptDone KeptState = "done"
	// KeptUnknown: it had begun, and its response is not known: the server ended
	// meanwhile, the response broke off, or it is too large to be kept.
	KeptUnknown KeptState = "unknown"
)

// KeptResponse is a call with an idempotency key and its response.
type KeptResponse struct {
	// Key is unique: whose it is and what the caller named it.
	Key      string
	Function string
	// Caller is whose room it takes, among all of the function.
	Caller string
	// Fingerprint tells requests apart that come with the same key.
	Fingerprint string
	State       KeptState
	// Status, Header and Body are the response in KeptDone.
	Status int
	Header map[string][]string
	Body   []byte
}

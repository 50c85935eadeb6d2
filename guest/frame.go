// Package guest is the protocol between the host and what runs inside a
// sandbox, and its host side. docs/guest-protocol.md specifies it; the guests
// themselves, one for each language, lie in the folders beside this file.
package guest

import (
	"encoding/binary"
	"fmt"
)

// frameType is the type of a frame; see docs/guest-protocol.md.
type frameType uint8

const (
	typeHello     frameType = 0x01
	typeInit      frameType = 0x02
	typeInvoke    frameType = 0x03
	typeData      frameType = 0x04
	typeEnd       frameType = 0x05
	typeCancel    frameType = 0x06
	typeShutdown  frameType = 0x08
	typeWindow    frameType = 0x09
	typeSnapshot  frameType = 0x0a
	typeRestored  frameType = 0x0b
	typeReady     frameType = 0x11
	typeInitError frameType = 0x12
	typeResponse  frameType = 0x13
	typeError     frameType = 0x14
	typeLog       frameType = 0x15
)

const (
	protocolVersion = 1
	headerSize      = 9
	maxPayload      = 1 << 20
	// chunkSize is the usual payload of a DATA frame.
	chunkSize = 64 << 10
	// windowSize is how much DATA a call may have under way in one direction.
	windowSize = 1 << 20
)

// header is the fixed part of a frame.
type header struct {
	length uint32
	typ    frameType
	stream uint32
}

// parseHeader decodes the header of a frame from the guest, and checks all
// that can be judged without knowing the calls.
func parseHeader(b []byte) (header, error) {
	h := header{
		length: binary.BigEndian.Uint32(b),
		typ:    frameType(b[4]),
		stream: binary.BigEndian.Uint32(b[5:]),
	}
	if h.length > maxPayload {
		return h, protocolErrorf("a frame of %d bytes is over the limit of %d", h.length, maxPayload)
	}
	switch h.typ {
	case typeReady, typeInitError:
		if h.stream != 0 {
			return h, protocolErrorf("frame type %#x on stream %d, want 0", uint8(h.typ), h.stream)
		}
	case typeData, typeEnd, typeResponse, typeError, typeWindow:
		if h.stream == 0 {
			return h, protocolErrorf("frame type %#x on stream 0", uint8(h.typ))
		}
		if h.typ == typeEnd && h.length != 0 {
			return h, protocolErrorf("an END with a payload")
		}
		if h.typ == typeWindow && h.length != 4 {
			return h, protocolErrorf("a WINDOW of %d bytes", h.length)
		}
	case typeLog:
		if h.length == 0 {
			return h, protocolErrorf("an empty LOG frame")
		}
	default: // also PONG: this host sends no PING
		return h, protocolErrorf("unexpected frame type %#x", uint8(h.typ))
	}
	return h, nil
}

func appendHeader(b []byte, t frameType, stream uint32, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = append(b, byte(t))
	return binary.BigEndian.AppendUint32(b, stream)
}

func appendFrame(b []byte, t frameType, stream uint32, payload []byte) []byte {
	return append(appendHeader(b, t, stream, len(payload)), payload...)
}

// protocolError is a violation of the protocol by the guest.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "guest protocol: " + e.what }

func protocolErrorf(format string, args ...any) error {
	return &protocolError{fmt.Sprintf(format, args...)}
}

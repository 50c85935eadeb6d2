package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	maxQueries   = 32 // under way at the same time for one sandbox
	queryTimeout = 3 * time.Second
	streamIdle   = 10 * time.Second
	maxUDPAnswer = 4096
)

// query is a name query of a sandbox, as far as it is passed on. The relay does
// not forward the sandbox's bytes: it sends a message of its own with the same
// question, so nothing but a plain query can reach the host's name server.
type query struct {
	id       uint16
	question dnsmessage.Question
	recurse  bool
	checkOff bool // CD: the client validates DNSSEC itself
	authData bool // AD: the client wants to know whether the server did
	edns     bool
	size     int // largest UDP answer
	dnssec   bool
}

var (
	errNotQuery = errors.New("not a name query")
	errBanned   = errors.New("a kind of query that is not passed on")
)

// Types of questions that the relay refuses: transfers of a whole zone.
const (
	typeIXFR dnsmessage.Type = 251
	typeAXFR dnsmessage.Type = 252
)

// parseQuery checks a message of a sandbox. With errBanned the query is filled
// in, so that it can be answered.
func parseQuery(msg []byte) (query, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return query{}, errNotQuery
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		return query{}, errNotQuery
	}
	q := query{
		id: h.ID, question: questions[0], recurse: h.RecursionDesired,
		checkOff: h.CheckingDisabled, authData: h.AuthenticData, size: 512,
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return query{}, errNotQuery
	}
	for n := 0; ; n++ {
		r, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil || n > 4 || p.SkipAdditional() != nil {
			return query{}, errNotQuery
		}
		if r.Type == dnsmessage.TypeOPT {
			q.edns, q.dnssec = true, r.DNSSECAllowed()
			q.size = min(max(int(r.Class), 512), maxUDPAnswer)
		}
	}
	t := q.question.Type
	if h.OpCode != 0 || q.question.Class != dnsmessage.ClassINET || t == typeAXFR || t == typeIXFR {
		return q, errBanned
	}
	return q, nil
}

// message returns the query as it is sent to the host's name server.
func (q query) message(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: id, RecursionDesired: q.recurse, CheckingDisabled: q.checkOff, AuthenticData: q.authData,
	})
	if err := errors.Join(b.StartQuestions(), b.Question(q.question)); err != nil {
		return nil, err
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		if err := errors.Join(h.SetEDNS0(q.size, dnsmessage.RCodeSuccess, q.dnssec), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{})); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// refusal returns an answer with code and without records.
func (q query) refusal(code dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.id, Response: true, RecursionDesired: q.recurse, RecursionAvailable: true, RCode: code,
	})
	if b.StartQuestions() != nil || b.Question(q.question) != nil {
		return nil
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// answers tells whether msg is the answer to the query that was sent with id.
func (q query) answers(msg []byte, id uint16) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) > 1 {
		return false
	}
	if len(questions) == 0 { // some servers do so when they fail
		return h.RCode != dnsmessage.RCodeSuccess
	}
	a, b := questions[0], q.question
	return a.Type == b.Type && a.Class == b.Class && strings.EqualFold(a.Name.String(), b.Name.String())
}

// resolve asks the host's name servers one after the other and returns the
// answer with the sandbox's own id. It always has an answer for a valid query;
// nil means that the message deserves none.
func (s *Stack) resolve(network string, msg []byte) []byte {
	q, err := parseQuery(msg)
	if errors.Is(err, errBanned) {
		return q.refusal(dnsmessage.RCodeRefused)
	}
	if err != nil {
		return nil
	}
	for _, server := range s.opts.Host.servers(time.Now()) {
		id := uint16(rand.Uint32())
		out, err := q.message(id)
		if err != nil {
			return nil
		}
		answer, err := s.exchange(network, server, out, func(m []byte) bool { return q.answers(m, id) })
		if s.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.opts.Log.Debug("a name server did not answer", "server", server, "err", err)
			continue
		}
		if network == "udp" && len(answer) > q.size {
			answer = q.refusal(dnsmessage.RCodeSuccess)
			answer[2] |= 0x02 // truncated: ask again by TCP
			return answer
		}
		binary.BigEndian.PutUint16(answer, q.id)
		return answer
	}
	return q.refusal(dnsmessage.RCodeServerFailure)
}

// exchange sends a query to one name server and waits for the answer.
func (s *Stack) exchange(network string, server netip.AddrPort, msg []byte, answers func([]byte) bool) ([]byte, error) {
	if !s.opts.Host.acquire() {
		return nil, errFull
	}
	defer s.opts.Host.release()
	ctx, cancel := context.WithTimeout(s.ctx, queryTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		if err := writeMessage(c, msg); err != nil {
			return nil, err
		}
		answer, err := readMessage(c)
		if err == nil && !answers(answer) {
			err = errors.New("the answer is for another question")
		}
		return answer, err
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDPAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n]) { // else a late or forged one
			return buf[:n], nil
		}
	}
}

// serveDNSPackets answers the queries of one UDP endpoint of the sandbox until
// it was idle for FlowIdle.
func (s *Stack) serveDNSPackets(guest *gonet.UDPConn) {
	defer guest.Close()
	defer context.AfterFunc(s.ctx, func() { _ = guest.SetDeadline(time.Unix(1, 0)) })()
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, 2048) // queries are short
	for s.ctx.Err() == nil {
		_ = guest.SetReadDeadline(time.Now().Add(s.opts.FlowIdle))
		n, err := guest.Read(buf)
		if err != nil {
			return
		}
		select {
		case s.dns <- struct{}{}:
		default:
			continue // like a lost packet; the sandbox asks again
		}
		msg := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer func() { <-s.dns }()
			if answer := s.resolve("udp", msg); answer != nil {
				_, _ = guest.Write(answer)
			}
		})
	}
}

// serveDNSStream answers the queries of one TCP connection, one after another.
func (s *Stack) serveDNSStream(guest *gonet.TCPConn) {
	for {
		_ = guest.SetDeadline(time.Now().Add(streamIdle))
		msg, err := readMessage(guest)
		if err != nil {
			return
		}
		select {
		case s.dns <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		answer := s.resolve("tcp", msg)
		<-s.dns
		if answer == nil {
			return
		}
		_ = guest.SetDeadline(time.Now().Add(streamIdle))
		if writeMessage(guest, answer) != nil {
			return
		}
	}
}

// readMessage reads a message of DNS over TCP: two bytes of length before it.
func readMessage(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return errors.New("the message is too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

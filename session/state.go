package session

import (
	"errors"
	"fmt"

	"sotto/internal/canon"
)

// stateVersion is the format of Marshal's bytes. They never leave the device (PROTOCOL A.9).
const stateVersion uint8 = 1

// ErrNewerState means that a newer program wrote the stored session.
var ErrNewerState = errors.New("stored session was written by a newer program")

// State flags.
const (
	stateInitiator uint8 = 1 << iota
	stateDue             // a sending step is due; else a sending chain is live
	stateReceiving       // a message was opened already
	stateInitial         // the initial header still precedes messages
)

// Sizes of the parts of a marshalled state.
const (
	stateFixed     = 2 + 16 + 32 + 16 + 4*32 + 64
	stateSending   = 8 + 64 + 32 + kemSeed + headerSize
	stateStep      = 12 + ekSize
	stateReceived  = 12 + 64 + 32
	stateClosed    = 12 + 32 + 32
	stateCountSize = 2
)

// Marshal returns the whole state, secrets included, as bytes for the caller's vault. It takes about a copy of 3 kB, of which
// most messages change only the first Head bytes.
func (s *Session) Marshal() []byte {
	size := stateFixed + stateSending + stateReceived + stateCountSize + len(s.closed)*stateClosed + 4 + len(s.initial)
	return s.Append(make([]byte, 0, size))
}

// Append appends the bytes of Marshal to dst.
func (s *Session) Append(dst []byte) []byte { return s.appendTail(s.appendHead(dst)) }

// appendHead appends what each message moves: the counters and the chain keys.
func (s *Session) appendHead(dst []byte) []byte {
	w := appender(append(dst, stateVersion, s.stateFlags()))
	if s.due != nil {
		w.u32(s.due.chain, s.due.pn, s.due.floor)
	} else {
		w.u32(s.send.chain, s.send.n)
		w.raw(s.send.ck[:])
	}
	if r := s.recv; r != nil {
		w.u32(r.chain, r.n, r.skipped)
		w.raw(r.ck[:])
	}
	return w
}

// appendTail appends what only a chain's begin or end moves, or a late message of an earlier chain.
func (s *Session) appendTail(dst []byte) []byte {
	w := appender(dst)
	w.raw(s.id[:], s.peerAccount[:], s.peerDevice[:], s.initiatorKey[:], s.initialDigest[:], s.ad[:], s.rk[:], s.nhks[:], s.nhkr[:])
	if s.send != nil {
		w.raw(s.send.hk[:], s.send.dh[:], s.send.kem[:])
	}
	if r := s.recv; r != nil {
		w.raw(r.hk[:], r.dh[:])
		w = append(w, byte(len(s.closed)>>8), byte(len(s.closed)))
		for i := range s.closed {
			c := &s.closed[i]
			w.u32(c.chain, c.length, c.skipped)
			w.raw(c.hk[:], c.dh[:])
		}
	}
	if s.Initial() {
		w = canon.AppendLP(w, s.initial)
	}
	if s.due != nil {
		return append(w, s.due.ek[:]...)
	}
	return append(w, s.send.header[:]...)
}

// Head is how many bytes at the beginning of Marshal's each message changes; most leave the rest as it was. A store that keeps
// the two apart writes a hundred bytes for a message instead of three thousand.
func (s *Session) Head() int {
	size := 2 + 8 + 32
	if s.due != nil {
		size = 2 + 12
	}
	if s.recv != nil {
		size += 12 + 32
	}
	return size
}

func (s *Session) stateFlags() uint8 {
	var f uint8
	if s.initiator {
		f |= stateInitiator
	}
	if s.due != nil {
		f |= stateDue
	}
	if s.recv != nil {
		f |= stateReceiving
	}
	if s.Initial() {
		f |= stateInitial
	}
	return f
}

// appender is a byte string that grows; canon.Writer would start one of its own.
type appender []byte

func (a *appender) raw(parts ...[]byte) {
	for _, p := range parts {
		*a = append(*a, p...)
	}
}

func (a *appender) u32(values ...uint32) {
	for _, v := range values {
		*a = append(*a, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
}

// Unmarshal reads the bytes of Marshal and refuses what no session can be.
func Unmarshal(b []byte) (*Session, error) {
	r := canon.NewReader(b)
	if v := r.U8(); r.Err() == nil && v != stateVersion {
		if v > stateVersion {
			return nil, fmt.Errorf("session state version %d: %w", v, ErrNewerState)
		}
		return nil, fmt.Errorf("session state version %d: %w", v, ErrDamagedState)
	}
	flags := r.U8()
	s := &Session{initiator: flags&stateInitiator != 0}
	if flags&stateDue != 0 {
		s.due = &step{chain: r.U32(), pn: r.U32(), floor: r.U32()}
	} else {
		s.send = &sending{chain: r.U32(), n: r.U32()}
		r.Copy(s.send.ck[:])
	}
	if flags&stateReceiving != 0 {
		s.recv = &receiving{chain: r.U32(), n: r.U32(), skipped: r.U32()}
		r.Copy(s.recv.ck[:])
	}
	for _, field := range [][]byte{
		s.id[:], s.peerAccount[:], s.peerDevice[:], s.initiatorKey[:], s.initialDigest[:], s.ad[:], s.rk[:], s.nhks[:], s.nhkr[:],
	} {
		r.Copy(field)
	}
	if c := s.send; c != nil {
		r.Copy(c.hk[:])
		r.Copy(c.dh[:])
		r.Copy(c.kem[:])
	}
	if c := s.recv; c != nil {
		r.Copy(c.hk[:])
		r.Copy(c.dh[:])
		s.closed = readClosed(r)
	}
	if flags&stateInitial != 0 {
		s.initial = append([]byte(nil), r.LP(MaxInitial)...)
	}
	if s.due != nil {
		r.Copy(s.due.ek[:])
	} else {
		r.Copy(s.send.header[:])
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("session state: %w: %w", ErrDamagedState, err)
	}
	if s.stateFlags() != flags || !s.plausible() {
		return nil, fmt.Errorf("session state contradicts itself: %w", ErrDamagedState)
	}
	return s, nil
}

func readClosed(r *canon.Reader) []closed {
	n := int(r.U16())
	if n*stateClosed > r.Len() {
		r.Fail(canon.ErrShort)
	}
	if r.Err() != nil || n == 0 {
		return nil
	}
	list := make([]closed, n)
	for i := range list {
		c := &list[i]
		c.chain, c.length, c.skipped = r.U32(), r.U32(), r.U32()
		r.Copy(c.hk[:])
		r.Copy(c.dh[:])
	}
	return list
}

// plausible checks what holds in every session, so that a damaged state is refused here and not half-way in a step.
func (s *Session) plausible() bool {
	if s.recv == nil {
		return s.initiator && s.Initial() && s.send != nil && s.send.chain == 0 && s.send.n <= MaxChain
	}
	if s.Initial() || s.recv.n == 0 || s.recv.n > MaxChain || s.recv.skipped >= s.recv.n || len(s.closed) > maxClosedTotal {
		return false
	}
	// The turns: see Session.
	next := s.recv.chain
	if s.initiator {
		next++
	}
	switch {
	case s.due != nil && (s.due.chain != next || s.due.floor > MaxJump || s.due.pn > MaxChain):
		return false
	case s.send != nil && (s.send.chain != next || s.send.n > MaxChain):
		return false
	}
	for i, c := range s.closed {
		if c.chain >= s.recv.chain || c.length > MaxChain || c.skipped >= max(c.length, 1) || (i > 0 && c.chain <= s.closed[i-1].chain) {
			return false
		}
	}
	return s.SkippedTotal() <= MaxSkipped
}

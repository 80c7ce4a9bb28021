// Package session is end-to-end encryption between two devices: pure state in, pure state out, no disk, network or clock.
//
// A handshake (PROTOCOL 7) makes a Session from a contact's card; the double ratchet (PROTOCOL 8) moves it with every
// message; an item is what leaves the session and an envelope hides items from whoever stores them (PROTOCOL 10).
// Begin with Session and its two verbs, Encrypt and Decrypt. The caller commits the state in one transaction with what
// a verb returned, before anything is sent, shown or acknowledged.
package session

import (
	"errors"
	"fmt"
	"io"

	"sotto/identity"
)

// Suite is the only cipher suite so far: X25519 + ML-KEM-768, SHA-256, XChaCha20-Poly1305 (PROTOCOL 7.1).
const Suite uint8 = identity.Suite

// MinSuite is the lowest suite this program still accepts from a peer.
const MinSuite uint8 = 1

// Limits of a session (PROTOCOL 15). They are part of the protocol, not settings: both sides count on them.
const (
	MaxPayload     = 80 << 10 // bytes handed to Encrypt
	MaxInitial     = 8 << 10  // bytes of an initial header, its device list included
	MaxItem        = 96 << 10 // bytes of an item
	MaxJump        = 10_000   // positions a message may run ahead of the last one seen in its chain
	MaxSkipped     = 10_000   // skipped keys a session may have in store
	MaxChain       = 1 << 20  // messages in one chain
	MaxOpenChains  = 1024     // earlier receiving chains that still wait for a message
	RecentChains   = 8        // complete earlier chains still recognised, so that a repeat is called a repeat
	maxClosedTotal = MaxOpenChains + RecentChains
)

// Errors a caller branches on. All leave the session as it was, byte for byte.
var (
	// ErrNotOurs means that no header key of the session opens the message: try the next session.
	ErrNotOurs = errors.New("not a message of this session")
	// ErrDuplicate means that the position was opened before, or given up by ForgetSkipped.
	ErrDuplicate = errors.New("message position already used")
	// ErrTooFarAhead is a passing failure: too many messages are missing before this one; keep it and try again later.
	ErrTooFarAhead = errors.New("too many messages missing before this one, it must wait for them")
	// ErrBad means forged, damaged or against the protocol: these bytes will never open.
	ErrBad = errors.New("message is damaged or forged")
	// ErrUnknownKeys means that the handshake names prekeys which are not at hand (erased, expired, used, never ours).
	ErrUnknownKeys = errors.New("handshake names prekeys that this device does not hold")
	// ErrUnsupported means a version, kind or suite that this program does not speak or no longer accepts.
	ErrUnsupported = errors.New("needs another version of the program")
	// ErrTooLarge means that the payload or the items exceed what an item or envelope can carry.
	ErrTooLarge = errors.New("too large")
	// ErrChainFull means that the sending chain is used up without any answer: begin a new session.
	ErrChainFull = errors.New("sending chain is used up, the session must be begun anew")
	// ErrDamagedState means that stored session bytes cannot be a session.
	ErrDamagedState = errors.New("stored session is damaged")
)

// Key is 32 secret bytes; it does not print.
type Key [32]byte

// Format keeps the key out of error texts.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(secret)") }

// MarshalText keeps the key out of JSON and logs.
func (Key) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// Session is one end of an encrypted conversation between two devices. It is a value: Clone it, Marshal it, throw a
// copy away. Its methods are not safe for concurrent use.
//
// The two ends take turns in making chains: a side makes a new chain only for its first send after the peer's newest
// chain was seen. So both ends number each other's chains alike without any number on the wire: the initiator's chain
// c+1 answers the acceptor's chain c, which answers the initiator's chain c.
type Session struct {
	id           [16]byte
	peerAccount  identity.AccountID
	peerDevice   identity.DeviceID
	initiator    bool     // this end began the session
	initiatorKey [32]byte // IK of the end that began it
	ad           [32]byte // transcript hash T, bound into every message
	rk           Key

	initialDigest [32]byte // of the initial header that began the session

	nhks, nhkr Key // header keys of the next chain, sending and receiving

	send    *sending   // the live sending chain; nil while a sending step is due
	due     *step      // what the due step needs; exactly one of send and due is set
	recv    *receiving // the live receiving chain; nil until a message arrived
	closed  []closed   // earlier receiving chains, oldest first
	initial []byte     // initial header, precedes each message until an answer arrives (initiator only)
}

// sending is our newest chain.
type sending struct {
	chain, n uint32 // n: next position
	ck, hk   Key
	dh       Key              // X25519 private key announced in the header
	kem      [kemSeed]byte    // ML-KEM seed whose public half is announced in the header
	header   [headerSize]byte // plaintext of the chain's header; only N changes from message to message
}

// step is a sending step that waits for the next send (PROTOCOL 8.4). The old private keys are gone already.
type step struct {
	chain uint32       // number of the chain to come
	pn    uint32       // length of the chain before it
	floor uint32       // first position that may be used in it
	ek    [ekSize]byte // the peer's ML-KEM key, used once
}

// receiving is the peer's newest chain.
type receiving struct {
	chain, n uint32 // n: next position expected
	skipped  uint32 // keys of this chain in the caller's store
	ck, hk   Key
	dh       [32]byte // the peer's X25519 public key
}

// closed is what remains of an earlier receiving chain: enough to know its messages again.
type closed struct {
	chain   uint32
	length  uint32
	skipped uint32
	hk      Key
	dh      [32]byte
}

// ID names the session; it is the same at both ends, and the key of the replay cache (PROTOCOL 7.5).
func (s *Session) ID() [16]byte { return s.id }

// Peer returns whom the session speaks with.
func (s *Session) Peer() (identity.AccountID, identity.DeviceID) { return s.peerAccount, s.peerDevice }

// Initial reports whether messages still carry the initial header, that is, no answer was opened yet.
func (s *Session) Initial() bool { return len(s.initial) > 0 }

// Clone returns an independent copy.
func (s *Session) Clone() *Session {
	c := *s
	if s.send != nil {
		send := *s.send
		c.send = &send
	}
	if s.due != nil {
		due := *s.due
		c.due = &due
	}
	if s.recv != nil {
		recv := *s.recv
		c.recv = &recv
	}
	c.closed = append([]closed(nil), s.closed...)
	c.initial = append([]byte(nil), s.initial...)
	return &c
}

// Format prints the session's id and nothing else, whatever the verb.
func (s Session) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "session %x", s.id[:4]) }

// Skipped finds keys of messages that were passed over, in the caller's store.
type Skipped interface {
	// Find returns the key stored for a position of one of the peer's chains; ok is false when there is none.
	Find(chain, n uint32) (key [32]byte, ok bool, err error)
}

// SkippedKey opens a message that has not arrived yet; the caller stores it in the transaction of the session.
type SkippedKey struct {
	Chain, N uint32
	Key      Key
}

// SkippedRef names a stored key.
type SkippedRef struct{ Chain, N uint32 }

// Opened is a decrypted message and the changes that its commit must make beside the session itself.
type Opened struct {
	Payload  []byte
	AckKey   Key          // makes the acknowledgement, see Ack
	Chain, N uint32       // position; Chain is the sender's own number
	Store    []SkippedKey // to be stored
	Used     *SkippedRef  // to be deleted from the store

	Ended      *Heading // of our sending chain that the message ended, nil when it ended none; kept while items of it wait
	EndedChain uint32
}

// Sealed is an encrypted message ready to be kept and sent. The same bytes are sent however often.
type Sealed struct {
	Item     []byte
	AckKey   Key // checks the acknowledgement, see Ack
	Chain, N uint32
}

// SkippedTotal returns how many skipped keys the session counts in the caller's store.
func (s *Session) SkippedTotal() int {
	var total uint32
	if s.recv != nil {
		total = s.recv.skipped
	}
	for i := range s.closed {
		total += s.closed[i].skipped
	}
	return int(total)
}

// SkippedChains lists the peer's chains of which the session counts skipped keys in the caller's store.
func (s *Session) SkippedChains() (chains []uint32) {
	for i := range s.closed {
		if s.closed[i].skipped > 0 {
			chains = append(chains, s.closed[i].chain)
		}
	}
	if s.recv != nil && s.recv.skipped > 0 {
		chains = append(chains, s.recv.chain)
	}
	return chains
}

// ForgetSkipped takes note that the caller deleted count stored keys of a chain without using them: expired, or named
// by a void field as positions that will never come.
func (s *Session) ForgetSkipped(chain uint32, count int) {
	if s.recv != nil && s.recv.chain == chain {
		s.recv.skipped = less(s.recv.skipped, count)
		return
	}
	for i := range s.closed {
		if s.closed[i].chain == chain {
			s.closed[i].skipped = less(s.closed[i].skipped, count)
		}
	}
	s.closed = prune(s.closed)
}

func less(have uint32, count int) uint32 {
	if count <= 0 {
		return have
	}
	if uint64(count) >= uint64(have) {
		return 0
	}
	return have - uint32(count)
}

// prune forgets complete chains except the newest few. It works in place.
func prune(list []closed) []closed {
	kept := list[:0]
	for i, c := range list {
		if c.skipped > 0 || len(list)-i <= RecentChains {
			kept = append(kept, c)
		}
	}
	clear(list[len(kept):])
	return kept
}

// openChains counts the earlier chains that still wait for a message.
func openChains(list []closed) int {
	n := 0
	for i := range list {
		if list[i].skipped > 0 {
			n++
		}
	}
	return n
}

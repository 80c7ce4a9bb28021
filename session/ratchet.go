package session

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Out: Encrypt → (sendStep, when due) → header under the chain's header key → body under the message key.
// In:  Decrypt → which header key opens the header? → openCurrent | openNext | openEarlier → body → commit.

// Layout of a ratchet message (PROTOCOL 8.2): eh || c || box(k, payload).
const (
	offDH      = 1
	offPN      = offDH + pointSize
	offN       = offPN + 4
	offEK      = offN + 4
	offCT      = offEK + ekSize
	headerSize = offCT + ctSize // 2313
	ehSize     = headerSize + boxSize
	commitSize = 32
	bodyOffset = ehSize + commitSize

	// MessageOverhead is what a ratchet message adds to its payload.
	MessageOverhead = bodyOffset + boxSize // 2425
)

// Header flags: whether the chain was made with an ML-KEM ciphertext.
const (
	flagFirst byte = 0 // the initiator's first chain only
	flagKEM   byte = 1
)

// NextSend tells the position that the next Encrypt will use, so that the caller can reserve it in the send floor
// before that.
func (s *Session) NextSend() (chain, n uint32) {
	if s.due != nil {
		return s.due.chain, s.due.floor
	}
	return s.send.chain, s.send.n
}

// SkipTo makes n the next position of the chain that NextSend names, so that positions which an unclean stop may have
// spent are never used again. A lower n changes nothing.
func (s *Session) SkipTo(n uint32) error {
	_, next := s.NextSend()
	switch {
	case n <= next:
		return nil
	case n-next > MaxJump || n > MaxChain || (s.due != nil && n > MaxJump): // no receiver would follow
		return fmt.Errorf("skip from position %d to %d: %w", next, n, ErrChainFull)
	case s.due != nil:
		s.due.floor = n
	default:
		s.send.skipTo(n)
	}
	return nil
}

func (c *sending) skipTo(n uint32) {
	for ; c.n < n; c.n++ {
		c.ck = prf(&c.ck, 2)
	}
}

// Encrypt makes the payload an item. The session moves on only when there is no error; it must be durable before the
// item leaves.
func (s *Session) Encrypt(payload []byte, rand io.Reader) (Sealed, error) {
	if len(payload) > MaxPayload {
		return Sealed{}, fmt.Errorf("encrypt %d bytes, at most %d: %w", len(payload), MaxPayload, ErrTooLarge)
	}
	moved := s
	if s.due != nil {
		next := *s
		if err := next.sendStep(rand); err != nil {
			return Sealed{}, fmt.Errorf("sending step: %w", err)
		}
		moved = &next
	}
	c := moved.send
	if c.n >= MaxChain {
		return Sealed{}, fmt.Errorf("encrypt: %w", ErrChainFull)
	}
	var nonces [2 * nonceSize]byte
	if _, err := io.ReadFull(rand, nonces[:]); err != nil {
		return Sealed{}, fmt.Errorf("draw nonces: %w", err)
	}
	mk := prf(&c.ck, 1)
	out := Sealed{
		Item:   c.seal(moved.appendKind(make([]byte, 0, moved.itemSize(len(payload)))), &mk, &s.ad, payload, &nonces),
		AckKey: ackKey(&mk),
		Chain:  c.chain,
		N:      c.n,
	}
	c.ck = prf(&c.ck, 2)
	c.n++
	*s = *moved
	return out, nil
}

// sendStep makes a new chain: fresh X25519 and ML-KEM pairs, and a ciphertext to the peer's newest ML-KEM key
// (PROTOCOL 8.4).
func (s *Session) sendStep(rand io.Reader) error {
	dh, public, err := newPoint(rand)
	if err != nil {
		return err
	}
	kem, ek, err := newKEM(rand)
	if err != nil {
		return err
	}
	ss, ct, err := encapsulate(s.due.ek[:], rand)
	if err != nil {
		return err
	}
	shared, err := x25519(&dh, &s.recv.dh)
	if err != nil {
		return err
	}
	c := &sending{chain: s.due.chain, hk: s.nhks, dh: dh, kem: kem}
	th := sum([]byte{flagKEM}, public[:], s.recv.dh[:], s.due.ek[:], ct)
	s.rk, c.ck, s.nhks = rootStep(&s.rk, shared, ss, &th)
	c.fillHeader(flagKEM, &public, s.due.pn, ek, ct)
	c.skipTo(s.due.floor)
	s.send, s.due = c, nil
	return nil
}

// rootStep is KDF_RK (PROTOCOL 8.3): a root key, a chain key and the header key of the chain after next.
func rootStep(rk *Key, dh, ss []byte, th *[32]byte) (root, ck, nhk Key) {
	ikm := append(append(make([]byte, 0, len(dh)+len(ss)), dh...), ss...)
	root, ck, nhk = derive3(rk[:], ikm, "sotto/v1 rk"+string(th[:]))
	clear(ikm)
	clear(dh)
	clear(ss)
	return root, ck, nhk
}

func (c *sending) fillHeader(flag byte, public *[32]byte, pn uint32, ek, ct []byte) {
	c.header[0] = flag
	copy(c.header[offDH:], public[:])
	binary.BigEndian.PutUint32(c.header[offPN:], pn)
	copy(c.header[offEK:offCT], ek)
	copy(c.header[offCT:], ct)
}

// public is the X25519 key that the chain announces.
func (c *sending) public() (p [32]byte) {
	copy(p[:], c.header[offDH:])
	return p
}

// seal appends the ratchet message to dst.
func (c *sending) seal(dst []byte, mk *Key, ad *[32]byte, payload []byte, nonces *[2 * nonceSize]byte) []byte {
	start := len(dst)
	header := c.header // N stays 0 in the chain's own, so that it is the same for all its life
	binary.BigEndian.PutUint32(header[offN:], c.n)
	dst = append(dst, nonces[:nonceSize]...)
	dst = aead(c.hk[:]).Seal(dst, nonces[:nonceSize], header[:], ad[:])
	keys := expand(mk, "sotto/v1 msg", 64)
	dst = append(dst, keys[32:]...)
	full := bodyAD(ad, dst[start:])
	dst = append(dst, nonces[nonceSize:]...)
	dst = aead(keys[:32]).Seal(dst, nonces[nonceSize:], payload, full[:])
	clear(keys)
	return dst
}

// bodyAD is T || eh || c, what the body is bound to.
func bodyAD(ad *[32]byte, headAndCommitment []byte) (full [32 + bodyOffset]byte) {
	copy(full[:], ad[:])
	copy(full[32:], headAndCommitment)
	return full
}

// header is an opened message header.
type header struct {
	plain [headerSize]byte
}

func (h *header) flag() byte            { return h.plain[0] }
func (h *header) pn() uint32            { return binary.BigEndian.Uint32(h.plain[offPN:]) }
func (h *header) n() uint32             { return binary.BigEndian.Uint32(h.plain[offN:]) }
func (h *header) ek() []byte            { return h.plain[offEK:offCT] }
func (h *header) ct() []byte            { return h.plain[offCT:] }
func (h *header) dh() (public [32]byte) { copy(public[:], h.plain[offDH:]); return public }

// open tries one header key on a message.
func (h *header) open(hk *Key, ad *[32]byte, message []byte) bool {
	_, err := aead(hk[:]).Open(h.plain[:0], message[:nonceSize], message[nonceSize:ehSize], ad[:])
	return err == nil
}

// openBody opens the payload with a message key, whose commitment must match first: without it one ciphertext could
// be made to open under two keys.
func openBody(mk *Key, ad *[32]byte, message []byte) ([]byte, error) {
	keys := expand(mk, "sotto/v1 msg", 64)
	defer clear(keys)
	if subtle.ConstantTimeCompare(keys[32:], message[ehSize:bodyOffset]) != 1 {
		return nil, fmt.Errorf("message body is under another key: %w", ErrBad)
	}
	full := bodyAD(ad, message[:bodyOffset])
	body := message[bodyOffset:]
	payload, err := aead(keys[:32]).Open(nil, body[:nonceSize], body[nonceSize:], full[:])
	if err != nil {
		return nil, fmt.Errorf("message body: %w", ErrBad)
	}
	return payload, nil
}

// Decrypt opens an item of the session. On any error the session is as before, byte for byte. skipped is asked only
// for positions that were passed over; nil stands for an empty store.
func (s *Session) Decrypt(it Item, skipped Skipped) (Opened, error) {
	message := it.Message
	if len(message) < MessageOverhead || len(message) > MaxItem {
		return Opened{}, fmt.Errorf("message of %d bytes: %w", len(message), ErrBad)
	}
	// The live chain first: an ordinary message costs one header opening.
	var h header
	if s.recv != nil && h.open(&s.recv.hk, &s.ad, message) {
		return s.openCurrent(&h, it, skipped)
	}
	if h.open(&s.nhkr, &s.ad, message) {
		return s.openNext(&h, it)
	}
	for i := len(s.closed) - 1; i >= 0; i-- {
		if h.open(&s.closed[i].hk, &s.ad, message) {
			return s.openEarlier(i, &h, it, skipped)
		}
	}
	return Opened{}, ErrNotOurs
}

// openCurrent opens a message of the live receiving chain.
func (s *Session) openCurrent(h *header, it Item, skipped Skipped) (Opened, error) {
	r := s.recv
	if err := s.sameChain(h, it.Initial, r.chain, &r.dh); err != nil {
		return Opened{}, err
	}
	if h.n() < r.n {
		out, err := s.openSkipped(r.chain, h.n(), it.Message, skipped)
		if err == nil {
			r.skipped = less(r.skipped, 1)
		}
		return out, err
	}
	ck := r.ck
	store, mk, err := s.walk(&ck, r.chain, r.n, h.n(), s.SkippedTotal())
	if err != nil {
		return Opened{}, err
	}
	payload, err := openBody(&mk, &s.ad, it.Message)
	if err != nil {
		return Opened{}, err
	}
	r.ck, r.n = ck, h.n()+1
	r.skipped += uint32(len(store))
	return Opened{Payload: payload, AckKey: ackKey(&mk), Chain: r.chain, N: h.n(), Store: store}, nil
}

// sameChain holds a message against the chain whose key opened its header. A different X25519 key there means that the
// peer lost its newest state and made the chain twice: no duplicate, but nothing that can be opened either.
func (s *Session) sameChain(h *header, in *Initial, chain uint32, dh *[32]byte) error {
	if got := h.dh(); got != *dh {
		return fmt.Errorf("chain %d was made twice: %w", chain, ErrBad)
	}
	return s.fitsChain(h, in, chain)
}

// fitsChain holds flag and initial header against the chain: both mark the initiator's first chain and no other. So
// the whole item is authenticated, not only its ratchet message.
func (s *Session) fitsChain(h *header, in *Initial, chain uint32) error {
	want := s.flagOf(chain)
	if h.flag() != want {
		return fmt.Errorf("header flag %d in chain %d: %w", h.flag(), chain, ErrBad)
	}
	if (in != nil) != (want == flagFirst) || (in != nil && in.digest != s.initialDigest) {
		return fmt.Errorf("initial header does not belong to the message: %w", ErrBad)
	}
	return nil
}

// flagOf is the only flag allowed in a chain of the peer's.
func (s *Session) flagOf(chain uint32) byte {
	if chain == 0 && !s.initiator {
		return flagFirst
	}
	return flagKEM
}

// openEarlier opens a message of a chain that is no longer live.
func (s *Session) openEarlier(i int, h *header, it Item, skipped Skipped) (Opened, error) {
	c := &s.closed[i]
	if err := s.sameChain(h, it.Initial, c.chain, &c.dh); err != nil {
		return Opened{}, err
	}
	if h.n() >= c.length {
		return Opened{}, fmt.Errorf("chain %d ended at %d, not %d: %w", c.chain, c.length, h.n(), ErrBad)
	}
	out, err := s.openSkipped(c.chain, h.n(), it.Message, skipped)
	if err == nil {
		c.skipped = less(c.skipped, 1)
		s.closed = prune(s.closed)
	}
	return out, err
}

// openSkipped opens a message with a key that was stored when it was passed over.
func (s *Session) openSkipped(chain, n uint32, message []byte, skipped Skipped) (Opened, error) {
	if skipped == nil {
		return Opened{}, fmt.Errorf("chain %d position %d: %w", chain, n, ErrDuplicate)
	}
	key, ok, err := skipped.Find(chain, n)
	if err != nil {
		return Opened{}, fmt.Errorf("find the key of chain %d position %d: %w", chain, n, err)
	}
	if !ok {
		return Opened{}, fmt.Errorf("chain %d position %d: %w", chain, n, ErrDuplicate)
	}
	mk := Key(key)
	payload, err := openBody(&mk, &s.ad, message)
	if err != nil {
		return Opened{}, err
	}
	return Opened{Payload: payload, AckKey: ackKey(&mk), Chain: chain, N: n, Used: &SkippedRef{Chain: chain, N: n}}, nil
}

// walk moves a chain key from position from to just after position to, and returns the keys passed over and the key
// of position to. stored counts the skipped keys that exist already.
func (s *Session) walk(ck *Key, chain, from, to uint32, stored int) (store []SkippedKey, mk Key, err error) {
	if to >= MaxChain {
		return nil, mk, fmt.Errorf("position %d is beyond the end of a chain: %w", to, ErrBad)
	}
	store, err = passOver(ck, chain, from, to, stored)
	if err != nil {
		return nil, mk, err
	}
	mk = prf(ck, 1)
	*ck = prf(ck, 2)
	return store, mk, nil
}

// passOver collects the keys of positions from ≤ n < to.
func passOver(ck *Key, chain, from, to uint32, stored int) ([]SkippedKey, error) {
	gap := int(to - from)
	if gap > MaxJump || (gap > 0 && stored+gap > MaxSkipped) {
		return nil, fmt.Errorf("chain %d from position %d to %d: %w", chain, from, to, ErrTooFarAhead)
	}
	if gap == 0 {
		return nil, nil
	}
	store := make([]SkippedKey, 0, gap)
	for n := from; n < to; n++ {
		store = append(store, SkippedKey{Chain: chain, N: n, Key: prf(ck, 1)})
		*ck = prf(ck, 2)
	}
	return store, nil
}

// openNext opens the first message seen of a new chain of the peer's.
func (s *Session) openNext(h *header, it Item) (Opened, error) {
	if s.send == nil {
		// We have not answered the live chain, so an honest peer cannot have begun another.
		return Opened{}, fmt.Errorf("new chain out of turn: %w", ErrBad)
	}
	public := s.send.public()
	dk, err := ecdh.X25519().NewPrivateKey(s.send.dh[:])
	if err != nil {
		return Opened{}, fmt.Errorf("own X25519 key: %w", err)
	}
	next := *s
	out, err := next.receiveStep(h, it, ownKeys{
		dh: dk, public: public, kem: s.send.kem[:], ek: s.send.header[offEK:offCT],
		chain: s.send.chain + 1, pn: s.send.n,
	})
	if err != nil {
		return Opened{}, err
	}
	out.Ended, _ = s.Heading(s.send.chain)
	out.EndedChain = s.send.chain
	*s = next
	return out, nil
}

// ownKeys is what the peer's new chain was made for, and where our next chain will stand.
type ownKeys struct {
	dh        *ecdh.PrivateKey
	public    [32]byte
	kem, ek   []byte // nil for the initiator's first chain
	chain, pn uint32
}

// receiveStep opens the first message seen of a new chain and makes that chain the live one (PROTOCOL 8.5). Our old
// private keys end here: the peer cannot need them again, and a thief of the state after this finds nothing for the
// chain to come. It works on a copy of the session; nothing that the original points to is written.
func (s *Session) receiveStep(h *header, it Item, own ownKeys) (Opened, error) {
	earlier, store, err := s.closeChain(h.pn())
	if err != nil {
		return Opened{}, err
	}
	r := &receiving{hk: s.nhkr, dh: h.dh()}
	if s.recv != nil {
		r.chain = s.recv.chain + 1
	}
	if err := s.fitsChain(h, it.Initial, r.chain); err != nil {
		return Opened{}, err
	}
	ss, err := openKEM(h, own)
	if err != nil {
		return Opened{}, err
	}
	shared, err := exchange(own.dh, &r.dh)
	if err != nil {
		return Opened{}, err
	}
	th := sum([]byte{h.flag()}, r.dh[:], own.public[:])
	if h.flag() == flagKEM {
		th = sum([]byte{h.flag()}, r.dh[:], own.public[:], own.ek, h.ct())
	}
	s.rk, r.ck, s.nhkr = rootStep(&s.rk, shared, ss, &th)
	stored := len(store) + s.SkippedTotal()
	more, mk, err := s.walk(&r.ck, r.chain, 0, h.n(), stored)
	if err != nil {
		return Opened{}, err
	}
	payload, err := openBody(&mk, &s.ad, it.Message)
	if err != nil {
		return Opened{}, err
	}
	r.n, r.skipped = h.n()+1, uint32(len(more))
	s.closed, s.recv = earlier, r
	s.due = &step{chain: own.chain, pn: own.pn}
	copy(s.due.ek[:], h.ek())
	s.send, s.initial = nil, nil
	return Opened{Payload: payload, AckKey: ackKey(&mk), Chain: r.chain, N: h.n(), Store: append(store, more...)}, nil
}

// closeChain returns what will remain of the receiving chains when a new one begins: pn is the length that the peer
// states for the live one, and the keys of what is still missing of it are passed over. The session is only read.
func (s *Session) closeChain(pn uint32) ([]closed, []SkippedKey, error) {
	if s.recv == nil {
		if pn != 0 {
			return nil, nil, fmt.Errorf("first chain names an earlier one: %w", ErrBad)
		}
		return nil, nil, nil
	}
	r := *s.recv
	if pn < r.n || pn > MaxChain {
		return nil, nil, fmt.Errorf("earlier chain of %d messages, seen %d: %w", pn, r.n, ErrBad)
	}
	store, err := passOver(&r.ck, r.chain, r.n, pn, s.SkippedTotal())
	if err != nil {
		return nil, nil, err
	}
	list := append(append(make([]closed, 0, len(s.closed)+1), s.closed...),
		closed{chain: r.chain, length: pn, skipped: r.skipped + uint32(len(store)), hk: r.hk, dh: r.dh})
	if openChains(list) > MaxOpenChains {
		return nil, nil, fmt.Errorf("%d chains wait for messages: %w", MaxOpenChains, ErrTooFarAhead)
	}
	return prune(list), store, nil
}

// openKEM checks the header's ML-KEM fields and opens the ciphertext.
func openKEM(h *header, own ownKeys) ([]byte, error) {
	if err := checkEncapsulationKey(h.ek()); err != nil {
		return nil, err
	}
	if h.flag() == flagKEM {
		return decapsulate(own.kem, h.ct())
	}
	var zero [ctSize]byte
	if subtle.ConstantTimeCompare(zero[:], h.ct()) != 1 {
		return nil, fmt.Errorf("ciphertext in a chain without one: %w", ErrBad)
	}
	return nil, nil
}

func ackKey(mk *Key) (k Key) {
	copy(k[:], expand(mk, "sotto/v1 ack", len(k)))
	return k
}

// Ack is the acknowledgement of an item (PROTOCOL 8.7): only who opened it can make it, so to its sender it is the
// delivered receipt. The receiver computes it from Opened.AckKey after its commit, the sender from Sealed.AckKey.
func Ack(ackKey [32]byte, item []byte) [16]byte {
	digest := sha256.Sum256(item)
	h := hmac.New(sha256.New, ackKey[:])
	h.Write(digest[:])
	return [16]byte(h.Sum(nil))
}

// Passing reports whether an error of this package may go away by itself, so that the message is worth keeping.
func Passing(err error) bool { return errors.Is(err, ErrTooFarAhead) }

package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Received is how far one device of the other side has come in a conversation.
type Received struct {
	N     uint64    `cbor:"1,keyasint"` // newest counter shown
	Hash  [32]byte  `cbor:"2,keyasint"`
	Holes []Hole    `cbor:"3,keyasint,omitempty"` // declared gaps
	Order uint64    `cbor:"4,keyasint,omitempty"` // Order of the newest row shown
	Held  []Held    `cbor:"5,keyasint,omitempty"` // rows that wait for the ones before them, by N
	Since time.Time `cbor:"6,keyasint,omitzero"`  // since when the first of them waits
}

// Hole is a run of counters that were missing when the message behind them was shown.
type Hole struct {
	From   uint64   `cbor:"1,keyasint"`
	To     uint64   `cbor:"2,keyasint"` // inclusive
	Before [16]byte `cbor:"3,keyasint"` // the message that says how many are missing
}

// Held is a row that is stored but not shown, because one before it has not come.
type Held struct {
	N  uint64   `cbor:"1,keyasint"`
	ID [16]byte `cbor:"2,keyasint"`
}

// Conversation is one talk with one account, or one group.
type Conversation struct {
	ID       [16]byte              `cbor:"1,keyasint"`
	Kind     string                `cbor:"2,keyasint,omitempty"`
	SendN    uint64                `cbor:"3,keyasint,omitempty"` // counter of our newest message
	SendHash [32]byte              `cbor:"4,keyasint"`
	Recv     map[[16]byte]Received `cbor:"5,keyasint,omitempty"`
	Clock    uint64                `cbor:"6,keyasint,omitempty"` // hybrid logical clock
	Unread   int                   `cbor:"7,keyasint,omitempty"`
	LastRead uint64                `cbor:"8,keyasint,omitempty"` // Order up to which the user has read
	Last     [16]byte              `cbor:"9,keyasint"`           // newest message
	LastAt   time.Time             `cbor:"10,keyasint,omitzero"`
	Account  [32]byte              `cbor:"11,keyasint"` // the contact, in a talk with one
	Extra    []byte                `cbor:"12,keyasint,omitempty"`

	// Kept by PutMessage and DeleteMessage, only read here: the damage check (reliability: count, newest row, hash over all rows).
	Count   uint64   `cbor:"-"`
	MaxN    uint64   `cbor:"-"`
	Running [32]byte `cbor:"-"`
}

// PutConversation writes a conversation; Count, MaxN and Running are the store's own and ignored.
func (tx *Tx) PutConversation(c Conversation) error { return put(tx, key(tConversation, c.ID[:]), c) }

// Conversation returns one conversation.
func (tx *Tx) Conversation(id [16]byte) (Conversation, error) {
	c, err := get[Conversation](tx, key(tConversation, id[:]))
	if err != nil {
		return c, err
	}
	err = tx.fillTally(&c)
	return c, err
}

// Conversations returns every conversation, in the order of their ids.
func (tx *Tx) Conversations() ([]Conversation, error) {
	list, err := all[Conversation](tx, key(tConversation))
	for i := range list {
		err = errors.Join(err, tx.fillTally(&list[i]))
	}
	return list, err
}

func (tx *Tx) fillTally(c *Conversation) error {
	sum, err := tx.tally(key(tTally, c.ID[:]))
	c.Count, c.MaxN, c.Running = sum.Count, sum.Last, sum.Sum
	return err
}

// Message is one row of a conversation. Where it stands is a small row of its own as soon as it changes: a receipt must not
// cost as much as the message.
type Message struct {
	ID      [16]byte  `cbor:"1,keyasint"`
	Conv    [16]byte  `cbor:"-"`          // in the row's name
	Seq     uint64    `cbor:"-"`          // in the row's name: row number in the conversation; 0 lets PutMessage give the next one
	Order   uint64    `cbor:"4,keyasint"` // hybrid logical clock: the place it is shown at
	From    [32]byte  `cbor:"5,keyasint"`
	Device  [16]byte  `cbor:"6,keyasint"`
	Out     bool      `cbor:"7,keyasint,omitempty"`
	N       uint64    `cbor:"8,keyasint,omitempty"` // the sender's counter
	SentAt  time.Time `cbor:"9,keyasint,omitzero"`
	At      time.Time `cbor:"10,keyasint,omitzero"` // when this store took it
	Kind    uint32    `cbor:"11,keyasint,omitempty"`
	Text    string    `cbor:"12,keyasint,omitempty"` // only if it is not the one in Raw
	Raw     []byte    `cbor:"13,keyasint,omitempty"` // the exact content bytes
	State   string    `cbor:"14,keyasint,omitempty"`
	Why     string    `cbor:"15,keyasint,omitempty"`
	ReplyTo [16]byte  `cbor:"16,keyasint,omitzero"`
	Gap     uint64    `cbor:"17,keyasint,omitempty"` // messages of this sender missing before it
	Hash    [32]byte  `cbor:"18,keyasint,omitzero"`
	Prev    [32]byte  `cbor:"19,keyasint,omitzero"`
	Expires time.Time `cbor:"20,keyasint,omitzero"`
	Changed time.Time `cbor:"21,keyasint,omitzero"` // last change of State
	Late    bool      `cbor:"22,keyasint,omitempty"`
	Extra   []byte    `cbor:"23,keyasint,omitempty"` // the messenger's own, opaque here
	Event   uint64    `cbor:"24,keyasint,omitempty"` // number of the event that announced it
	Held    bool      `cbor:"25,keyasint,omitempty"` // not shown yet: a message before it is missing
	Edited  bool      `cbor:"26,keyasint,omitempty"`
	Custody Holding   `cbor:"27,keyasint,omitzero"` // with State held
}

// Holding tells how many of the recipient's mailboxes keep a copy, and how long all of those will.
type Holding struct {
	By    int       `cbor:"1,keyasint,omitempty"`
	Of    int       `cbor:"2,keyasint,omitempty"`
	Until time.Time `cbor:"3,keyasint,omitzero"`
}

// status is what changes of a message when its recipient answers. The state of a message that has no such row is in its own.
type status struct {
	State   string    `cbor:"1,keyasint,omitempty"`
	Why     string    `cbor:"2,keyasint,omitempty"`
	Changed time.Time `cbor:"3,keyasint,omitzero"`
	Held    Holding   `cbor:"4,keyasint,omitzero"`
}

func (m *Message) status() status { return status{m.State, m.Why, m.Changed, m.Custody} }

// place says where a message is; Seq 0 means that it was here and is deleted.
type place struct {
	Conv [16]byte `cbor:"1,keyasint"`
	Seq  uint64   `cbor:"2,keyasint,omitempty"`
}

func statusKey(conv [16]byte, seq uint64) []byte { return key(tStatus, conv[:], u64(seq)) }

func messageKey(conv [16]byte, seq uint64) []byte { return key(tMessage, conv[:], u64(seq)) }

// orderKey is the place a row is shown at. Of two that were written at one moment the smaller id comes first, so that both
// sides show them alike.
func orderKey(m Message) []byte { return key(tOrder, m.Conv[:], u64(m.Order), m.ID[:8], u64(m.Seq)) }

// ordered names the row of an order key.
func ordered(k []byte) []byte { return key(tMessage, k[1:17], k[33:]) }

// PutMessage writes a message, with Seq 0 as a new row whose number is filled in. An id that was here before, deleted or
// in another conversation, is ErrExists: the permanent duplicate check.
func (tx *Tx) PutMessage(m *Message) error {
	at, err := get[place](tx, key(tMessageID, m.ID[:]))
	known, err := found(err)
	switch {
	case err != nil:
		return err
	case known && (m.Seq == 0 || at != place{m.Conv, m.Seq}):
		return fmt.Errorf("store: message m%x: %w", m.ID, ErrExists)
	case !known && m.Seq != 0:
		return fmt.Errorf("store: message m%x: %w", m.ID, ErrNotFound)
	case known:
		return tx.replaceMessage(*m)
	}
	return tx.appendMessage(m)
}

func (tx *Tx) appendMessage(m *Message) error {
	total, err := tx.tally(key(tTally, m.Conv[:]))
	if err != nil {
		return err
	}
	m.Seq = total.Last + 1
	plain, err := encMode.Marshal(*m)
	if err != nil {
		return fmt.Errorf("store: encode message: %w", err)
	}
	if err := tx.count1(tMessage, m.Conv, m.Seq, nil, plain); err != nil {
		return err
	}
	if err := put(tx, key(tMessageID, m.ID[:]), place{m.Conv, m.Seq}); err != nil {
		return err
	}
	if err := tx.putRaw(orderKey(*m), nil); err != nil {
		return err
	}
	return tx.putRaw(messageKey(m.Conv, m.Seq), plain)
}

func (tx *Tx) replaceMessage(m Message) error {
	k := messageKey(m.Conv, m.Seq)
	before, err := tx.getRaw(k)
	if err != nil {
		return tx.s.danglingIndex(k, err)
	}
	old, err := readMessage(k, before)
	if err != nil {
		return tx.s.damaged(k, err)
	}
	if err := tx.putStatus(old, m.status()); err != nil {
		return err
	}
	m.State, m.Why, m.Changed, m.Custody = old.State, old.Why, old.Changed, old.Custody
	plain, err := encMode.Marshal(m)
	if err != nil {
		return fmt.Errorf("store: encode message: %w", err)
	}
	if bytes.Equal(plain, before) {
		return nil
	}
	if err := tx.count1(tMessage, m.Conv, m.Seq, before, plain); err != nil {
		return err
	}
	if old.Order != m.Order {
		if err := tx.delete(orderKey(old)); err != nil {
			return err
		}
		if err := tx.putRaw(orderKey(m), nil); err != nil {
			return err
		}
	}
	return tx.putRaw(k, plain)
}

// putStatus writes where a message stands, unless it stood there already; row is the message as its own row has it.
func (tx *Tx) putStatus(row Message, now status) error {
	k := statusKey(row.Conv, row.Seq)
	before, err := tx.getRaw(k)
	known, err := found(err)
	if err != nil || !known && now == row.status() {
		return err
	}
	return tx.writeStatus(row.Conv, row.Seq, before, now)
}

func (tx *Tx) writeStatus(conv [16]byte, seq uint64, before []byte, now status) error {
	plain, err := encMode.Marshal(now)
	if err != nil {
		return fmt.Errorf("store: encode message state: %w", err)
	}
	if bytes.Equal(before, plain) {
		return nil
	}
	if err := tx.count1(tStatus, conv, seq, before, plain); err != nil {
		return err
	}
	return tx.putRaw(statusKey(conv, seq), plain)
}

// State tells where the message in a row stands and who keeps it, "" when that has not changed since it was written.
func (tx *Tx) State(conv [16]byte, seq uint64) (string, Holding, error) {
	now, err := get[status](tx, statusKey(conv, seq))
	_, err = found(err)
	return now.State, now.Held, err
}

// SetState writes where the message in a row stands, without touching the rest of it.
func (tx *Tx) SetState(conv [16]byte, seq uint64, state, why string, held Holding, changed time.Time) error {
	k := messageKey(conv, seq)
	if _, err := tx.getRaw(k); err != nil {
		return tx.s.danglingIndex(k, err)
	}
	before, err := tx.getRaw(statusKey(conv, seq))
	if _, err := found(err); err != nil {
		return err
	}
	return tx.writeStatus(conv, seq, before, status{state, why, changed, held})
}

// readMessage reads a message's own row.
func readMessage(k, plain []byte) (Message, error) {
	m := Message{Conv: [16]byte(k[1:17]), Seq: binary.BigEndian.Uint64(k[17:])}
	err := decode(plain, &m)
	return m, err
}

// Message returns a message by its id.
func (tx *Tx) Message(id [16]byte) (Message, error) {
	at, err := get[place](tx, key(tMessageID, id[:]))
	if err != nil {
		return Message{}, err
	}
	if at.Seq == 0 {
		return Message{}, ErrNotFound
	}
	return tx.messageAt(at)
}

func (tx *Tx) messageAt(at place) (Message, error) {
	k := messageKey(at.Conv, at.Seq)
	plain, err := tx.getRaw(k)
	if err != nil {
		return Message{}, tx.s.danglingIndex(k, err)
	}
	m, err := readMessage(k, plain)
	if err != nil {
		return m, tx.s.damaged(k, err)
	}
	now, err := get[status](tx, statusKey(at.Conv, at.Seq))
	known, err := found(err)
	if known {
		m.State, m.Why, m.Changed, m.Custody = now.State, now.Why, now.Changed, now.Held
	}
	return m, err
}

// HasMessage reports whether a message with the id was ever here; it stays true after deletion.
func (tx *Tx) HasMessage(id [16]byte) (bool, error) { return tx.has(key(tMessageID, id[:])) }

// DeleteMessage removes a message's row. Its id stays known, so that a copy that comes late is not shown again.
func (tx *Tx) DeleteMessage(id [16]byte) error {
	m, err := tx.Message(id)
	if ok, err := found(err); !ok {
		return err
	}
	k := messageKey(m.Conv, m.Seq)
	before, err := tx.getRaw(k)
	if err != nil {
		return err
	}
	if err := tx.count1(tMessage, m.Conv, m.Seq, before, nil); err != nil {
		return err
	}
	if state, err := tx.getRaw(statusKey(m.Conv, m.Seq)); err == nil {
		if err := tx.count1(tStatus, m.Conv, m.Seq, state, nil); err != nil {
			return err
		}
		if err := tx.delete(statusKey(m.Conv, m.Seq)); err != nil {
			return err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := put(tx, key(tMessageID, id[:]), place{Conv: m.Conv}); err != nil {
		return err
	}
	if err := tx.delete(orderKey(m)); err != nil {
		return err
	}
	return tx.delete(k)
}

// MessagesByPrefix returns the messages whose ids begin with the hex digits, at most limit (0 is 16).
func (tx *Tx) MessagesByPrefix(digits string, limit int) ([]Message, error) {
	if limit <= 0 {
		limit = 16
	}
	digits = strings.ToLower(digits)
	whole, err := hex.DecodeString(digits[:len(digits)&^1])
	if err != nil || len(digits) > 32 {
		return nil, fmt.Errorf("store: %q are not the first digits of a message id", digits)
	}
	var places []place
	err = tx.iterate(scan{prefix: key(tMessageID, whole)}, func(k, plain []byte) (bool, error) {
		if !strings.HasPrefix(hex.EncodeToString(k[1:]), digits) {
			return true, nil
		}
		var at place
		if err := decode(plain, &at); err != nil {
			return false, tx.s.damaged(k, err)
		}
		if at.Seq != 0 {
			places = append(places, at)
		}
		return len(places) < limit, nil
	})
	if err != nil {
		return nil, err
	}
	return tx.messagesAt(places)
}

func (tx *Tx) messagesAt(places []place) ([]Message, error) {
	list := make([]Message, 0, len(places))
	for _, at := range places {
		m, err := tx.messageAt(at)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// MessagesQuery chooses rows of a conversation.
type MessagesQuery struct {
	Limit  int       // at most so many, 0 is all
	Before *Message  // only rows shown before this one, nil is no bound
	After  uint64    // only rows with a greater Order; with After the oldest rows win the limit, without it the newest
	Since  time.Time // only rows taken at or after this moment
}

// staleRun is how many rows in a row must be older than Since before a search for newer ones ends: rows are ordered by the
// senders' clocks, not by when they came.
const staleRun = 256

// Messages returns rows of a conversation in their order, newest last.
func (tx *Tx) Messages(conv [16]byte, q MessagesQuery) ([]Message, error) {
	sc := scan{prefix: key(tOrder, conv[:]), keysOnly: true, reverse: q.After == 0}
	var before []byte
	if q.Before != nil {
		at := *q.Before
		at.Conv = conv
		before = orderKey(at)
	}
	switch {
	case q.After == ^uint64(0):
		return nil, nil
	case q.After > 0:
		sc.from = key(tOrder, conv[:], u64(q.After+1))
	case before != nil:
		sc.from = before
	}
	var list []Message
	stale := 0
	err := tx.iterate(sc, func(k, _ []byte) (bool, error) {
		if before != nil && bytes.Compare(k, before) >= 0 {
			return sc.reverse, nil
		}
		m, err := tx.messageAt(place{conv, binary.BigEndian.Uint64(k[33:])})
		if err != nil {
			return false, err
		}
		if m.At.Before(q.Since) {
			stale++
			return !sc.reverse || stale < staleRun, nil
		}
		stale = 0
		list = append(list, m)
		return q.Limit <= 0 || len(list) < q.Limit, nil
	})
	if sc.reverse {
		slices.Reverse(list)
	}
	return list, err
}

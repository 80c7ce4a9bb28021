package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// A message on its way out, up to the commit:
//  1. find the contact and check what may be sent to it;
//  2. number the content in its conversation and let news ride on it;
//  3. seal it with the session, or leave it unsealed until there is one;
//  4. row, outbox entry, ratchet step and send floor in one synced transaction; then it survives anything;
//  5. wake the outbox.

// Send accepts a text for one contact and returns once it is on disk. It waits for nothing else.
func (m *Messenger) Send(ctx context.Context, req SendRequest) (Message, error) {
	if err := checkText(req.Text); err != nil {
		return Message{}, err
	}
	var out Message
	err := m.update(ctx, func(tx *store.Tx) error {
		if sent, ok, err := m.sentBefore(tx, req.Key); err != nil || ok {
			out = sent
			return err
		}
		c, err := m.findContact(tx, req.To)
		if err != nil {
			return err
		}
		if err := maySend(c, req); err != nil {
			return err
		}
		content := &wire.Content{Kind: wire.KindText, Text: req.Text}
		if req.ReplyTo != "" {
			row, err := m.findMessage(tx, req.ReplyTo)
			if err != nil {
				return err
			}
			content.ReplyTo = row.ID
		}
		age := req.Expire
		if age <= 0 {
			age = m.limits.OutboxAge
		}
		if err := m.queue(tx, &c, content, m.clock.Now().Add(age)); err != nil {
			return err
		}
		if req.Key != "" {
			if err := tx.PutIdempotency(req.Key, content.ID); err != nil {
				return err
			}
		}
		row, err := tx.Message(content.ID)
		if err != nil {
			return err
		}
		out = viewMessage(row, c)
		return nil
	})
	return out, err
}

func checkText(text string) error {
	switch {
	case text == "":
		return refuse(CodeBadText, "Give a text, or - to read it from standard input.", "the message is empty")
	case !utf8.ValidString(text):
		return refuse(CodeBadText, "Send it as a file, or convert it to UTF-8 first.", "the text is not valid UTF-8")
	case len(text) > wire.MaxText:
		return refuse(CodeTooLarge, "Split it, or send it as a file.", "the text has %d bytes, at most %d fit one message", len(text), wire.MaxText)
	}
	return nil
}

// sentBefore finds the message that an idempotency key was used for.
func (m *Messenger) sentBefore(tx *store.Tx, key string) (Message, bool, error) {
	if key == "" {
		return Message{}, false, nil
	}
	id, err := tx.Idempotency(key)
	if errors.Is(err, store.ErrNotFound) {
		return Message{}, false, nil
	}
	if err != nil {
		return Message{}, false, err
	}
	msg, err := m.messageView(tx, id)
	return msg, err == nil, err
}

func maySend(c store.Contact, req SendRequest) error {
	switch {
	case c.State == ContactBlocked:
		return refuse(CodeBlocked, "Unblock first: sotto contacts unblock "+c.Name, "%s is blocked", c.Name)
	case c.State == ContactRequested:
		return refuse(CodeNotEstablished, "Accept first: sotto accept "+c.Name, "%s asked to be your contact and was not accepted yet", c.Name)
	case req.RequireVerified && c.Verified != VerifiedYes:
		return refuse(CodeNotVerified, "Compare with them: sotto verify "+c.Name, "%s is not verified", c.Name)
	}
	return nil
}

// queue numbers a content, writes its row when people see it, and puts it into the outbox. A zero expires means never.
func (m *Messenger) queue(tx *store.Tx, c *store.Contact, content *wire.Content, expires time.Time) error {
	now := m.clock.Now()
	conv, err := m.conversation(tx, *c)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(m.rand, content.ID[:]); err != nil {
		return fmt.Errorf("draw a message id: %w", err)
	}
	content.Device = [16]byte(m.current().device.ID())
	content.SentAt = now.UnixMilli()
	conv.Clock = tick(conv.Clock, now)
	content.Clock = conv.Clock
	shown := numbered(content.Kind)
	if shown {
		conv.SendN++
		content.N, content.Prev = conv.SendN, conv.SendHash
	}
	news, err := m.ride(tx, c, content)
	if err != nil {
		return err
	}
	raw, err := content.Marshal()
	if err != nil {
		return err
	}
	out := store.Outgoing{
		Account: c.Account, MsgID: content.ID, Control: !shown, Hello: content.Hello != nil, AcksOnly: content.AcksOnly() && len(content.Acks) > 0, Created: now, Expires: expires,
	}
	if !shown {
		out.Payload = raw // the others have a row that keeps it
	}
	if err := m.seal(tx, c, &out, raw); err != nil {
		return err
	}
	if shown {
		conv.SendHash = sha256.Sum256(raw)
		row, err := m.putSent(tx, conv, content, now)
		if err != nil {
			return err
		}
		out.Talk, out.Row = conv.ID, row.Seq
	}
	if err := putOutgoing(tx, &out); err != nil {
		return err
	}
	if news {
		if err := tx.PutContact(*c); err != nil {
			return err
		}
	}
	if err := tx.PutConversation(conv); err != nil {
		return err
	}
	acct := identity.AccountID(c.Account)
	tx.AfterCommit(func() { m.kick(acct) })
	return nil
}

func (m *Messenger) putSent(tx *store.Tx, conv store.Conversation, content *wire.Content, now time.Time) (store.Message, error) {
	seq, err := m.announce(tx, EventMessage, event{Message: content.ID})
	if err != nil {
		return store.Message{}, err
	}
	row := store.Message{
		ID: content.ID, Conv: conv.ID, Event: seq, Order: content.Clock, From: [32]byte(m.account.ID()), Device: content.Device,
		Out: true, N: content.N, SentAt: now, At: now, Kind: uint32(content.Kind), Raw: content.Raw,
		State: StateQueued, ReplyTo: content.ReplyTo,
	}
	return row, tx.PutMessage(&row)
}

// numbered kinds take a counter of the conversation, so that a missing one is noticed.
func numbered(k wire.Kind) bool {
	switch k {
	case wire.KindControl, wire.KindHello, wire.KindGroup:
		return false
	}
	return true
}

// countable reports whether a counter may stand in a numbered content; others have none. The bound keeps sums in range.
func countable(n uint64) bool { return 0 < n && n < 1<<62 }

// tick moves a hybrid logical clock: milliseconds of wall time in the upper 48 bits, never backwards.
func tick(clock uint64, now time.Time) uint64 {
	return max(clock+1, uint64(max(now.UnixMilli(), 0))<<16)
}

// untell has the next content carry all our news again: what carried them was given up, or the contact begins anew.
func untell(c *store.Contact) {
	c.ToldCard, c.ToldReach, c.ToldRecord, c.GrantsAgain = 0, 0, [32]byte{}, true
}

// ride puts on the content whatever the contact has not been told yet. The outbox keeps a content until it is delivered
// or given up (untell), so what rides once is told.
func (m *Messenger) ride(tx *store.Tx, c *store.Contact, content *wire.Content) (news bool, err error) {
	if !m.due(*c) {
		return false, nil
	}
	s := m.current()
	if s.cardN > c.ToldCard && content.Hello == nil { // a hello must fit the smallest envelope; its card follows
		content.Card, c.ToldCard = s.card, s.cardN
	}
	if seq, signed := m.signedReach(); seq > c.ToldReach {
		content.Reach, c.ToldReach = signed, seq
	}
	if keys := ownRecordKeys(s.device); c.ToldRecord != keys.Key && content.Hello == nil && content.RecordKeys == nil {
		content.RecordKeys, c.ToldRecord = &keys, keys.Key
	}
	for _, v := range c.Voids {
		content.Voids = append(content.Voids, wire.Void{Session: v.Session, Chain: v.Chain, From: v.From, To: v.To})
	}
	c.Voids = nil
	if content.Hello == nil {
		content.TokenGrants, err = m.grantsFor(tx, c)
	}
	return true, err
}

// due reports whether ride would put anything on a content for the contact.
func (m *Messenger) due(c store.Contact) bool {
	s := m.current()
	reach, _ := m.signedReach()
	return s.cardN > c.ToldCard || reach > c.ToldReach || c.ToldRecord != ownRecordKeys(s.device).Key || len(c.Voids) > 0 || c.GrantsDue
}

// tell queues a control content when there is something to ride on it.
func (m *Messenger) tell(tx *store.Tx, c *store.Contact) error {
	if !m.due(*c) {
		return nil
	}
	return m.queue(tx, c, &wire.Content{Kind: wire.KindControl}, time.Time{})
}

// seal encrypts an outbox entry with the contact's session. Without a session, and without a card to begin one, the
// entry stays unsealed and the outbox tries again. A sealed entry is never sealed anew under the same session.
func (m *Messenger) seal(tx *store.Tx, c *store.Contact, out *store.Outgoing, raw []byte) error {
	row, s, err := m.sendingSession(tx, c)
	if err != nil || s == nil {
		return err
	}
	chain, n := s.NextSend()
	if ahead, err := m.tooFarAhead(tx, c.Account, row.ID, chain, n); err != nil || ahead {
		return err
	}
	if err := tx.Reserve(row.ID, chain, n); errors.Is(err, store.ErrRolledBack) {
		return m.reset(tx, c, "the database is older than what was sent from it")
	} else if err != nil {
		return err
	}
	sealed, err := s.Encrypt(raw, m.rand)
	if errors.Is(err, session.ErrChainFull) {
		return m.archiveAll(tx, c) // the next try begins a new session
	}
	if err != nil {
		return fmt.Errorf("seal for %s: %w", identity.AccountID(c.Account).Short(), err)
	}
	out.Item, out.Short, out.Ack = sealed.Item, false, session.Ack(sealed.AckKey, sealed.Item)
	out.Session, out.Chain, out.N = row.ID, sealed.Chain, sealed.N
	_, device := s.Peer()
	out.Device = [16]byte(device)
	row.State, row.Head = s.Marshal(), s.Head()
	return tx.PutSession(row)
}

// tooFarAhead reports whether so many items of a chain wait for an answer that receivers would stop following it; what
// comes then is sealed in its turn.
func (m *Messenger) tooFarAhead(tx *store.Tx, acct [32]byte, session [16]byte, chain, n uint32) (bool, error) {
	at := position{session, chain}
	if int(n-m.unacked.floor(acct, at)) < m.limits.MaxUnacked {
		return false, nil
	}
	first, err := tx.Outgoings(acct, 1)
	if err != nil || len(first) == 0 {
		return false, err
	}
	out := first[0]
	if len(out.Item) == 0 {
		return true, nil
	}
	if (position{out.Session, out.Chain}) != at {
		return false, nil
	}
	m.unacked.raise(acct, at, out.N)
	return int(n-out.N) >= m.limits.MaxUnacked, nil
}

// unacked remembers for each recipient a position of its newest chain below which nothing waits any more: one that was
// settled never waits again. Without it each text of a long run would look for the first that waits.
type unacked struct {
	mu    sync.Mutex
	chain map[identity.AccountID]position
	n     map[identity.AccountID]uint32
}

// position is a chain of a session.
type position struct {
	session [16]byte
	chain   uint32
}

func newUnacked() *unacked {
	return &unacked{chain: map[identity.AccountID]position{}, n: map[identity.AccountID]uint32{}}
}

func (u *unacked) floor(acct identity.AccountID, at position) uint32 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.chain[acct] != at {
		return 0
	}
	return u.n[acct]
}

func (u *unacked) raise(acct identity.AccountID, at position, n uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chain[acct], u.n[acct] = at, n
}

// sendingSession is the one session to send on, begun from the contact's card if there is none; nil when it cannot be
// begun yet. Of two begun at the same moment both sides choose the one with the smaller initiator (PROTOCOL 8.8).
func (m *Messenger) sendingSession(tx *store.Tx, c *store.Contact) (store.Session, *session.Session, error) {
	acct := identity.AccountID(c.Account)
	if row, err := m.chosenSession(tx, acct); err == nil && !row.Archived {
		s, err := session.Unmarshal(row.State)
		return row, s, err
	}
	rows, err := tx.AccountSessions(c.Account)
	if err != nil {
		return store.Session{}, nil, err
	}
	var row store.Session
	var best *session.Session
	for _, r := range rows {
		if r.Archived {
			continue
		}
		s, err := session.Unmarshal(r.State)
		if err != nil {
			return store.Session{}, nil, fmt.Errorf("session with %s: %w", identity.AccountID(c.Account).Short(), err)
		}
		if best == nil || s.SmallerInitiator(best) {
			row, best = r, s
		}
	}
	if best != nil {
		m.choose(tx, acct, row.ID)
		return row, best, nil
	}
	return m.beginSession(tx, c, nil)
}

// chosenSession reads the session that was last chosen for a contact, without looking through all.
func (m *Messenger) chosenSession(tx *store.Tx, acct identity.AccountID) (store.Session, error) {
	m.mu.Lock()
	id, ok := m.chosen[acct]
	m.mu.Unlock()
	if !ok {
		return store.Session{}, store.ErrNotFound
	}
	return tx.Session(id)
}

// choose remembers a session for a contact; zeros forget it, as whenever its sessions change.
func (m *Messenger) choose(tx *store.Tx, acct identity.AccountID, id [16]byte) {
	tx.AfterCommit(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if id == [16]byte{} {
			delete(m.chosen, acct)
		} else {
			m.chosen[acct] = id
		}
	})
}

// beginSession starts a session from the contact's card; oneTime is the invite's prekey at first contact.
func (m *Messenger) beginSession(tx *store.Tx, c *store.Contact, oneTime *identity.Prekey) (store.Session, *session.Session, error) {
	if len(c.Card) == 0 {
		return store.Session{}, nil, nil
	}
	card, err := identity.ParseCard(c.Card)
	if err != nil {
		return store.Session{}, nil, fmt.Errorf("card of %s: %w", identity.AccountID(c.Account).Short(), err)
	}
	if err := card.CheckTime(m.now()); err != nil {
		m.log.Info("no session can be begun: the contact's card is out of date", "contact", card.Account().Short())
		return store.Session{}, nil, nil
	}
	s, err := session.Initiate(m.local(), card, oneTime, m.rand)
	if err != nil {
		return store.Session{}, nil, fmt.Errorf("begin a session with %s: %w", card.Account().Short(), err)
	}
	now := m.clock.Now()
	row := store.Session{ID: s.ID(), Account: c.Account, Device: [16]byte(card.Core.Device), State: s.Marshal(), Head: s.Head(), Created: now, LastUsed: now}
	m.choose(tx, card.Account(), [16]byte{})
	return row, s, tx.PutSession(row)
}

// update runs a transaction unless the context has ended already; once begun it is not given up.
func (m *Messenger) update(ctx context.Context, fn func(tx *store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.store.Update(fn)
}

package mailbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

// An envelope's way out: Watch tells that there is mail, Fetch hands it out as often as it is asked, Ack lets it go.

// tell wakes whoever waits for mail of the box; it is called with mu held.
func (b *box) tell() {
	for _, w := range b.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Watch returns a channel that says, once for any number of times, that a box may have new mail, or is gone. Watch first and fetch then,
// and nothing is missed.
func (q *Queue) Watch(id wire.BoxID) (news <-chan struct{}, stop func()) {
	w := make(chan struct{}, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.boxes[id]
	if b == nil {
		w <- struct{}{} // Fetch says why
		return w, func() {}
	}
	b.watchers = append(b.watchers, w)
	return w, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		b.watchers = slices.DeleteFunc(b.watchers, func(c chan struct{}) bool { return c == w })
	}
}

// Fetch returns the mail of a box above a number, in order: at most max and as much as a page holds, but one if there is one. Damaged
// envelopes are passed over and told of in Stats.
func (q *Queue) Fetch(id wire.BoxID, after uint64, most int) (wire.Page, error) {
	if most <= 0 || most > wire.MaxPage {
		most = wire.MaxPage
	}
	q.mu.Lock()
	b, err := q.box(id)
	if err == nil {
		err = q.enter()
	}
	if err != nil {
		q.mu.Unlock()
		return wire.Page{}, err
	}
	defer q.readers.Done()
	q.fetchedNow(b)
	q.mu.Unlock()
	for {
		page, last, err := q.fetchOnce(b, after, most)
		if err != nil || len(page.Mail) > 0 || !page.More {
			return page, err
		}
		after = last // nothing but damage in this one
	}
}

// fetchedNow marks the day for the box's quota and its life; the row follows with the next commit that touches the box.
func (q *Queue) fetchedNow(b *box) {
	now := q.now().Unix()
	today := uint16(now / daySeconds)
	if b.fetched == today {
		return
	}
	b.fetched = today
	b.row.Fetched, b.row.FetchedServed = now, q.served()
	// Nobody waits for it: if the process dies first, the next fetch says it again.
	_ = q.inbox.put(&op{bytes: opBytes, rows: opRows, do: func(t *batch) error {
		if !b.gone {
			t.boxes[b] = true
		}
		return nil
	}}, 0)
}

func (q *Queue) fetchOnce(b *box, after uint64, most int) (page wire.Page, last uint64, err error) {
	q.mu.Lock()
	list, more := b.page(after, most, uint32(q.now().Unix()))
	q.mu.Unlock()
	page.More = more
	for _, e := range list {
		last = e.seq
		mail, err := q.read(b, e)
		if err != nil {
			return wire.Page{}, 0, err
		}
		if mail != nil {
			page.Mail = append(page.Mail, *mail)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.failed; err != nil {
		return wire.Page{}, 0, fmt.Errorf("mailbox: fetch: %w", errStopped)
	}
	// What was acknowledged meanwhile was answered meanwhile: it may not follow that answer.
	page.Mail = slices.DeleteFunc(page.Mail, func(m wire.Mail) bool { _, there := b.find(m.ID); return !there })
	q.figures.fetched += uint64(len(page.Mail))
	return page, last, nil
}

// page chooses entries; it is called with mu held.
func (b *box) page(after uint64, most int, now uint32) (list []entry, more bool) {
	at, _ := slices.BinarySearchFunc(b.wait, after+1, func(e entry, seq uint64) int { return compare(e.seq, seq) })
	if after+1 == 0 {
		return nil, false
	}
	size := 0
	for _, e := range b.wait[at:] {
		if e.notBefore > now {
			continue
		}
		if len(list) == most || len(list) > 0 && size+e.size() > wire.MaxPageBytes {
			return list, true
		}
		list = append(list, e)
		size += e.size()
	}
	return list, false
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// find returns the entry of a number; it is called with mu held, or by the loop.
func (b *box) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(b.wait, seq, func(e entry, seq uint64) int { return compare(e.seq, seq) })
}

// read reads one envelope; it is nil when it is gone or damaged.
func (q *Queue) read(b *box, e entry) (*wire.Mail, error) {
	for {
		q.mu.Lock()
		at, there := b.find(e.seq)
		if !there {
			q.mu.Unlock()
			return nil, nil
		}
		e = b.wait[at]
		l := *q.lots[e.lot]
		q.mu.Unlock()
		mail, fault, err := q.readRows(b.id, l, e)
		if err != nil || mail != nil {
			return mail, err
		}
		q.mu.Lock()
		at, there = b.find(e.seq)
		moved := there && b.wait[at].lot != e.lot
		if there && !moved {
			q.note("an envelope of %d bytes, held until %s: %s", e.size(), dateOf(l.day), fault)
		}
		q.mu.Unlock()
		if !moved {
			return nil, nil
		}
	}
}

func (q *Queue) readRows(box wire.BoxID, l lot, e entry) (mail *wire.Mail, fault string, err error) {
	err = q.db.View(func(txn *badger.Txn) error {
		index, err := getRow(txn, indexKey(l.day, box, e.seq))
		if err != nil {
			return err
		}
		envelope, err := getRow(txn, envelopeKey(l.day, l.number, box, e.seq))
		if err != nil {
			return err
		}
		row, bad := parseIndex(index)
		switch {
		case bad != nil:
			fault = "its index row is gone or damaged"
		case envelope == nil:
			fault = "it is gone"
		case sha256.Sum256(envelope) != row.Hash || len(envelope) != e.size():
			fault = "its bytes changed"
		default:
			mail = &wire.Mail{ID: e.seq, Spent: row.Spent, Arrived: int64(row.Arrived) * 3600, Envelope: envelope}
		}
		return nil
	})
	return mail, fault, err
}

// Ack removes envelopes of a box for good and returns how many of the numbers were there.
func (q *Queue) Ack(ctx context.Context, id wire.BoxID, ids []uint64) (removed int, err error) {
	if len(ids) > wire.MaxAckBatch {
		return 0, fmt.Errorf("mailbox: ack: %d at once: %w", len(ids), wire.ErrRefused)
	}
	n := 0 // the op may outlive ctx
	err = q.writeUntil(ctx, &op{bytes: len(ids)*50 + opBytes, rows: len(ids) + opRows, do: func(b *batch) error {
		box, err := q.box(id)
		if err != nil {
			return err
		}
		n = q.ack(b, box, ids)
		return nil
	}})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (q *Queue) ack(b *batch, box *box, ids []uint64) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	gone := map[uint64]bool{}
	for _, seq := range ids {
		at, there := box.find(seq)
		if !there || gone[seq] {
			continue
		}
		gone[seq] = true
		e := box.wait[at]
		b.delete(indexKey(q.lots[e.lot].day, box.id, seq))
		q.forget(box, e)
	}
	if len(gone) == 0 {
		return 0
	}
	box.wait = slices.DeleteFunc(box.wait, func(e entry) bool { return gone[e.seq] })
	if len(box.wait) == 0 {
		box.wait = nil
	}
	if today := uint16(q.now().Unix() / daySeconds); box.fetched == today && box.row.Grown != today {
		box.row.Grown = today
		box.row.Bytes = max(box.row.Bytes, min(2*box.row.Bytes, q.limits.MaxBytes))
		box.row.Count = max(box.row.Count, min(2*box.row.Count, q.limits.MaxCount))
	}
	b.boxes[box] = true
	b.then = append(b.then, func() { q.figures.acked += uint64(len(gone)) })
	return len(gone)
}

// Envelope finds an envelope that waits by its hash, whether or not the owner may have it yet. When damage was found it does not say that
// one is absent until all promises from before have ended: that would be signed.
func (q *Queue) Envelope(id wire.BoxID, hash [32]byte) ([]byte, bool, error) {
	q.mu.Lock()
	if err := q.enter(); err != nil {
		q.mu.Unlock()
		return nil, false, err
	}
	defer q.readers.Done()
	b := q.boxes[id]
	var list []entry
	if b != nil {
		for _, e := range b.wait {
			if e.hash == be.Uint32(hash[:]) {
				list = append(list, e)
			}
		}
	}
	q.mu.Unlock()
	for _, e := range list {
		mail, err := q.read(b, e)
		if err != nil {
			return nil, false, err
		}
		if mail != nil && sha256.Sum256(mail.Envelope) == hash {
			return mail.Envelope, true, nil
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.damaged > 0 || q.now().Unix() < int64(q.state.Damaged)*daySeconds {
		return nil, false, fmt.Errorf("mailbox: prove: some of what was kept here is damaged: %w", wire.ErrLater)
	}
	return nil, false, nil
}

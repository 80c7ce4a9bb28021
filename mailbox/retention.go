package mailbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sotto/wire"
)

// What was promised is deleted by time alone only as a whole day, and only when two clocks agree that it is over (PROTOCOL 17.8). Nothing
// is ever deleted to make room.

const (
	upkeepTick = 5 * time.Second
	ticksLots  = 12  // lots of envelopes that are gone: a minute
	ticksDays  = 12  // days and boxes whose time is over
	ticksMark  = 120 // the time mark of a queue that writes nothing else: ten minutes

	stuckAfter    = 10 * time.Second
	backAtMost    = time.Minute    // that a clock may be set back
	aheadAtMost   = 24 * time.Hour // and ahead
	dropEvery     = 3600           // seconds between two days that go
	dropAtOnce    = 256 << 20      // bytes of envelopes dropped while deposits wait
	sweepAtOnce   = 2000           // rows
	boxesAtOnce   = 4000           // rows of boxes written by one op
	removeAtOnce  = 100            // boxes removed in a minute
	moveAtOnce    = 512 << 10      // bytes of envelopes moved by one op
	sparsePercent = 25             // of a lot that is alive: less is moved, so that the lot can go
)

// Why nothing is deleted by time.
const (
	pausedBack = 1 + iota
	pausedAhead
)

var pauses = map[uint8]string{
	pausedBack:  "the clock went back: nothing is deleted by time until somebody looked at it and said so",
	pausedAhead: "the clock jumped ahead by more than a day: nothing is deleted by time until somebody looked at it and said so",
}

// tick is what the clocks said last.
type tick struct {
	base int64 // seconds served before this start
	wall time.Time
	up   time.Duration
}

func dateOf(day uint16) string {
	return time.Unix(int64(day)*daySeconds, 0).UTC().Format(time.DateOnly)
}

// upkeepLoop does the upkeep until ctx ends. What a crash cut off comes first.
func (q *Queue) upkeepLoop(ctx context.Context) error {
	q.report("go on with what a crash cut off", q.resume(ctx))
	for n := 1; ; n++ {
		if err := q.cfg.Clock.Wait(ctx, upkeepTick); err != nil {
			q.report("write the time mark", q.setState(func(*stateRow) {}))
			return nil // the program ends
		}
		q.upkeep(ctx, n)
	}
}

func (q *Queue) report(what string, err error) {
	if err != nil && !errors.Is(err, errClosed) && !errors.Is(err, context.Canceled) {
		q.log.Warn("mailbox: could not "+what, "error", err)
	}
}

// upkeep is the n-th turn.
func (q *Queue) upkeep(ctx context.Context, n int) {
	q.report("note the clock", q.lookAtClock())
	q.tellDue()
	if n%ticksLots == 0 {
		q.report("free what is gone", q.freeLotsOf(ctx))
	}
	if n%ticksDays == 0 {
		q.report("drop a day", q.expireDay(ctx))
		q.report("remove old boxes", q.expireBoxes(ctx))
	}
	if n%ticksMark == 0 {
		q.report("write the time mark", q.setState(func(*stateRow) {}))
	}
}

func (q *Queue) resume(ctx context.Context) error {
	q.mu.Lock()
	closing := slices.Clone(q.closing)
	dropping := q.state.Dropping
	q.mu.Unlock()
	var errs []error
	for _, id := range closing {
		errs = append(errs, q.finishClosing(ctx, id))
	}
	if dropping != 0 {
		errs = append(errs, q.dropDay(ctx, dropping))
	}
	return errors.Join(errs...)
}

// lookAtClock stops all deletion by time when the wall clock moved in a way that the monotonic one did not.
func (q *Queue) lookAtClock() error {
	now, up := q.now(), q.cfg.Uptime()
	q.mu.Lock()
	moved := now.Sub(q.tick.wall) - (up - q.tick.up)
	q.tick.wall, q.tick.up = now, up
	paused := q.state.Paused
	stuck := q.figures.working && up-q.figures.since > stuckAfter
	q.figures.slow /= 2 // a queue that takes nothing would never hear that the disk is fast again
	q.mu.Unlock()
	if stuck {
		q.log.Error("mailbox: a commit hangs: the disk is stuck", "for", up-q.figures.since)
	}
	var why uint8
	switch {
	case moved < -backAtMost:
		why = pausedBack
	case moved > aheadAtMost:
		why = pausedAhead
	}
	if why == 0 || paused != 0 {
		return nil
	}
	q.log.Error("mailbox: "+pauses[why], "moved", moved)
	return q.setState(func(s *stateRow) { s.Paused = why })
}

// Resume lets deletion by time go on after somebody looked at the clock.
func (q *Queue) Resume() error { return q.setState(func(s *stateRow) { s.Paused = 0 }) }

// over reports whether a moment has passed by two clocks: the wall clock, and either the monotonic one since wall and served were noted
// together, or the others'.
func (q *Queue) over(at, wall, served int64) bool {
	now := q.now()
	if now.Unix() < at {
		return false
	}
	if q.served()-served >= at-wall {
		return true
	}
	offset, known := q.cfg.Offset()
	return known && now.Add(offset).Unix() >= at
}

// tellDue wakes watchers of boxes in which an envelope that was put off may be handed out now.
func (q *Queue) tellDue() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := uint32(q.now().Unix())
	for _, b := range q.boxes {
		if b.due == 0 || b.due > now {
			continue
		}
		b.findDue(now)
		b.tell()
	}
}

// findDue sets when the next envelope that was put off may go.
func (b *box) findDue(now uint32) {
	b.due = 0
	for _, e := range b.wait {
		if e.notBefore > now && (b.due == 0 || e.notBefore < b.due) {
			b.due = e.notBefore
		}
	}
}

// expireDay drops the oldest day if its time is over.
func (q *Queue) expireDay(ctx context.Context) error {
	q.mu.Lock()
	oldest := uint16(0)
	for n := range q.days {
		if oldest == 0 || n < oldest {
			oldest = n
		}
	}
	var row dayRow
	if oldest != 0 {
		row = q.days[oldest].row
	}
	state := q.state
	q.mu.Unlock()
	if state.Dropping != 0 { // an attempt failed
		return q.dropDay(ctx, state.Dropping)
	}
	switch {
	case oldest == 0 || state.Paused != 0:
		return nil
	case state.Dropped != 0 && q.served()-state.DroppedAt < dropEvery:
		return nil
	case !q.over(int64(oldest)*daySeconds, row.Wall, row.Served):
		return nil
	}
	return q.dropDay(ctx, oldest)
}

// dropDay removes all that ends with a day. Its mark in the state comes first and goes last: a start that finds it does not read the day,
// corrects the boxes' accounts by what it counts, and drops again.
func (q *Queue) dropDay(ctx context.Context, number uint16) error {
	var touched []*box
	err := q.writeUntil(ctx, &op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		b.wrote = true
		touched = q.forgetDay(number)
		return nil
	}})
	if err != nil {
		return err
	}
	q.log.Info("mailbox: a day is over", "held until", dateOf(number))
	if err := q.drop(ctx, [][]byte{dayPrefix(rowIndex, number)}); err != nil {
		return err
	}
	for _, some := range q.dayPrefixes(number) {
		if err := q.drop(ctx, some); err != nil {
			return err
		}
	}
	if err := q.sweepSpent(ctx, number); err != nil {
		return err
	}
	for some := range slices.Chunk(touched, boxesAtOnce) {
		if err := q.writeUntil(ctx, writeBoxes(some)); err != nil {
			return err
		}
	}
	return q.writeUntil(ctx, &op{bytes: 20 * len(q.lots), rows: len(q.lots) + opRows, do: func(b *batch) error {
		b.delete(dayPrefix(rowDay, number))
		q.mu.Lock()
		defer q.mu.Unlock()
		for at, l := range q.lots {
			if l != nil && l.day == number {
				b.delete(lotPrefix(rowLot, number, l.number))
				q.removeLot(uint16(at))
			}
		}
		delete(q.days, number)
		q.state.Dropping, q.state.Dropped, q.state.DroppedAt = 0, max(number, q.state.Dropped), q.served()
		return nil
	}})
}

// writeBoxes writes rows of boxes.
func writeBoxes(list []*box) *op {
	return &op{bytes: len(list) * (boxSize + 40), rows: len(list) + opRows, do: func(b *batch) error {
		for _, box := range list {
			if !box.gone {
				b.boxes[box] = true
			}
		}
		return nil
	}}
}

// forgetDay takes a day's envelopes out of memory, and marks the day in the state.
func (q *Queue) forgetDay(number uint16) (touched []*box) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.state.Dropping = number
	if d := q.days[number]; d != nil {
		d.open = 0
	}
	for _, b := range q.boxes {
		kept := b.wait[:0]
		for _, e := range b.wait {
			if q.lots[e.lot].day != number {
				kept = append(kept, e)
				continue
			}
			q.forget(b, e)
			q.figures.expired++
		}
		if len(kept) < len(b.wait) {
			b.wait = slices.Clone(kept)
			touched = append(touched, b)
		}
	}
	return touched
}

// dayPrefixes are the prefixes of a day's envelopes, so many together as may be dropped at once.
func (q *Queue) dayPrefixes(number uint16) (lists [][][]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var list [][]byte
	size := int64(0)
	for _, l := range q.lots {
		if l == nil || l.day != number {
			continue
		}
		if len(list) > 0 && size+l.taken > dropAtOnce {
			lists, list, size = append(lists, list), nil, 0
		}
		list = append(list, lotPrefix(rowEnvelope, number, l.number))
		size += l.taken
	}
	return append(lists, append(list, dayPrefix(rowEnvelope, number)))
}

// drop lets the engine forget all rows under some prefixes. The loop does it between two commits: while it lasts deposits wait, and none
// sees the engine's ErrBlockedWrites.
func (q *Queue) drop(ctx context.Context, prefixes [][]byte) error {
	return q.writeUntil(ctx, &op{alone: func() error { return q.dropNow(prefixes) }})
}

func (q *Queue) dropNow(prefixes [][]byte) error {
	if len(prefixes) == 0 {
		return nil
	}
	if err := q.db.DropPrefix(prefixes...); err != nil {
		return fmt.Errorf("mailbox: drop: %w", err)
	}
	for _, p := range prefixes { // the engine only logs when it could not rewrite its newest tables
		left, err := keysUnder(q.db.DB, p, 1)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("mailbox: drop: some %c rows are still there", p[0])
		}
	}
	return nil
}

// sweepSpent forgets the tokens that were spent on what is gone.
func (q *Queue) sweepSpent(ctx context.Context, number uint16) error {
	for {
		keys, err := keysUnder(q.db.DB, dayPrefix(rowSpent, number), sweepAtOnce)
		if err != nil || len(keys) == 0 {
			return err
		}
		err = q.writeUntil(ctx, &op{bytes: len(keys)*110 + opBytes, rows: 3*len(keys) + opRows, do: func(b *batch) error {
			for _, k := range keys {
				if err := q.forgetSpent(b, number, k); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			return err
		}
	}
}

func (q *Queue) forgetSpent(b *batch, number uint16, k []byte) error {
	if len(k) != 51 {
		b.delete(k)
		return nil
	}
	id, hash := wire.BoxID(k[3:35]), [16]byte(k[35:])
	v, err := b.get(tokenKey(id, hash))
	if err != nil {
		return err
	}
	b.delete(k)
	row, err := parseToken(v)
	if err != nil || !row.Spent || row.Day != number { // of a box of that name that was closed
		return nil
	}
	b.delete(tokenKey(id, hash))
	q.mu.Lock()
	defer q.mu.Unlock()
	if box := q.boxes[id]; box != nil && box.row.Spent > 0 {
		box.row.Spent--
		q.perPart[box.part()].bytes -= tokenBytes
		b.boxes[box] = true
	}
	return nil
}

// removeLot forgets a lot; it is called with mu held.
func (q *Queue) removeLot(at uint16) {
	q.lots[at] = nil
	q.freeLots = append(q.freeLots, at)
	q.garbage = slices.DeleteFunc(q.garbage, func(g uint16) bool { return g == at })
}

// freeLotsOf gives back the disk of lots in which nothing is alive, and moves what is left in a lot that is nearly empty.
func (q *Queue) freeLotsOf(ctx context.Context) error {
	if at := q.sparseLot(); at != 0 {
		if err := q.moveLot(ctx, at); err != nil {
			return err
		}
	}
	q.mu.Lock()
	any := len(q.garbage) > 0
	q.mu.Unlock()
	if !any {
		return nil
	}
	var gone []uint16
	err := q.writeUntil(ctx, &op{alone: func() error {
		q.mu.Lock()
		var prefixes [][]byte
		size := int64(0)
		for _, at := range q.garbage {
			if l := q.lots[at]; l.live == 0 && q.days[l.day].open != at && size < dropAtOnce {
				gone = append(gone, at)
				prefixes = append(prefixes, lotPrefix(rowEnvelope, l.day, l.number))
				size += l.taken
			}
		}
		q.mu.Unlock()
		return q.dropNow(prefixes)
	}})
	if err != nil || len(gone) == 0 {
		return err
	}
	return q.writeUntil(ctx, &op{bytes: 20*len(gone) + opBytes, rows: len(gone) + opRows, do: func(b *batch) error {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, at := range gone {
			if l := q.lots[at]; l != nil {
				b.delete(lotPrefix(rowLot, l.day, l.number))
				q.removeLot(at)
			}
		}
		return nil
	}})
}

// sparseLot finds a lot that takes much more room than what is alive in it.
func (q *Queue) sparseLot() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	for at, l := range q.lots {
		if l != nil && l.live > 0 && l.taken >= q.limits.LotBytes/2 && l.live*100 < l.taken*sparsePercent && q.days[l.day].open != uint16(at) {
			return uint16(at)
		}
	}
	return 0
}

// place is where an envelope waits.
type place struct {
	box   *box
	entry entry
}

// moveLot copies what is alive in a lot to the day's open one.
func (q *Queue) moveLot(ctx context.Context, at uint16) error {
	var list []place
	q.mu.Lock()
	for _, b := range q.boxes {
		for _, e := range b.wait {
			if e.lot == at {
				list = append(list, place{b, e})
			}
		}
	}
	q.mu.Unlock()
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && (n == 0 || size+list[n].entry.size() <= moveAtOnce) {
			size += list[n].entry.size()
			n++
		}
		some := list[:n]
		list = list[n:]
		err := q.writeUntil(ctx, &op{grows: true, bytes: size + n*opBytes, rows: n * opRows, do: func(b *batch) error {
			for _, p := range some {
				if err := q.move(b, p, at); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) move(b *batch, p place, from uint16) error {
	i, there := p.box.find(p.entry.seq)
	if !there || p.box.gone || p.box.wait[i].lot != from {
		return nil
	}
	old := q.lots[from]
	envelope, err := b.get(envelopeKey(old.day, old.number, p.box.id, p.entry.seq))
	if err != nil {
		return err
	}
	index, err := b.get(indexKey(old.day, p.box.id, p.entry.seq))
	if err != nil {
		return err
	}
	row, err := parseIndex(index)
	if err != nil || envelope == nil {
		return nil // Fetch tells of it
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	to := q.openLot(b, q.days[old.day])
	if to == from {
		return nil
	}
	l := q.lots[to]
	row.Lot = l.number
	size := int64(len(envelope))
	l.taken += size
	b.lots[l] = true
	b.set(envelopeKey(l.day, l.number, p.box.id, p.entry.seq), envelope)
	b.set(indexKey(l.day, p.box.id, p.entry.seq), row.marshal())
	b.then = append(b.then, func() { // only now may somebody read it there
		i, there := p.box.find(p.entry.seq)
		if !there || p.box.wait[i].lot != from {
			return
		}
		p.box.wait[i].lot = to
		l.live += size
		if old.live -= size; old.live == 0 {
			q.garbage = append(q.garbage, from)
		}
	})
	return nil
}

// expireBoxes removes empty boxes that nobody fetched from for long.
func (q *Queue) expireBoxes(ctx context.Context) error {
	var old []wire.BoxID
	q.mu.Lock()
	if q.state.Paused == 0 {
		for id, b := range q.boxes {
			if at, wall, served := b.expires(); len(b.wait) == 0 && len(old) < removeAtOnce && q.over(at, wall, served) {
				old = append(old, id)
			}
		}
	}
	q.mu.Unlock()
	for _, id := range old {
		err := q.writeUntil(ctx, &op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
			box := q.boxes[id]
			if box == nil {
				return nil
			}
			q.mu.Lock()
			at, wall, served := box.expires()
			still := box.row.Waiting == 0 && q.over(at, wall, served)
			q.mu.Unlock()
			if still {
				q.removeBox(b, box)
			}
			return nil
		}})
		if err != nil {
			return err
		}
		if err := q.finishClosing(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

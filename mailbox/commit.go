package mailbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/internal/disk"
	"sotto/wire"
)

// How a write becomes durable:
//
//  1. a caller puts an op into the inbox: owners' into one line, deposits into one line for each address prefix;
//  2. the loop takes a batch: owners first, then deposits by turns, and no prefix more than a quarter when others wait;
//  3. it lets each op decide, in order, on one transaction that sees what the ops before it wrote, and on the state in memory;
//  4. it adds the rows of boxes, lots and totals that were touched, makes one synced commit, notes its number outside the engine;
//  5. mail appears, watchers are told, callers are answered.

const (
	batchBytes = 1_000_000 // the engine takes 1 258 291 of one transaction
	batchRows  = 8000      // and 13 100
	opBytes    = 600       // rows of an envelope beside itself
	opRows     = 10
)

// op is one request to write.
type op struct {
	do    func(b *batch) error // decides, writes and changes the state; it returns an error only if it did neither of the latter
	alone func() error         // instead of do: a drop, which is no transaction
	grows bool                 // refused when the disk is below its reserve
	bytes int                  // at most what it writes
	rows  int
	from  netip.Prefix
	err   error
	done  chan struct{}
}

// inbox is the lines of ops that wait.
type inbox struct {
	mu     sync.Mutex
	owners []*op
	lines  map[netip.Prefix]*line
	turn   []*line // lines that are not empty
	bytes  int64   // of deposits
	ops    int
	last   int // ops in the batch before
	ready  bool
	ended  bool
	wake   chan struct{}
}

type line struct {
	from netip.Prefix
	ops  []*op
}

func newInbox() inbox { return inbox{lines: map[netip.Prefix]*line{}, wake: make(chan struct{}, 1)} }

// open lets the loop serve; an inbox serves once.
func (i *inbox) open() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ready || i.ended {
		return errClosed
	}
	i.ready = true
	return nil
}

// close takes no more; the loop ends when it has served what is there.
func (i *inbox) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.signal()
}

// end closes an inbox that was never served.
func (i *inbox) end() {
	i.mu.Lock()
	ready := i.ready
	i.ended = true
	i.signal()
	i.mu.Unlock()
	if ready {
		return
	}
	for batch := i.take(); len(batch) > 0; batch = i.take() {
		for _, o := range batch {
			o.err = errClosed
			close(o.done)
		}
	}
}

func (i *inbox) signal() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *inbox) waiting() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ops
}

// put queues an op; limit is how many bytes of deposits may wait.
func (i *inbox) put(o *op, limit int64) error {
	o.done = make(chan struct{})
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.ended:
		return errClosed
	case limit > 0 && i.bytes+int64(o.bytes) > limit:
		return errBusy
	case limit > 0:
		l := i.lines[o.from]
		if l == nil {
			l = &line{from: o.from}
			i.lines[o.from] = l
			i.turn = append(i.turn, l)
		}
		l.ops = append(l.ops, o)
		i.bytes += int64(o.bytes)
	default:
		i.owners = append(i.owners, o)
	}
	i.ops++
	i.signal()
	return nil
}

// room is what a batch may still take.
type room struct{ bytes, rows int }

func (r *room) fits(o *op) bool { return o.bytes <= r.bytes && o.rows <= r.rows }

func (r *room) take(o *op) {
	r.bytes -= o.bytes
	r.rows -= o.rows
}

// take removes the next batch: at least one op if there is one. An op that must be alone comes alone.
func (i *inbox) take() (batch []*op) {
	i.mu.Lock()
	defer i.mu.Unlock()
	left := room{batchBytes, batchRows}
	for len(i.owners) > 0 && (len(batch) == 0 || left.fits(i.owners[0]) && i.owners[0].alone == nil) {
		o := i.owners[0]
		i.owners = i.owners[1:]
		batch = append(batch, o)
		left.take(o)
		if o.alone != nil || len(i.turn) > 0 && left.bytes < batchBytes/2 {
			break
		}
	}
	if len(batch) > 0 && batch[len(batch)-1].alone != nil {
		i.ops--
		return batch
	}
	batch = i.takeTurns(batch, left)
	i.ops -= len(batch)
	i.last = len(batch)
	return batch
}

// takeTurns adds deposits, one from each line in turn.
func (i *inbox) takeTurns(batch []*op, left room) []*op {
	most := batchBytes
	if len(i.turn) > 1 {
		most = batchBytes / 4
	}
	given := map[*line]int{}
	for moved := true; moved; {
		moved = false
		for at := 0; at < len(i.turn); {
			l := i.turn[at]
			o := l.ops[0]
			if len(batch) > 0 && (!left.fits(o) || given[l] > 0 && given[l]+o.bytes > most) {
				at++
				continue
			}
			batch = append(batch, o)
			left.take(o)
			given[l] += o.bytes
			i.bytes -= int64(o.bytes)
			moved = true
			if l.ops[0], l.ops = nil, l.ops[1:]; len(l.ops) == 0 {
				delete(i.lines, l.from)
				i.turn = append(i.turn[:at], i.turn[at+1:]...)
				continue
			}
			at++
		}
	}
	if len(i.turn) > 1 { // whoever was first is last next time
		i.turn = append(i.turn[1:], i.turn[0])
	}
	return batch
}

// gather lets goroutines that were just answered ask for their next write, so that they share a sync instead of every second batch
// holding one op. Alone, nobody waits.
func (i *inbox) gather() {
	for range 8 {
		i.mu.Lock()
		enough := i.ops >= i.last || i.ended
		i.mu.Unlock()
		if enough {
			return
		}
		runtime.Gosched()
	}
}

// write queues an op that belongs to the owner or to the operator, and waits for it.
func (q *Queue) write(o *op) error {
	if err := q.inbox.put(o, 0); err != nil {
		return err
	}
	<-o.done
	return o.err
}

// writeUntil is write, but waits no longer than ctx lasts; then the op may be written or not.
func (q *Queue) writeUntil(ctx context.Context, o *op) error {
	if err := q.inbox.put(o, 0); err != nil {
		return err
	}
	return o.wait(ctx)
}

func (o *op) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return fmt.Errorf("mailbox: wait for a commit: %w", context.Cause(ctx))
	}
}

// commitLoop is the only writer.
func (q *Queue) commitLoop() error {
	for {
		q.inbox.gather()
		batch := q.inbox.take()
		if len(batch) > 0 {
			q.runBatch(batch)
			continue
		}
		q.inbox.mu.Lock()
		over := q.inbox.ended && q.inbox.ops == 0
		q.inbox.mu.Unlock()
		if over {
			q.mu.Lock()
			defer q.mu.Unlock()
			return q.failed
		}
		<-q.inbox.wake
	}
}

// batch is the transaction of one commit.
type batch struct {
	q     *Queue
	txn   *badger.Txn
	wrote bool
	err   error         // of a write
	boxes map[*box]bool // whose rows are to be written
	lots  map[*lot]bool
	mail  []newMail
	then  []func() // with mu held, when it is durable
}

// newMail appears when the batch is durable.
type newMail struct {
	box   *box
	entry entry
}

// set writes a row. What fails here fails the batch, and with it the queue.
func (b *batch) set(k, v []byte) {
	b.wrote = true
	if b.err == nil {
		b.err = b.txn.SetEntry(badger.NewEntry(k, v))
	}
}

func (b *batch) delete(k []byte) {
	b.wrote = true
	if b.err == nil {
		b.err = b.txn.Delete(k)
	}
}

// get returns a row's value, nil when there is none.
func (b *batch) get(k []byte) ([]byte, error) { return getRow(b.txn, k) }

func getRow(txn *badger.Txn, k []byte) ([]byte, error) {
	item, err := txn.Get(k)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mailbox: read %c row: %w", k[0], err)
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("mailbox: read %c row: %w", k[0], err)
	}
	return v, nil
}

// runBatch decides, commits and answers.
func (q *Queue) runBatch(ops []*op) {
	began := q.cfg.Uptime()
	q.mu.Lock()
	q.figures.working, q.figures.since = true, began
	q.mu.Unlock()
	if err := q.runOps(ops); err != nil {
		for _, o := range ops {
			if o.err == nil {
				o.err = err
			}
		}
	}
	q.mu.Lock()
	q.figures.working = false
	q.figures.latency[q.figures.commits%uint64(len(q.figures.latency))] = q.cfg.Uptime() - began
	q.figures.commits++
	q.figures.largest = max(q.figures.largest, uint64(len(ops)))
	if q.figures.commits%64 == 0 {
		_, q.figures.slow = q.figures.quantiles()
	}
	q.mu.Unlock()
	for _, o := range ops {
		close(o.done)
	}
}

func (q *Queue) runOps(ops []*op) error {
	if err := q.usable(); err != nil {
		return err
	}
	growing, writing := q.diskRoom()
	if ops[0].alone != nil {
		if writing != nil {
			return writing
		}
		ops[0].err = q.db.files.around(stepDrop, ops[0].alone)
		return nil
	}
	b := &batch{q: q, txn: q.db.NewTransaction(true), boxes: map[*box]bool{}, lots: map[*lot]bool{}}
	defer b.txn.Discard()
	for _, o := range ops {
		switch {
		case o.grows && growing != nil:
			o.err = growing
		case writing != nil:
			o.err = writing
		default:
			o.err = o.do(b)
		}
	}
	if err := b.commit(); err != nil {
		return q.fail(fmt.Errorf("commit: %w", err))
	}
	return nil
}

func (q *Queue) usable() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.failed != nil {
		return fmt.Errorf("mailbox: %w: %w", errStopped, q.failed)
	}
	return nil
}

// diskRoom reports why nothing new is taken, and why nothing at all is written: the engine writes through maps of sparse files and dies on
// a full disk. Owners take their mail and acknowledge it down to a quarter of the reserve.
func (q *Queue) diskRoom() (growing, writing error) {
	if q.cfg.InMemory || q.limits.Reserve < 0 {
		return nil, nil
	}
	free, err := disk.Free(q.cfg.Dir)
	if err != nil {
		err = fmt.Errorf("mailbox: ask for free space: %w", errors.Join(err, wire.ErrLater))
		return err, err
	}
	full := free < q.limits.Reserve
	q.mu.Lock()
	changed := q.figures.full != full
	q.figures.full = full
	q.mu.Unlock()
	if changed {
		q.log.Warn("mailbox: free space passed the reserve", "full", full, "free", free, "reserve", q.limits.Reserve)
	}
	if !full {
		return nil, nil
	}
	growing = fmt.Errorf("mailbox: %d MiB free, %d MiB kept in reserve: %w", free>>20, q.limits.Reserve>>20, wire.ErrOverloaded)
	if free < q.limits.Reserve/4 {
		writing = growing
	}
	return growing, writing
}

// commit makes the batch durable, and then visible.
func (b *batch) commit() error {
	q := b.q
	if !b.wrote && len(b.boxes) == 0 {
		b.publish()
		return nil
	}
	q.mu.Lock()
	q.state.Commit++
	q.state.Served, q.state.Wall = q.served(), q.now().Unix()
	state := q.state.marshal()
	type row struct{ k, v []byte }
	rows := []row{{[]byte{rowState}, state}}
	for box := range b.boxes {
		if !box.gone {
			rows = append(rows, row{boxKey(rowBox, box.id), box.row.marshal()})
		}
	}
	for l := range b.lots {
		rows = append(rows, row{lotPrefix(rowLot, l.day, l.number), be.AppendUint64(nil, uint64(l.taken))})
	}
	commit := q.state.Commit
	q.mu.Unlock()
	for _, r := range rows {
		b.set(r.k, r.v)
	}
	if b.err != nil {
		return b.err
	}
	if err := q.db.files.around(stepCommit, b.txn.Commit); err != nil {
		return err
	}
	q.db.committed(commit)
	b.publish()
	return nil
}

// publish lets what is durable be seen.
func (b *batch) publish() {
	q := b.q
	q.mu.Lock()
	defer q.mu.Unlock()
	now := uint32(q.now().Unix())
	for _, m := range b.mail {
		if m.box.gone {
			continue
		}
		m.box.wait = append(m.box.wait, m.entry)
		if m.entry.notBefore > now {
			if m.box.due == 0 || m.entry.notBefore < m.box.due {
				m.box.due = m.entry.notBefore
			}
			continue
		}
		m.box.tell()
	}
	for _, fn := range b.then {
		fn()
	}
}

// served is how many seconds this database was served, by the monotonic clock.
func (q *Queue) served() int64 { return q.tick.base + int64((q.cfg.Uptime()-q.began)/time.Second) }

package mailbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/internal/clock"
	"sotto/internal/disk"
	"sotto/internal/fault"
	"sotto/wire"
)

// QueueConfig says where the queue is and what it may use. The zero value of everything but Dir is useful.
type QueueConfig struct {
	Dir    string
	Limits Limits
	Clock  clock.Clock
	Fault  *fault.Points
	Log    *slog.Logger
	// Uptime is how long the machine was up by its monotonic clock, counted from any moment; nil: since the queue was opened.
	Uptime func() time.Duration
	// Offset is how far the wall clock is behind the median of what at least three other volunteers say, and whether so many said
	// anything; nil: nobody did.
	Offset func() (time.Duration, bool)
	// Inspect reads number and last date of a record to republish; nil: a later one replaces an earlier one and is put until it is forgotten.
	Inspect func(record []byte) (seq uint64, notAfter time.Time, err error)
	// Probe opens the engine's files in a guard child when the last shutdown was not clean, so that a crash of the engine becomes an
	// error. The child calls ProbeQueue and inherits the lock.
	Probe    func(dir string, lock *os.File) error
	InMemory bool // nothing touches the disk; for tests
	NoSync   bool // nothing is synced; for tests and the comparison rows of benchmarks
}

func (c QueueConfig) withDefaults() QueueConfig {
	c.Limits = c.Limits.withDefaults()
	if c.Clock == nil {
		c.Clock = clock.System{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Uptime == nil {
		began := c.Clock.Now() // the machine's clock has a monotonic reading in it
		c.Uptime = func() time.Duration { return c.Clock.Now().Sub(began) }
	}
	if c.Offset == nil {
		c.Offset = func() (time.Duration, bool) { return 0, false }
	}
	return c
}

var (
	errClosed  = errors.New("mailbox: the queue is closed")
	errStopped = errors.New("the mailbox takes and gives nothing after a failed write, until it is started again")
)

// Queue is an open queue. Its methods may be called by many goroutines; those that write return when the write is durable, and
// wait for Run.
//
// One loop writes. It alone changes what is below mu, with mu held, so it may read that without; everybody else reads with mu held.
// A change is made in memory when the loop decides it, before its commit: when a commit fails, the queue answers nothing more, and the next
// start reads what is true. Only mail appears after the commit.
type Queue struct {
	cfg    QueueConfig
	limits Limits
	log    *slog.Logger
	db     *database
	inbox  inbox
	began  time.Duration // Uptime at the start

	running sync.Mutex // held by Run
	readers sync.WaitGroup

	mu       sync.Mutex
	state    stateRow
	boxes    map[wire.BoxID]*box
	perPart  [parts]partUse
	days     map[uint16]*day
	lots     []*lot // by the number in an entry; 0 is none
	freeLots []uint16
	senders  senders
	allowed  map[[32]byte]bool
	blocked  map[netip.Prefix]bool
	closing  []wire.BoxID // closed boxes whose tokens and records remain
	garbage  []uint16     // lots with nothing alive
	tick     tick
	damage   []string
	damaged  int
	failed   error
	closed   bool
	figures  figures
}

// partUse is what the boxes of a part hold.
type partUse struct {
	bytes int64
	boxes int
}

// box is one owner's box.
type box struct {
	id        wire.BoxID
	row       boxRow
	wait      []entry // by number
	strangers int
	fetched   uint16 // day of the last fetch, this run
	due       uint32 // when an envelope that was put off may go; 0 none
	watchers  []chan struct{}
	gone      bool
}

// used is what counts against a box: envelopes, 64 bytes for each token it has or remembers, records.
func (b *box) used() int64 {
	return int64(b.row.Stored) + tokenBytes*int64(b.row.Unspent+b.row.Spent) + int64(b.row.RecordBytes)
}

const tokenBytes = 64

func (b *box) part() part {
	if b.row.Flags&flagVouched != 0 {
		return partVouched
	}
	return partOpen
}

// entry is an envelope that waits: 24 bytes, for there may be a million.
type entry struct {
	seq       uint64
	sender    uint32 // number in senders
	notBefore uint32 // Unix seconds
	hash      uint32 // the first bytes of the envelope's hash
	lot       uint16 // number in lots
	class     uint8
}

func (e entry) size() int { return classSizes[e.class&classSize] }

// day is what ends together.
type day struct {
	number  uint16
	row     dayRow
	waiting int
	bytes   int64
	open    uint16 // the lot that takes envelopes, a number in lots; 0 none
	next    uint16 // number of the day's next lot
}

// lot is a part of a day's envelopes, dropped from the disk together when all are gone.
type lot struct {
	day    uint16
	number uint16
	taken  int64 // bytes it ever took
	live   int64
}

// figures are for status only.
type figures struct {
	accepted, fetched, acked, expired uint64
	refused                           map[string]uint64
	commits, largest                  uint64
	latency                           [256]time.Duration // of the newest commits
	slow                              time.Duration      // what the slowest of them took, while there are enough; fades
	full                              bool
	working                           bool          // a batch is being committed
	since                             time.Duration // Uptime when it began
}

// OpenQueue opens the queue of a directory, or makes one, and reads all it needs to serve. What is damaged so that nothing can be
// trusted is refused with ErrDamaged; what is merely missing is told in Stats.
func OpenQueue(cfg QueueConfig) (*Queue, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Limits.check(); err != nil {
		return nil, err
	}
	db, err := openDatabase(cfg)
	if err != nil {
		return nil, err
	}
	q := &Queue{
		cfg: cfg, limits: cfg.Limits, log: cfg.Log, db: db, inbox: newInbox(), began: cfg.Uptime(),
		boxes: map[wire.BoxID]*box{}, days: map[uint16]*day{}, lots: make([]*lot, 1), senders: newSenders(),
		allowed: map[[32]byte]bool{}, blocked: map[netip.Prefix]bool{}, figures: figures{refused: map[string]uint64{}},
	}
	if err := q.load(); err != nil {
		return nil, errors.Join(err, db.shut())
	}
	return q, nil
}

// Run commits what is asked for and does the upkeep until ctx ends; then it commits what was asked for before, and returns.
func (q *Queue) Run(ctx context.Context) error {
	q.running.Lock()
	defer q.running.Unlock()
	if err := q.inbox.open(); err != nil {
		return err
	}
	var both errgroup.Group
	both.Go(func() error { return q.commitLoop() })
	both.Go(func() error {
		defer q.inbox.close()
		return q.upkeepLoop(ctx)
	})
	return both.Wait()
}

// Close waits for Run, whose context must have ended, and closes the files. Requests that nobody ran fail.
func (q *Queue) Close() error {
	q.inbox.end()
	q.running.Lock()
	defer q.running.Unlock()
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil
	}
	q.closed = true
	clean := q.failed == nil
	commit := q.state.Commit
	q.mu.Unlock()
	q.readers.Wait()
	if err := q.db.close(commit, clean); err != nil {
		return fmt.Errorf("mailbox: close: %w", err)
	}
	return nil
}

// enter begins a read; whoever got no error calls q.readers.Done. It is called with mu held.
func (q *Queue) enter() error {
	switch {
	case q.closed:
		return errClosed
	case q.failed != nil:
		return fmt.Errorf("mailbox: %w: %w", errStopped, q.failed)
	}
	q.readers.Add(1)
	return nil
}

// fail ends all service until the next start: after a failed sync nobody knows what the disk holds.
func (q *Queue) fail(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.failed == nil {
		q.failed = err
		q.log.Error("mailbox: a write failed; nothing is taken or given until the next start", "error", err)
	}
	return fmt.Errorf("mailbox: %w: %w", errStopped, err)
}

// note keeps damage for status; it is called with mu held.
func (q *Queue) note(what string, args ...any) {
	what = fmt.Sprintf(what, args...)
	q.log.Error("mailbox: damage: " + what)
	q.damaged++
	q.state.Damaged = uint16(q.now().Unix()/daySeconds) + wire.MaxKeepDays + 2 // written with the next commit
	if len(q.damage) < 100 {
		q.damage = append(q.damage, what)
	}
}

func (q *Queue) now() time.Time { return q.cfg.Clock.Now() }

// DayUse is what ends on a day.
type DayUse struct {
	HeldUntil time.Time
	Waiting   int
	Bytes     int64
}

// PartUse is one part of the ceiling.
type PartUse struct {
	Boxes int
	Bytes int64
	Limit int64
}

// QueueStats is what status shows. It names no box and no address.
type QueueStats struct {
	Boxes         int
	Waiting       int
	Bytes         int64 // envelopes, tokens and records, as accounted
	Ceiling       int64
	Unaccounted   int64 // invariant I11: what the boxes hold less what is accounted; must be 0
	Open, Vouched PartUse
	Days          []DayUse  // by date
	Oldest        time.Time // day on which the oldest envelope that waits came; zero none
	Garbage       int64     // bytes of envelopes that are gone and still take room
	Accepted      uint64    // since the start, as what follows
	Fetched       uint64
	Acked         uint64
	Expired       uint64
	Refused       map[string]uint64 // by reason
	Commits       uint64
	LargestCommit uint64 // requests
	CommitP50     time.Duration
	CommitP99     time.Duration
	Pending       int           // requests that wait for their commit
	Stuck         time.Duration // how long the commit under way has taken
	Free          int64
	Full          bool // deposits are refused for want of disk
	Paused        string
	DrainUntil    time.Time
	Refusing      bool
	Damaged       int // how often damage was found; Damage has the first hundred
	Damage        []string
	DamagedUntil  time.Time // for damage was found, now or before: no absence is signed before this day; zero none
	Failed        error
	Tables        int64 // bytes of the engine's tables
}

// Stats returns the queue's figures.
func (q *Queue) Stats() QueueStats {
	free := int64(-1)
	if !q.cfg.InMemory {
		if n, err := disk.Free(q.cfg.Dir); err == nil {
			free = n
		}
	}
	pending := q.inbox.waiting()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := QueueStats{
		Boxes: len(q.boxes), Waiting: int(q.state.Waiting), Ceiling: q.limits.Ceiling,
		Open:     PartUse{q.perPart[partOpen].boxes, q.perPart[partOpen].bytes, q.limits.part(partOpen)},
		Vouched:  PartUse{q.perPart[partVouched].boxes, q.perPart[partVouched].bytes, q.limits.part(partVouched)},
		Accepted: q.figures.accepted, Fetched: q.figures.fetched, Acked: q.figures.acked, Expired: q.figures.expired,
		Refused: map[string]uint64{}, Commits: q.figures.commits, LargestCommit: q.figures.largest, Pending: pending,
		Free: free, Full: q.figures.full, Paused: pauses[q.state.Paused], Refusing: q.state.Refusing,
		Damaged: q.damaged, Damage: slices.Clone(q.damage), Failed: q.failed,
	}
	if q.figures.working {
		s.Stuck = q.cfg.Uptime() - q.figures.since
	}
	for why, n := range q.figures.refused {
		s.Refused[why] = n
	}
	s.CommitP50, s.CommitP99 = q.figures.quantiles()
	s.Bytes = s.Open.Bytes + s.Vouched.Bytes
	if q.state.Damaged != 0 {
		s.DamagedUntil = time.Unix(int64(q.state.Damaged)*daySeconds, 0).UTC()
	}
	held := int64(0)
	for _, b := range q.boxes {
		held += b.used()
	}
	s.Unaccounted = held - s.Bytes
	if q.state.DrainUntil > 0 {
		s.DrainUntil = time.Unix(q.state.DrainUntil, 0).UTC()
	}
	for _, d := range q.days {
		if d.waiting > 0 {
			s.Days = append(s.Days, DayUse{time.Unix(int64(d.number)*daySeconds, 0).UTC(), d.waiting, d.bytes})
			if came := time.Unix(d.row.Wall, 0).UTC(); s.Oldest.IsZero() || came.Before(s.Oldest) {
				s.Oldest = came
			}
		}
	}
	slices.SortFunc(s.Days, func(a, b DayUse) int { return a.HeldUntil.Compare(b.HeldUntil) })
	for _, l := range q.lots {
		if l != nil {
			s.Garbage += l.taken - l.live
		}
	}
	if !q.closed {
		s.Tables, _ = q.db.Size()
	}
	return s
}

// quantiles are of the newest commits.
func (f *figures) quantiles() (p50, p99 time.Duration) {
	n := min(f.commits, uint64(len(f.latency)))
	if n == 0 {
		return 0, 0
	}
	list := slices.Clone(f.latency[:n])
	slices.Sort(list)
	return list[n/2], list[n*99/100]
}

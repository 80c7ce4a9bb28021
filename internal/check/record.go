// Package check is the harness that proves what the program promises: it runs real nodes, kills them, records everything
// that was asked and answered from outside, and judges the record by the invariants of reliability (I1 to I15).
//
// Begin with Record here, which is all that is known about a run, and judge.go, which holds it to the invariants; both are
// plain data and tested by themselves. Recorder collects a record; campaign.go is the run: world.go its nodes, workload.go
// the people, feed.go the readers of the event feeds, nemesis.go the killer, points.go the named crash points.
package check

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// At is a moment of a run, counted from its beginning by the monotonic clock.
type At = time.Duration

// Op is one text that somebody asked to be sent, however often it was asked for.
type Op struct {
	From, To string
	Key      string // idempotency key: the same in every attempt
	Text     string // how the text begins, which is unique
	Sum      [32]byte
	Begun    At   // of the first attempt
	Done     At   // when it was first answered, if Accepted
	Accepted bool // false: unknown, it may be there or not, but not twice
	Tries    int
	ID       string
}

// Look is a message's state as a node told it when asked, between Begun and Done.
type Look struct {
	Node, ID, State string
	Begun, Done     At
}

// Seen is one entry of an event feed.
type Seen struct {
	Seq     uint64
	Kind    string
	ID      string // of what it is about
	State   string // of a message
	Mine    bool   // a message that the node's own person wrote
	Peer    string // the message's conversation
	Missing uint64
	At      At
}

// same reports whether two deliveries of one number are one event; a message may have changed since it was announced.
func (s Seen) same(o Seen) bool {
	return s.Kind == o.Kind && s.ID == o.ID && (s.Kind != kindReceipt || !s.Mine || s.State == o.State)
}

const (
	kindMessage = "message"
	kindReceipt = "receipt"
)

// Stream is one connection to an event feed. The reader had acknowledged Least for sure and Most perhaps (the node was
// killed before it answered), so the node must begin between the two.
type Stream struct {
	Node        string
	Least, Most uint64
	From        uint64
	Events      []Seen
}

// Find is a look for a message at its receiver, whose sender had just called it delivered.
type Find struct {
	Sender, Receiver, ID string
	Found                bool
	At                   At
}

// Row is a message as a node's store shows it at the end.
type Row struct {
	ID      string
	Sum     [32]byte
	Text    string // how it begins
	Mine    bool
	State   string
	Why     string
	Missing uint64
}

// Dump is what a node's store holds at the end.
type Dump struct {
	Node   string
	Talks  map[string][]Row // by peer, in the order in which they are shown
	Last   uint64           // number of the last event
	Damage []string
}

// Kill is one kill of the nemesis.
type Kill struct {
	Node  string
	Phase string // start, traffic, first start, or a crash point's name
	Alive At     // how long the process had run
	At    At
}

// Record is everything that was seen of a run.
type Record struct {
	Ops     []Op
	Looks   []Look
	Streams []Stream
	Finds   []Find
	Kills   []Kill
	Dumps   []Dump
	Live    []Violation // what was found wrong while it ran
}

// Sum is how texts are compared.
func Sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// Violation is one broken promise. Rule is the invariant's name in the reliability document.
type Violation struct {
	Rule, Node, ID, What string
}

// String is the violation in one line.
func (v Violation) String() string {
	out := v.Rule
	if v.Node != "" {
		out += " at " + v.Node
	}
	if v.ID != "" {
		out += ", " + v.ID
	}
	return out + ": " + v.What
}

// Recorder collects a record from many goroutines.
type Recorder struct {
	began time.Time

	mu      sync.Mutex
	rec     Record
	settled map[string]int // messages called delivered, by sender
	taken   map[string]int // messages accepted, by sender
	bad     chan struct{}  // closed at the first violation
}

// NewRecorder begins a record now.
func NewRecorder() *Recorder {
	return &Recorder{began: time.Now(), settled: map[string]int{}, taken: map[string]int{}, bad: make(chan struct{})}
}

// Now is the run's time.
func (r *Recorder) Now() At { return time.Since(r.began) }

// Bad is closed when something was found wrong while the run goes on.
func (r *Recorder) Bad() <-chan struct{} { return r.bad }

// failed reports whether something was found wrong already.
func (r *Recorder) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.rec.Live) > 0
}

// Violate notes that a promise was broken.
func (r *Recorder) Violate(rule, node, id, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	r.rec.Live = append(r.rec.Live, Violation{rule, node, id, fmt.Sprintf("%s (after %.3f s)", what, r.Now().Seconds())})
	if len(r.rec.Live) == 1 {
		close(r.bad)
	}
}

// Record returns what was recorded; call it when nobody records any more.
func (r *Recorder) Record() *Record { return &r.rec }

// begin notes that a text is about to be sent.
func (r *Recorder) begin(from, to, key, text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Ops = append(r.rec.Ops, Op{From: from, To: to, Key: key, Text: head(text), Sum: Sum(text), Begun: r.Now()})
	return len(r.rec.Ops) - 1
}

func (r *Recorder) tried(op int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Ops[op].Tries++
}

func (r *Recorder) accept(op int, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := &r.rec.Ops[op]
	o.Accepted, o.ID, o.Done = true, id, r.Now()
	r.taken[o.From]++
}

func (r *Recorder) look(l Look) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Looks = append(r.rec.Looks, l)
}

func (r *Recorder) find(f Find) {
	r.mu.Lock()
	r.rec.Finds = append(r.rec.Finds, f)
	r.mu.Unlock()
	if !f.Found {
		r.Violate("I5", f.Receiver, f.ID, "%s calls it delivered, the receiver does not have it", f.Sender)
	}
}

func (r *Recorder) kill(k Kill) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k.At = r.Now()
	r.rec.Kills = append(r.rec.Kills, k)
}

func (r *Recorder) open(s Stream) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Streams = append(r.rec.Streams, s)
	return len(r.rec.Streams) - 1
}

func (r *Recorder) saw(stream int, e Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.rec.Streams[stream]
	s.Events = append(s.Events, e)
	if e.Kind == kindReceipt && e.Mine && e.State == "delivered" {
		r.settled[s.Node]++
	}
}

// backlog is how many of a sender's texts are accepted and not called delivered yet.
func (r *Recorder) backlog(node string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken[node] - r.settled[node]
}

// head is the part of a text that is unique and fits a line.
func head(text string) string {
	if len(text) > 48 {
		return text[:48]
	}
	return text
}

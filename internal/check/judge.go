package check

import (
	"cmp"
	"fmt"
	"slices"
)

// Judge holds a record to the invariants. Ids and texts are unique, so no search is needed: every rule is a walk.
func Judge(r *Record) []Violation {
	j := &judge{rec: r, dumps: map[string]*Dump{}, ops: map[string]*Op{}, sums: map[[32]byte]*Op{}, gaps: map[[2]string]bool{}}
	for i := range r.Dumps {
		j.dumps[r.Dumps[i].Node] = &r.Dumps[i]
	}
	j.out = append(j.out, r.Live...)
	j.index()
	j.stores()
	j.accepted()
	j.order()
	j.feeds()
	j.states()
	j.delivered()
	return j.out
}

type judge struct {
	rec   *Record
	dumps map[string]*Dump
	ops   map[string]*Op   // by id
	sums  map[[32]byte]*Op // by text
	gaps  map[[2]string]bool
	out   []Violation
}

func (j *judge) fault(rule, node, id, format string, args ...any) {
	j.out = append(j.out, Violation{rule, node, id, fmt.Sprintf(format, args...)})
}

// index finds each op by its id and by its text.
func (j *judge) index() {
	for i := range j.rec.Ops {
		op := &j.rec.Ops[i]
		j.sums[op.Sum] = op
		if !op.Accepted {
			continue
		}
		if other := j.ops[op.ID]; other != nil {
			j.fault("I1", op.From, op.ID, "two texts were accepted under one id: %q and %q", other.Text, op.Text)
		}
		j.ops[op.ID] = op
	}
}

// stores: no damage, nothing shown twice, nothing that was not sent, every text as it was sent, nothing marked as missing.
func (j *judge) stores() {
	for _, d := range j.rec.Dumps {
		for _, what := range d.Damage {
			j.fault("damage", d.Node, "", "%s", what)
		}
		for peer, rows := range d.Talks {
			j.talk(d.Node, peer, rows)
		}
	}
}

func (j *judge) talk(node, peer string, rows []Row) {
	ids, texts := map[string]bool{}, map[[32]byte]bool{}
	for _, row := range rows {
		from, to := peer, node
		if row.Mine {
			from, to = node, peer
		}
		op := j.ops[row.ID]
		if op == nil { // never answered: then it is known by its text
			op = j.sums[row.Sum]
		}
		switch {
		case ids[row.ID]:
			j.fault("I2", node, row.ID, "shown twice: %q", row.Text)
		case op == nil || op.From != from || op.To != to:
			j.fault("I3", node, row.ID, "shown as from %s to %s, but nobody sent that: %q", from, to, row.Text)
		case op.Sum != row.Sum:
			j.fault("I3", node, row.ID, "another text than was sent: %q, sent %q", row.Text, op.Text)
		case texts[row.Sum]:
			j.fault("I2", node, row.ID, "the text is there a second time under another id: %q", row.Text)
		}
		if row.Missing > 0 {
			j.fault("E1", node, row.ID, "says that %d before it are missing", row.Missing)
		}
		if row.Why != "" && !(row.Mine && row.State == "delivered") { // there it says which way it went
			j.fault("E1", node, row.ID, "%s: %s", row.State, row.Why)
		}
		ids[row.ID], texts[row.Sum] = true, true
	}
}

// accepted: every accepted text is in its sender's store and, at the end, in its receiver's.
func (j *judge) accepted() {
	held := map[[2]string]map[string]bool{}
	for _, d := range j.rec.Dumps {
		for peer, rows := range d.Talks {
			set := map[string]bool{}
			for _, row := range rows {
				set[row.ID] = true
			}
			held[[2]string{d.Node, peer}] = set
		}
	}
	for _, op := range j.rec.Ops {
		if !op.Accepted {
			continue
		}
		if j.dumps[op.From] != nil && !held[[2]string{op.From, op.To}][op.ID] {
			j.fault("I1", op.From, op.ID, "accepted, and not in its sender's store: %q", op.Text)
		}
		if j.dumps[op.To] != nil && !held[[2]string{op.To, op.From}][op.ID] {
			j.fault("E1", op.To, op.ID, "accepted by %s, and never shown: %q", op.From, op.Text)
		}
	}
}

// order: a receiver shows a sender's texts in the order in which the sender accepted them, which is the one of the sender's
// store and does not contradict the order of the answers.
func (j *judge) order() {
	for _, d := range j.rec.Dumps {
		for peer, rows := range d.Talks {
			place := map[string]int{}
			if sender := j.dumps[peer]; sender != nil {
				for i, row := range sender.Talks[d.Node] {
					place[row.ID] = i + 1
				}
			}
			j.inOrder(d.Node, peer, rows, place)
		}
	}
}

func (j *judge) inOrder(node, peer string, rows []Row, place map[string]int) {
	last, lastID := 0, ""
	var latest *Op // the op among those shown so far that was begun last
	for _, row := range rows {
		if row.Mine {
			continue
		}
		if at := place[row.ID]; at > 0 {
			if at < last {
				j.fault("I4", node, row.ID, "shown after %s, which %s wrote later", lastID, peer)
			}
			last, lastID = max(last, at), row.ID
		}
		op := j.ops[row.ID]
		if op == nil {
			continue
		}
		if latest != nil && op.Done < latest.Begun {
			j.fault("I4", node, row.ID, "shown after %s, but accepted before that was asked for", latest.ID)
		}
		if latest == nil || op.Begun > latest.Begun {
			latest = op
		}
	}
}

// feeds: numbers without a hole, each number one event, resumed where it was left, every text announced once and in order.
func (j *judge) feeds() {
	byNode := map[string][]Seen{}
	for _, s := range j.rec.Streams {
		events, known := byNode[s.Node]
		if s.From < s.Least || s.From > s.Most {
			j.fault("I14", s.Node, "", "the feed went on after %d, the reader was at %d to %d", s.From, s.Least, s.Most)
		}
		if !known && len(events) == 0 {
			byNode[s.Node] = []Seen{{Seq: s.From}} // the place where the reader began
		}
		byNode[s.Node] = j.stream(s, byNode[s.Node])
	}
	for node, events := range byNode {
		j.announced(node, events[1:])
		if d := j.dumps[node]; d != nil && events[len(events)-1].Seq != d.Last {
			j.fault("I14", node, "", "the reader saw up to %d, the log has %d", events[len(events)-1].Seq, d.Last)
		}
	}
}

// stream adds a stream to what the reader has seen of the feed.
func (j *judge) stream(s Stream, seen []Seen) []Seen {
	next, first := s.From+1, seen[0].Seq
	for _, e := range s.Events {
		if e.Seq != next {
			j.fault("I14", s.Node, e.ID, "after event %d came %d", next-1, e.Seq)
		}
		next = e.Seq + 1
		at := int(e.Seq - first)
		switch {
		case e.Seq <= first || at > len(seen):
			j.fault("I14", s.Node, e.ID, "event %d is out of place, the reader had %d", e.Seq, seen[len(seen)-1].Seq)
		case at == len(seen):
			seen = append(seen, e)
		case !seen[at].same(e):
			j.fault("I14", s.Node, e.ID, "event %d is now %s %s %s, it was %s %s %s", e.Seq, e.Kind, e.ID, e.State, seen[at].Kind, seen[at].ID, seen[at].State)
		}
	}
	return seen
}

// announced: each row of the store has one message event, and those of one author come in the order they are shown in,
// unless a gap was declared and filled later.
func (j *judge) announced(node string, events []Seen) {
	count := map[string]int{}
	var order []Seen
	for _, e := range events {
		if e.Kind != kindMessage {
			continue
		}
		if count[e.ID]++; count[e.ID] == 2 {
			j.fault("I14", node, e.ID, "announced twice")
		}
		j.gaps[[2]string{node, e.Peer}] = j.gaps[[2]string{node, e.Peer}] || e.Missing > 0
		order = append(order, e)
	}
	d := j.dumps[node]
	if d == nil {
		return
	}
	for peer, rows := range d.Talks {
		place := map[string]int{}
		for i, row := range rows {
			place[row.ID] = i + 1
			if count[row.ID] == 0 {
				j.fault("I14", node, row.ID, "it is in the store and was never announced")
			}
		}
		last := map[bool]int{}
		for _, e := range order {
			at := place[e.ID]
			if e.Peer != peer || at == 0 || j.gaps[[2]string{node, peer}] {
				continue
			}
			if at < last[e.Mine] {
				j.fault("I14", node, e.ID, "announced after one that is shown later")
			}
			last[e.Mine] = max(last[e.Mine], at)
		}
	}
}

// follows says which states may come after one; the reliability document allows only these.
var follows = map[string][]string{
	"queued":    {"held", "delivered", "read", "expired", "failed", "cancelled"},
	"held":      {"delivered", "read", "expired", "failed", "cancelled"},
	"expired":   {"delivered", "read"},
	"delivered": {"read"},
}

func forward(a, b string) bool { return a == b || slices.Contains(follows[a], b) }

// states: a message's state only moves forward, in the feed's order and between any two answers of which one was complete
// before the other was asked for.
func (j *judge) states() {
	looks := map[[2]string][]Look{}
	add := func(l Look) { looks[[2]string{l.Node, l.ID}] = append(looks[[2]string{l.Node, l.ID}], l) }
	for _, l := range j.rec.Looks {
		add(l)
	}
	feed := map[[2]string]Seen{}
	for _, s := range j.rec.Streams {
		for _, e := range s.Events {
			key := [2]string{s.Node, e.ID}
			last, known := feed[key]
			if !e.Mine || e.Kind != kindReceipt || known && e.Seq <= last.Seq {
				continue
			}
			if known && !forward(last.State, e.State) {
				j.fault("I9", s.Node, e.ID, "event %d says %s, event %d says %s", last.Seq, last.State, e.Seq, e.State)
			}
			feed[key] = e
			add(Look{s.Node, e.ID, e.State, 0, e.At}) // it was so when it was read, and perhaps long before
		}
	}
	for _, d := range j.rec.Dumps {
		for _, rows := range d.Talks {
			for _, row := range rows {
				if row.Mine {
					add(Look{d.Node, row.ID, row.State, endOfTime, endOfTime})
				}
			}
		}
	}
	for key, list := range looks {
		j.forwardOnly(key[0], key[1], list)
	}
}

const endOfTime = At(1<<63 - 1)

func (j *judge) forwardOnly(node, id string, list []Look) {
	slices.SortFunc(list, func(a, b Look) int { return cmp.Compare(a.Done, b.Done) })
	for i, later := range list {
		for _, before := range list[:i] {
			if before.Done < later.Begun && !forward(before.State, later.State) {
				j.fault("I9", node, id, "was %s after %.3f s and %s later", before.State, before.Done.Seconds(), later.State)
				return
			}
		}
	}
}

// delivered: whatever a sender ever called delivered is in its receiver's store.
func (j *judge) delivered() {
	held := map[string]map[string]bool{}
	for _, d := range j.rec.Dumps {
		held[d.Node] = map[string]bool{}
		for _, rows := range d.Talks {
			for _, row := range rows {
				if !row.Mine {
					held[d.Node][row.ID] = true
				}
			}
		}
	}
	told := map[string]bool{}
	say := func(id, state string) {
		op := j.ops[id]
		if op == nil || told[id] || state != "delivered" && state != "read" {
			return
		}
		told[id] = true
		if set := held[op.To]; set != nil && !set[id] {
			j.fault("I5", op.To, id, "%s called it delivered, it is not there: %q", op.From, op.Text)
		}
	}
	for _, l := range j.rec.Looks {
		say(l.ID, l.State)
	}
	for _, s := range j.rec.Streams {
		for _, e := range s.Events {
			say(e.ID, e.State)
		}
	}
	for _, d := range j.rec.Dumps {
		for _, rows := range d.Talks {
			for _, row := range rows {
				if row.Mine {
					say(row.ID, row.State)
				}
			}
		}
	}
}

package check

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// history is a run in which everything went well: alice wrote five texts to bob and he one to her, her node was killed
// once, and her feed's reader resumed and saw one event again.
func history() *Record {
	r := &Record{}
	talk := map[string][]Row{}
	for i := range 6 {
		from, to := "alice", "bob"
		if i == 3 {
			from, to = to, from
		}
		text, id := fmt.Sprintf("text %d", i), fmt.Sprintf("m%d", i)
		begun := time.Duration(10*i) * time.Millisecond
		r.Ops = append(r.Ops, Op{From: from, To: to, Text: text, Sum: Sum(text), ID: id, Accepted: true, Begun: begun, Done: begun + 5*time.Millisecond})
		r.Looks = append(r.Looks, Look{from, id, "queued", begun, begun + 5*time.Millisecond})
		row := Row{ID: id, Sum: Sum(text), Text: text, State: "delivered"}
		for _, node := range []string{"alice", "bob"} {
			row.Mine = node == from
			talk[node] = append(talk[node], row)
		}
	}
	for node, peer := range map[string]string{"alice": "bob", "bob": "alice"} {
		feed := Stream{Node: node, Least: 3, Most: 3, From: 3}
		for i, row := range talk[node] {
			feed.Events = append(feed.Events,
				Seen{Seq: uint64(4 + 2*i), Kind: "message", ID: row.ID, State: "queued", Mine: row.Mine, Peer: peer, At: time.Second},
				Seen{Seq: uint64(5 + 2*i), Kind: "receipt", ID: row.ID, State: "delivered", Mine: row.Mine, Peer: peer, At: time.Second})
		}
		again := Stream{Node: node, Least: 10, Most: 12, From: 11, Events: slices.Clone(feed.Events[8:])}
		feed.Events = feed.Events[:9]
		r.Streams = append(r.Streams, feed, again)
		r.Dumps = append(r.Dumps, Dump{Node: node, Talks: map[string][]Row{peer: talk[node]}, Last: 15})
	}
	r.Finds = []Find{{"alice", "bob", "m0", true, time.Second}}
	return r
}

func (r *Record) dump(node string) *Dump {
	i := slices.IndexFunc(r.Dumps, func(d Dump) bool { return d.Node == node })
	return &r.Dumps[i]
}

func (r *Record) feed(node string, n int) *Stream {
	for i := range r.Streams {
		if r.Streams[i].Node == node {
			if n == 0 {
				return &r.Streams[i]
			}
			n--
		}
	}
	return nil
}

func TestAGoodHistoryPasses(t *testing.T) {
	if bad := Judge(history()); len(bad) > 0 {
		t.Fatal(bad)
	}
}

func TestATextNobodyAnsweredForMayBeThereOnceOrNot(t *testing.T) {
	r := history()
	r.Ops[4].Accepted, r.Ops[4].ID = false, ""
	if bad := Judge(r); len(bad) > 0 {
		t.Fatal(bad)
	}
	r.Ops = append(r.Ops, Op{From: "alice", To: "bob", Text: "never arrived", Sum: Sum("never arrived")})
	if bad := Judge(r); len(bad) > 0 {
		t.Fatal(bad)
	}
}

// planted are histories with one thing wrong, and the rule that must catch it.
var planted = []struct {
	name, rule string
	spoil      func(r *Record)
}{
	{"a text lost at its sender", "I1", func(r *Record) {
		talk := r.dump("alice").Talks
		talk["bob"] = slices.Delete(slices.Clone(talk["bob"]), 1, 2)
	}},
	{"a text lost on the way", "E1", func(r *Record) {
		talk := r.dump("bob").Talks
		talk["alice"] = slices.Delete(slices.Clone(talk["alice"]), 1, 2)
	}},
	{"delivered, and absent", "I5", func(r *Record) {
		talk := r.dump("bob").Talks
		talk["alice"] = slices.Delete(slices.Clone(talk["alice"]), 1, 2)
	}},
	{"delivered by an answer only, and absent", "I5", func(r *Record) {
		for _, s := range r.Streams {
			for i := range s.Events {
				s.Events[i].State = ""
			}
		}
		alice, bob := r.dump("alice").Talks, r.dump("bob").Talks
		alice["bob"][1].State = "queued"
		bob["alice"] = slices.Delete(bob["alice"], 1, 2)
		r.Looks = append(r.Looks, Look{"alice", "m1", "delivered", time.Second, time.Second})
	}},
	{"delivered, and absent while it ran", "I5", func(r *Record) {
		rec := NewRecorder()
		rec.find(Find{"alice", "bob", "m0", false, time.Second})
		r.Live = rec.Record().Live
	}},
	{"one row twice", "I2", func(r *Record) {
		talk := r.dump("bob").Talks
		talk["alice"] = append(talk["alice"], talk["alice"][0])
	}},
	{"one text twice under two ids", "I2", func(r *Record) {
		talk := r.dump("bob").Talks
		twin := talk["alice"][4]
		r.Ops[4].Accepted = false
		twin.ID = "m9"
		talk["alice"] = append(talk["alice"], twin)
	}},
	{"two texts under one id", "I1", func(r *Record) { r.Ops[1].ID = "m0" }},
	{"two rows in the other order", "I4", func(r *Record) {
		talk := r.dump("bob").Talks["alice"]
		talk[1], talk[2] = talk[2], talk[1]
	}},
	{"both stores in an order that the answers contradict", "I4", func(r *Record) {
		for _, rows := range [][]Row{r.dump("bob").Talks["alice"], r.dump("alice").Talks["bob"]} {
			rows[1], rows[2] = rows[2], rows[1]
		}
	}},
	{"a foreign text", "I3", func(r *Record) {
		talk := r.dump("bob").Talks
		talk["alice"] = append(talk["alice"], Row{ID: "m9", Sum: Sum("buy this"), Text: "buy this"})
	}},
	{"a text of somebody else", "I3", func(r *Record) { r.dump("bob").Talks["alice"][1].Mine = true }},
	{"a changed text", "I3", func(r *Record) { r.dump("bob").Talks["alice"][1].Sum = Sum("text l") }},
	{"an empty text", "I3", func(r *Record) { r.dump("bob").Talks["alice"][1].Sum = Sum("") }},
	{"a gap that was never filled", "E1", func(r *Record) { r.dump("bob").Talks["alice"][1].Missing = 2 }},
	{"a text given up", "E1", func(r *Record) {
		row := &r.dump("alice").Talks["bob"][1]
		row.State, row.Why = "failed", "refused by the other side"
	}},
	{"a state that moves back in the feed", "I9", func(r *Record) {
		r.feed("alice", 0).Events[3] = Seen{Seq: 7, Kind: "receipt", ID: "m0", State: "held", Mine: true, Peer: "bob"}
	}},
	{"a state that moves back between two answers", "I9", func(r *Record) {
		r.Looks = append(r.Looks, Look{"alice", "m0", "delivered", 2, 3}, Look{"alice", "m0", "queued", 4, 5})
	}},
	{"a state that moves back from the feed to an answer", "I9", func(r *Record) {
		r.Looks = append(r.Looks, Look{"alice", "m0", "queued", 2 * time.Second, 3 * time.Second})
	}},
	{"a state that is back at the end", "I9", func(r *Record) { r.dump("alice").Talks["bob"][1].State = "queued" }},
	{"failed after delivered", "I9", func(r *Record) { r.dump("alice").Talks["bob"][1].State = "failed" }},
	{"an event never seen", "I14", func(r *Record) {
		s := r.feed("alice", 0)
		s.Events = slices.Delete(s.Events, 2, 3)
	}},
	{"an event seen under two numbers", "I14", func(r *Record) {
		s := r.feed("bob", 1)
		s.Events = append(s.Events, Seen{Seq: 16, Kind: "message", ID: "m0", Peer: "alice"})
		r.dump("bob").Last = 16
	}},
	{"a text never announced", "I14", func(r *Record) {
		r.feed("bob", 0).Events[4] = Seen{Seq: 8, Kind: "setting"}
	}},
	{"a number that became another event", "I14", func(r *Record) { r.feed("alice", 1).Events[0].ID = "m0" }},
	{"a feed that resumes too late", "I14", func(r *Record) {
		s := r.feed("alice", 1)
		s.From, s.Events = 13, s.Events[2:]
	}},
	{"a feed that resumes too early", "I14", func(r *Record) { r.feed("alice", 1).Least, r.feed("alice", 1).Most = 12, 12 }},
	{"an end of the log that was not seen", "I14", func(r *Record) { r.dump("alice").Last = 17 }},
	{"texts announced in another order", "I14", func(r *Record) {
		e := r.feed("bob", 0).Events
		e[2].ID, e[4].ID = e[4].ID, e[2].ID
	}},
	{"a damaged store", "damage", func(r *Record) { r.dump("bob").Damage = []string{"a table does not open"} }},
}

func TestEveryPlantedFaultIsCaught(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			r := history()
			p.spoil(r)
			bad := Judge(r)
			if !slices.ContainsFunc(bad, func(v Violation) bool { return v.Rule == p.rule }) {
				t.Errorf("want %s, got %v", p.rule, bad)
			}
		})
	}
}

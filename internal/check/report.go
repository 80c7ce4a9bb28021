package check

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sotto/control"
)

func (f *Figures) count(r *Record) {
	f.Kills = len(r.Kills)
	for _, k := range r.Kills {
		if k.Alive < insideStart {
			f.InStart++
		}
		if k.Phase == phaseAll {
			f.AtOnce++
		}
	}
	for _, op := range r.Ops {
		if op.Accepted {
			f.Accepted++
		}
		if op.Tries > 1 {
			f.Retried++
		}
	}
	last := map[string]uint64{}
	for _, s := range r.Streams {
		for _, e := range s.Events {
			f.Events++
			if e.Seq <= last[s.Node] {
				f.Repeated++
			}
			last[s.Node] = max(last[s.Node], e.Seq)
		}
	}
	f.Found = len(r.Finds)
}

// reopen is a quantile of the times from start to answer.
func (f Figures) reopen(q float64) time.Duration {
	if len(f.Reopened) == 0 {
		return 0
	}
	list := slices.Sorted(slices.Values(f.Reopened))
	return list[int(q*float64(len(list)-1))].Round(time.Millisecond)
}

// Add joins the figures of two runs.
func (f *Figures) Add(o Figures) {
	f.Kills, f.InStart, f.AtOnce, f.Took = f.Kills+o.Kills, f.InStart+o.InStart, f.AtOnce+o.AtOnce, f.Took+o.Took
	f.Accepted, f.Retried, f.Events, f.Repeated = f.Accepted+o.Accepted, f.Retried+o.Retried, f.Events+o.Events, f.Repeated+o.Repeated
	f.Found, f.Late, f.Reopened = f.Found+o.Found, f.Late+o.Late, append(f.Reopened, o.Reopened...)
	if f.AnonMiB[0] == 0 {
		f.AnonMiB[0], f.Files[0] = o.AnonMiB[0], o.Files[0]
	}
	f.AnonMiB[1], f.Files[1] = max(f.AnonMiB[1], o.AnonMiB[1]), max(f.Files[1], o.Files[1])
}

// String is the figures in a few lines.
func (f Figures) String() string {
	slow := 0
	for _, d := range f.Reopened {
		if d > 2*time.Second {
			slow++
		}
	}
	return fmt.Sprintf(`%d kills in %.0f s: %d within %s of a start, %d of all nodes at once
%d texts accepted (%d asked for more than once), each on disk at both ends once, in order
%d events read, %d of them again after a crash; %d delivered texts looked for at once, %d shown a little later
reopened %d times: median %s, 99 %% %s, worst %s, %d above 2 s
memory not mapped from files %.0f MiB at first, %.0f at most; open files %d at first, %d at most
`, f.Kills, f.Took.Seconds(), f.InStart, insideStart, f.AtOnce, f.Accepted, f.Retried, f.Events, f.Repeated, f.Found, f.Late,
		len(f.Reopened), f.reopen(0.5), f.reopen(0.99), f.reopen(1), slow, f.AnonMiB[0], f.AnonMiB[1], f.Files[0], f.Files[1])
}

// keepTail remembers what the API showed.
func (h *home) keepTail(peer string, list []control.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tails == nil {
		h.tails = map[string][]control.Message{}
	}
	h.tails[peer] = list
}

// compareTails holds what the API showed against the end of what the store holds.
func (h *home) compareTails(d Dump) {
	for peer, list := range h.tails {
		rows := d.Talks[peer]
		if len(rows) < len(list) {
			h.rec.Violate("I1", h.name, "", "the API showed %d messages with %s, the store holds %d", len(list), peer, len(rows))
			continue
		}
		for i, row := range rows[len(rows)-len(list):] {
			if list[i].ID != row.ID || Sum(list[i].Text) != row.Sum {
				h.rec.Violate("I3", h.name, row.ID, "the API showed %s in its place", list[i].ID)
				break
			}
		}
	}
}

// Explain tells everything about a failed run: what is wrong, one id's life everywhere, and when who was killed.
func (r *Result) Explain(ctx context.Context, o Options) {
	for i, v := range r.Bad {
		if i == 20 {
			_, _ = fmt.Fprintf(o.Out, "… and %d more\n", len(r.Bad)-i)
			break
		}
		_, _ = fmt.Fprintln(o.Out, v)
	}
	if i := slices.IndexFunc(r.Bad, func(v Violation) bool { return v.ID != "" }); i >= 0 {
		r.life(ctx, o, r.Bad[i].ID)
	} else {
		r.timeline(o.Out, r.last()-10*time.Second, r.last())
	}
	path := filepath.Join(o.Dir, "record.json")
	if text, err := json.Marshal(r.Record); err == nil && os.WriteFile(path, text, 0o600) == nil {
		_, _ = fmt.Fprintf(o.Out, "the whole record is %s\n", path)
	}
}

func (r *Result) last() At {
	if n := len(r.Record.Kills); n > 0 {
		return r.Record.Kills[n-1].At
	}
	return 0
}

func (r *Result) life(ctx context.Context, o Options, id string) {
	_, _ = fmt.Fprintf(o.Out, "the life of %s:\n", id)
	from, to := r.last()-5*time.Second, r.last()
	for _, op := range r.Record.Ops {
		if op.ID != id {
			continue
		}
		from, to = op.Begun-time.Second, op.Done+5*time.Second
		_, _ = fmt.Fprintf(o.Out, "  %.3f s: %s to %s %q, tried %d times, accepted at %.3f s\n", op.Begun.Seconds(), op.From, op.To, op.Text, op.Tries, op.Done.Seconds())
	}
	for _, l := range r.Record.Looks {
		if l.ID == id {
			_, _ = fmt.Fprintf(o.Out, "  %.3f s: %s said %s\n", l.Done.Seconds(), l.Node, l.State)
		}
	}
	for _, s := range r.Record.Streams {
		for _, e := range s.Events {
			if e.ID == id {
				_, _ = fmt.Fprintf(o.Out, "  %.3f s: %s's feed, %d: %s %s\n", e.At.Seconds(), s.Node, e.Seq, e.Kind, e.State)
			}
		}
	}
	for _, d := range r.Record.Dumps {
		h := &home{name: d.Node, dir: filepath.Join(o.Dir, d.Node)}
		text, err := h.life(ctx, id)
		if err != nil {
			text = fmt.Sprintf("  %s: %v\n", d.Node, err)
		}
		_, _ = fmt.Fprint(o.Out, text)
	}
	r.timeline(o.Out, from, to)
}

// timeline prints the kills of a while.
func (r *Result) timeline(out io.Writer, from, to At) {
	_, _ = fmt.Fprintf(out, "kills from %.3f to %.3f s:\n", from.Seconds(), to.Seconds())
	for _, k := range r.Record.Kills {
		if from <= k.At && k.At <= to {
			_, _ = fmt.Fprintf(out, "  %.3f s: %s, %s, %s after its start\n", k.At.Seconds(), k.Node, k.Phase, k.Alive.Round(time.Millisecond))
		}
	}
}

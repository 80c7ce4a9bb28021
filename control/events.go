package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A reader that takes nothing for this long is cut off; it resumes where it was.
const streamStall = 30 * time.Second

const eventPage = 256

// events streams the log from where the reader was: Last-Event-ID, else ?after=, else ?cursor='s place, else its end.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		refuse(w, http.StatusServiceUnavailable, Errorf(ExitRefused, "too_many_streams", "Close another event stream first.", "at most %d event streams at once", MaxStreams))
		return
	}
	ctx, done := ending(r.Context())
	defer done()
	after, err := s.startOf(ctx, r)
	if err != nil {
		refuse(w, http.StatusBadRequest, asError(err))
		return
	}
	out := newStream(w, r)
	if err := out.open(after); err != nil {
		return
	}
	if reset, err := s.resetFor(ctx, after); err != nil {
		return
	} else if reset != nil {
		after = reset.Seq
		if out.put(*reset) != nil || out.flush() != nil {
			return
		}
	}
	kinds := kindsOf(r)
	for {
		page, err := s.core.Events(ctx, after, eventPage)
		if err != nil { // the client left, or the node is stopping: it resumes later
			if s.stopped.Load() && r.Context().Err() == nil {
				_ = out.put(Event{V: 1, Seq: after, At: s.cfg.Clock.Now().UTC(), Kind: EventStopped})
				_ = out.flush()
			}
			return
		}
		for _, e := range page {
			after = e.Seq
			if len(kinds) > 0 && !slices.Contains(kinds, e.Kind) {
				continue
			}
			if out.put(e) != nil {
				return
			}
		}
		if out.flush() != nil {
			return
		}
	}
}

func kindsOf(r *http.Request) []string {
	if q := r.URL.Query().Get("kinds"); q != "" {
		return strings.Split(q, ",")
	}
	return nil
}

func (s *Server) startOf(ctx context.Context, r *http.Request) (uint64, error) {
	given := r.Header.Get("Last-Event-ID")
	if given == "" {
		given = r.URL.Query().Get("after")
	}
	if given != "" {
		n, err := strconv.ParseUint(given, 10, 64)
		if err != nil {
			return 0, Errorf(ExitUsage, "bad_place", "Give the number of the last event you had.", "%q is not an event number", short(given))
		}
		return n, nil
	}
	if name := r.URL.Query().Get("cursor"); name != "" {
		c, err := s.cursor(ctx, CursorParams{name})
		return c.Seq, err
	}
	_, last, err := s.core.Range(ctx)
	return last, err
}

func short(s string) string {
	if len(s) > 32 {
		return s[:32] + "…"
	}
	return s
}

// resetFor tells a reader whose place the log no longer has, or never had, to start over from what is kept.
func (s *Server) resetFor(ctx context.Context, after uint64) (*Event, error) {
	first, last, err := s.core.Range(ctx)
	if err != nil || after == 0 || (after <= last && after+1 >= first) {
		return nil, err
	}
	from := last
	if after < first {
		from = first - 1
	}
	return &Event{V: 1, Seq: from, At: s.cfg.Clock.Now().UTC(), Kind: EventReset}, nil
}

// cursor returns a reader's place; a new reader's is the end of the log, kept at once so that nothing later is missed.
func (s *Server) cursor(ctx context.Context, p CursorParams) (Cursor, error) {
	if err := checkCursor(p.Cursor); err != nil {
		return Cursor{}, err
	}
	seq, ok, err := s.core.Cursor(ctx, p.Cursor)
	if err != nil || ok {
		return Cursor{Cursor: p.Cursor, Seq: seq}, err
	}
	_, last, err := s.core.Range(ctx)
	if err == nil {
		err = s.core.AckCursor(ctx, p.Cursor, last)
	}
	return Cursor{Cursor: p.Cursor, Seq: last, New: true}, err
}

// ack moves a reader's place, no further than the log goes: what has not happened yet cannot be done.
func (s *Server) ack(ctx context.Context, p AckParams) (None, error) {
	if err := checkCursor(p.Cursor); err != nil {
		return None{}, err
	}
	_, last, err := s.core.Range(ctx)
	if err != nil {
		return None{}, err
	}
	if p.Seq > last {
		return None{}, Errorf(ExitUsage, "bad_place", "Give the number of the last event you had.", "event %d has not happened yet; the newest is %d", p.Seq, last)
	}
	return None{}, s.core.AckCursor(ctx, p.Cursor, p.Seq)
}

func checkCursor(name string) error {
	if name == "" || len(name) > 64 {
		return Errorf(ExitUsage, "bad_cursor", "Use 1 to 64 characters.", "a cursor needs a name of 1 to 64 bytes")
	}
	return nil
}

// stream writes events as SSE or as JSON lines.
type stream struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController
	lines bool
	dirty bool
}

func newStream(w http.ResponseWriter, r *http.Request) *stream {
	accept := r.Header.Get("Accept")
	return &stream{w: w, ctl: http.NewResponseController(w), lines: strings.Contains(accept, "application/jsonl") || strings.Contains(accept, "application/x-ndjson")}
}

// open sends the headers at once, so that a reader knows that it is listening, and from where.
func (o *stream) open(after uint64) error {
	o.w.Header().Set("Content-Type", "text/event-stream")
	if o.lines {
		o.w.Header().Set("Content-Type", "application/jsonl")
	}
	o.w.Header().Set("Sotto-After", strconv.FormatUint(after, 10))
	o.w.WriteHeader(http.StatusOK)
	o.dirty = true
	return o.flush()
}

func (o *stream) put(e Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", e.Seq, err)
	}
	o.dirty = true
	_ = o.ctl.SetWriteDeadline(time.Now().Add(streamStall))
	if o.lines {
		_, err = fmt.Fprintf(o.w, "%s\n", data)
	} else {
		_, err = fmt.Fprintf(o.w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind, data)
	}
	return err
}

func (o *stream) flush() error {
	if !o.dirty {
		return nil
	}
	o.dirty = false
	_ = o.ctl.SetWriteDeadline(time.Now().Add(streamStall))
	return o.ctl.Flush()
}

// progress orders the states that a message passes on its way.
func progress(state string) int {
	return slices.Index([]string{StateQueued, StateHeld, StateDelivered, StateRead}, state)
}

// wait answers when the message has reached the state, will never reach it, or the time is over.
func (s *Server) wait(ctx context.Context, p WaitParams) (Message, error) {
	if progress(p.State) < 0 {
		return Message{}, Errorf(ExitUsage, "bad_state", "Use queued, held, delivered or read.", "cannot wait for the state %q", short(p.State))
	}
	if p.TimeoutMS < 0 || p.TimeoutMS > MaxWait.Milliseconds() {
		return Message{}, Errorf(ExitUsage, "bad_timeout", "Use at most 24h.", "cannot wait for %d ms", p.TimeoutMS)
	}
	limited, done := ending(ctx)
	defer done()
	if p.TimeoutMS > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(limited, time.Duration(p.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	_, after, err := s.core.Range(ctx)
	if err != nil {
		return Message{}, err
	}
	for {
		m, err := s.core.Message(ctx, p.ID)
		if err != nil {
			return Message{}, err
		}
		if progress(m.State) >= progress(p.State) {
			return m, nil
		}
		if progress(m.State) < 0 {
			return Message{}, Errorf(ExitFailed, "message_"+m.State, "See what happened: sotto trace "+m.ID, "message %s %s%s", m.ID, m.State, because(m.Why))
		}
		page, err := s.core.Events(limited, after, eventPage)
		switch {
		case err == nil:
			after = page[len(page)-1].Seq
		case errors.Is(context.Cause(limited), ErrStopping) && s.stopped.Load():
			return Message{}, ErrStopped
		case errors.Is(context.Cause(limited), ErrStopping):
			return Message{}, ErrStopping
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return Message{}, Errorf(ExitNotInTime, "not_in_time", goesOn(m), "message %s is %s, not %s yet", m.ID, m.State, p.State)
		default:
			return Message{}, err
		}
	}
}

// goesOn says what becomes of a message that has not come as far as was asked.
func goesOn(m Message) string {
	if m.State == StateDelivered {
		return "It is on their disk. Whether they tell what they have read is their choice, and off unless they turned it on at their side (read-marks)."
	}
	return "It stays queued and goes out while sotto runs: sotto trace " + m.ID
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sotto/control"
)

func (a *app) sendCommand() *cobra.Command {
	var p control.SendParams
	var expire age
	var wait string
	c := &cobra.Command{
		Use: "send NAME [TEXT | -]", Short: "Send a message",
		Long: "Queues the message on disk and returns; the node goes on from there. Without a running node, one runs in this process until\n" +
			"the message is delivered or --timeout is over; then it stays queued. Into a pipe or a file it prints the message's id.",
		Example: "sotto send bob \"lunch at 1?\" --wait delivered\nuptime | sotto send bob -",
		Args:    between(1, 1<<16, []string{"NAME"}), ValidArgsFunction: a.completeName,
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if wait != "" && !settable(wait) {
				return usage("Use queued, held, delivered or read.", "--wait %q", line(wait))
			}
			var err error
			p.To, p.ExpireSeconds = args[0], expire.seconds()
			if p.Text, err = a.textOf(cmd.Context(), args[1:]); err != nil {
				return err
			}
			if p.Key == "" {
				p.Key = rand.Text() // so that a repetition after a node's end cannot send twice
			}
			return a.send(cmd.Context(), p, wait)
		}),
	}
	f := c.Flags()
	f.StringVar(&p.ReplyTo, "reply", "", "answer the message with this id")
	f.Var(&expire, "expire", "give up, and say so, after this time (1d)")
	f.StringVar(&wait, "wait", "", "wait until it is queued, held, delivered or read; exit 5 if --timeout is over first")
	f.StringVar(&p.Key, "key", "", "idempotency key: the same key never sends twice")
	f.BoolVar(&p.RequireVerified, "require-verified", false, "send only to a contact you compared safety numbers with")
	return c
}

func settable(state string) bool {
	switch state {
	case control.StateQueued, control.StateHeld, control.StateDelivered, control.StateRead:
		return true
	}
	return false
}

// textOf takes the text from the arguments, or from stdin for "-". It must be UTF-8 already: guessing would change it.
func (a *app) textOf(ctx context.Context, args []string) (string, error) {
	var body string
	switch {
	case len(args) == 0:
		return "", usage("Give it as an argument, or - to read it from stdin.", "the text is missing")
	case len(args) == 1 && args[0] == "-":
		raw, err := a.readAll(ctx, "the text", control.MaxText+2)
		if err != nil {
			return "", fmt.Errorf("read the text from stdin: %w", err)
		}
		body = strings.TrimSuffix(string(raw), "\n")
	default:
		body = strings.Join(args, " ")
	}
	switch {
	case strings.TrimSpace(body) == "":
		return "", control.Errorf(control.ExitUsage, "empty_text", "Give it as an argument, or - to read it from stdin.", "the text is empty")
	case len(body) > control.MaxText:
		return "", control.Errorf(control.ExitRefused, "too_large", "Split it.", "the text is larger than the 64 KiB that one message holds")
	case !utf8.ValidString(body):
		return "", control.Errorf(control.ExitUsage, "bad_text", "Convert it first, for example with iconv.", "the text is not valid UTF-8; nothing was sent")
	}
	return body, nil
}

func (a *app) send(ctx context.Context, p control.SendParams, wait string) error {
	return a.with(ctx, needNetwork, func(l *link) error {
		m, err := l.Send(ctx, p)
		if err != nil {
			return err
		}
		sent := m
		switch {
		case wait != "":
			stop := a.waiting(ctx, "· queued as %s; waiting until it is %s…", shortID(sent.ID), wait)
			m, err = l.Wait(ctx, sent.ID, wait, a.timeout)
			if stop(); err != nil {
				if ctx.Err() != nil {
					a.sayLeft(sent, l.own)
				}
				if errors.Is(err, &control.Error{Code: "not_in_time"}) {
					a.sayDoubt(ctx, l, sent)
				}
				return a.lateHere(ctx, l, sent.ID, err)
			}
		case l.own:
			stop := a.waiting(ctx, "· queued as %s; waiting until it is delivered…", shortID(sent.ID))
			m, err = a.handOver(ctx, l, m)
			if stop(); err != nil {
				if ctx.Err() != nil {
					a.sayLeft(sent, l.own)
				}
				return err
			}
		}
		return a.result(m, func(w io.Writer) {
			if !tty(a.env.Stdout) {
				_, _ = fmt.Fprintln(w, m.ID)
			}
			a.saySent(m, l.own)
			a.sayDoubt(ctx, l, m)
		})
	})
}

// sayLeft tells somebody who waits no longer what becomes of the message.
func (a *app) sayLeft(m control.Message, own bool) {
	if own {
		a.say("queued as %s; it goes out next time sotto runs", shortID(m.ID))
		return
	}
	a.say("queued as %s; it still goes out", shortID(m.ID))
}

// lateHere gives the advice for a message that waits in a home whose node ends with this command.
func (a *app) lateHere(ctx context.Context, l *link, id string, err error) error {
	var e *control.Error
	if !l.own || !asControl(err, &e) || e.Code != "not_in_time" {
		return err
	}
	if m, lost := control.Call[control.Message](ctx, l.Client, "message.get", control.IDParams{ID: id}); lost != nil || m.State != control.StateQueued {
		return err
	}
	late := *e
	late.Hint = "It stays queued and goes out while sotto runs: sotto up"
	return &late
}

// sayDoubt tells what makes it doubtful that a message went to whom it was meant for, or that a queued one will ever arrive.
func (a *app) sayDoubt(ctx context.Context, l *link, m control.Message) {
	c, err := l.Contact(ctx, m.Conv.Name)
	if err != nil {
		return
	}
	alarm := c.Verified == "changed" || c.Verified == "differs"
	if alarm {
		a.say("! %s: %s. Somebody else may read what you write there: sotto verify %s", line(c.Name), verifiedWord(c.Verified), shellWord(c.Name))
	}
	if c.Warning != "" && (alarm || m.State == control.StateQueued) {
		a.say("! %s: %s", line(c.Name), line(c.Warning))
	}
}

// handOver keeps a node of our own up until the message has left it, for at most --timeout.
func (a *app) handOver(ctx context.Context, l *link, m control.Message) (control.Message, error) {
	later, err := l.Wait(ctx, m.ID, control.StateHeld, a.timeout)
	if err == nil {
		return later, nil
	}
	var e *control.Error
	if asControl(err, &e) && e.Exit == control.ExitNotInTime {
		return m, nil // it stays queued, which is what was promised
	}
	return m, err
}

// heldBy says how many mailboxes keep a message: "⇡ held 2/3", or without the sign where signs are words.
func (a *app) heldBy(m control.Message) string {
	by := fmt.Sprintf("held %d/%d", m.Held.By, m.Held.Of)
	if a.mark(m) == m.State {
		return by
	}
	return "⇡ " + by
}

func (a *app) saySent(m control.Message, own bool) {
	name, id := line(m.Conv.Name), shortID(m.ID)
	switch {
	case m.State == control.StateQueued && own:
		a.say("· queued for %s; goes out next time sotto runs  (%s)", name, id)
	case m.State == control.StateQueued:
		a.say("· queued for %s  (%s)", name, id)
	case m.State == control.StateHeld && m.Held != nil:
		a.say("%s for %s until %s  (%s)", a.heldBy(m), name, m.Held.Until.Local().Format("2 Jan"), id)
	case a.mark(m) == m.State:
		a.say("%s to %s  (%s)", m.State, name, id)
	default:
		a.say("%s %s to %s  (%s)", a.mark(m), m.State, name, id)
	}
}

func (a *app) traceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "trace ID", Short: "Show everything that happened to a message", Args: exactly("ID"),
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), needStore, func(l *link) error {
				t, err := l.Trace(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.result(t, func(w io.Writer) { a.printTrace(w, t) })
			})
		}),
	}
}

func (a *app) printTrace(w io.Writer, t control.Trace) {
	var rows [][]string
	for _, s := range t.Steps {
		at := s.At.UTC().Format("2006-01-02T15:04:05.000Z07:00")
		if tty(a.env.Stdout) {
			at = s.At.Local().Format("15:04:05.000")
		}
		detail := s.Detail
		if s.Times > 0 {
			detail = strings.TrimSpace(fmt.Sprintf("%s %d times, the last %s", detail, s.Times, a.stamp(s.Last)))
		}
		rows = append(rows, []string{at, s.What, detail})
	}
	a.table(w, []string{"AT", "WHAT", "DETAIL"}, rows)
}

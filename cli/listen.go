package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sotto/control"
)

// listening is what watch and wait share: where to begin and whom to hear.
type listening struct {
	cursor, after, conv string
	all                 bool
	limit               time.Duration
	begun               time.Time
	seen                *uint64 // the last event handed out: where to go on when another node takes over
}

func (a *app) watchCommand() *cobra.Command {
	var p listening
	var command string
	c := &cobra.Command{
		Use: "watch [NAME]", Short: "Print messages as they arrive",
		Long: "Prints what others send from now on, until it is stopped or, if that was given, --timeout is over (exit 0). With --cursor the node\n" +
			"remembers how far this reader has come, so that one that was away misses nothing. With --all every event is printed: own messages,\n" +
			"receipts, contacts, invites. Into a pipe, columns are those of sotto read (id, time, author, state, text); with --all they are kind,\n" +
			"time, contact, id, state, and of a message author and text.",
		Example: "sotto watch\nsotto watch --json --cursor backup-bot | while read -r m; do …; done\nsotto watch --cursor bell --exec 'notify-send sotto'",
		Args:    atMost("NAME"), ValidArgsFunction: a.completeName,
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				p.conv = args[0]
			}
			if err := p.check(cmd.Flags()); err != nil {
				return err
			}
			if cmd.Flags().Changed("timeout") {
				p.limit = a.timeout
			}
			return a.with(cmd.Context(), needNetwork, func(l *link) error {
				err := a.listen(cmd.Context(), l, &p, func(e control.Event) (bool, error) {
					if command != "" {
						return false, a.execute(cmd.Context(), command, e)
					}
					return false, a.printEvent(e, p.all)
				})
				if l.own && errors.Is(err, control.ErrStopped) {
					return nil // sotto down ended this very process, as it should
				}
				if errors.Is(err, &control.Error{Code: "nothing_came"}) {
					return nil // the time is over, and what came was printed
				}
				return err
			})
		}),
	}
	p.flags(c)
	c.Flags().BoolVar(&p.all, "all", false, "every event, not only others' messages")
	c.Flags().StringVar(&command, "exec", "", "run this shell command for each, with the JSON on its stdin; a failure ends the watch before the cursor moves")
	return c
}

func (p *listening) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.cursor, "cursor", "", "go on where the reader of this name was")
	c.Flags().StringVar(&p.after, "after", "", "begin after this event number or message id")
}

// check refuses a cursor without a name: nothing would be remembered.
func (p *listening) check(f *pflag.FlagSet) error {
	if f.Changed("cursor") && p.cursor == "" {
		return usage("Give the reader a name, or leave --cursor out.", "--cursor is empty")
	}
	return nil
}

func (a *app) waitCommand() *cobra.Command {
	var p listening
	var match string
	c := &cobra.Command{
		Use: "wait", Short: "Wait for one message and print it",
		Long: "Ends with the first message that others send from now on (or since --cursor or --after) and that fits. Waits for 60 s unless\n" +
			"--timeout says otherwise; exit 5 when nothing came.",
		Example: "id=$(sotto send bob \"ok?\" --jq .id)\nsotto wait --from bob --after $id --match '^(yes|no)$' --timeout 10m --jq .text",
		Args:    exactly(),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			if err := p.check(cmd.Flags()); err != nil {
				return err
			}
			re, err := regexp.Compile(match)
			if err != nil {
				return usage("Write a regular expression as in RE2.", "--match: %v", err)
			}
			p.limit = a.timeout
			if !cmd.Flags().Changed("timeout") {
				p.limit = time.Minute
			}
			return a.with(cmd.Context(), needNetwork, func(l *link) error {
				return a.listen(cmd.Context(), l, &p, func(e control.Event) (bool, error) {
					if !re.MatchString(e.Message.Text) {
						return false, nil
					}
					return true, a.printEvent(e, false)
				})
			})
		}),
	}
	p.flags(c)
	c.Flags().StringVar(&p.conv, "from", "", "only from this contact")
	c.Flags().StringVar(&match, "match", "", "only a text that fits this regular expression")
	return c
}

var errNothingCame = errors.New("nothing came")

// until bounds listening from the moment it first begins; no limit leaves it to the context.
func (p *listening) until(ctx context.Context, now time.Time) (context.Context, context.CancelFunc) {
	if p.limit == 0 {
		return context.WithCancel(ctx)
	}
	if p.begun.IsZero() {
		p.begun = now
	}
	return context.WithTimeoutCause(ctx, p.limit-now.Sub(p.begun), errNothingCame)
}

// listen hands events to fn until it has had enough, and moves the cursor after each.
func (a *app) listen(ctx context.Context, l *link, p *listening, fn func(control.Event) (bool, error)) error {
	conv := ""
	if p.conv != "" {
		c, err := l.Contact(ctx, p.conv)
		if err != nil {
			return err
		}
		conv = c.Name
	}
	place := control.StreamParams{Cursor: p.cursor, After: p.seen}
	if p.after != "" && p.seen == nil {
		seq, err := a.placeOf(ctx, l, p.after)
		if err != nil {
			return err
		}
		place.After = &seq
	}
	hearing, stop := p.until(ctx, a.clock.Now())
	defer stop()
	stream, err := l.Events(hearing, place)
	if err != nil {
		return p.over(hearing, err)
	}
	defer stream.Close()
	for {
		e, err := stream.Next()
		switch {
		case err != nil:
			return p.over(hearing, ended(ctx, err))
		case e.Kind == control.EventStopped:
			return control.ErrStopped
		}
		enough := false
		if p.all && (conv == "" || concerns(e, conv)) || wanted(e, conv) {
			if enough, err = fn(e); err != nil {
				return err
			}
		}
		if p.cursor != "" {
			if err := l.Ack(ctx, p.cursor, e.Seq); err != nil {
				return err
			}
		}
		if enough {
			return nil
		}
		p.seen = &e.Seq
	}
}

// over says that nothing came, if that is why listening ended.
func (p *listening) over(hearing context.Context, err error) error {
	early := p.limit > 0 && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, &control.Error{Code: "timeout"})) // a socket's deadline may strike before its context's
	if !early && !errors.Is(context.Cause(hearing), errNothingCame) {
		return err
	}
	return control.Errorf(control.ExitNotInTime, "nothing_came", "Wait longer with --timeout, or look at: sotto inbox", "no such message came in %s", p.limit)
}

// wanted is a message from somebody else.
func wanted(e control.Event, conv string) bool {
	return e.Kind == control.EventMessage && e.Message != nil && !e.Message.From.Me && (conv == "" || concerns(e, conv))
}

func concerns(e control.Event, conv string) bool {
	switch {
	case e.Message != nil:
		return e.Message.Conv.Name == conv
	case e.Contact != nil:
		return e.Contact.Name == conv
	default:
		return e.Kind == control.EventReset
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return control.ErrNoNode
	}
	return err
}

// placeOf is an event's number, given itself or as the message it announced.
func (a *app) placeOf(ctx context.Context, l *link, after string) (uint64, error) {
	if n, err := strconv.ParseUint(after, 10, 64); err == nil {
		return n, nil
	}
	m, err := control.Call[control.Message](ctx, l.Client, "message.get", control.IDParams{ID: after})
	return m.Seq, err
}

// printEvent prints a message as it is, or any event with --all.
func (a *app) printEvent(e control.Event, all bool) error {
	if a.json && all {
		return a.printJSON(e)
	}
	if a.json {
		return a.printJSON(e.Message)
	}
	return a.result(nil, func(w io.Writer) {
		switch {
		case tty(a.env.Stdout):
			_, _ = fmt.Fprintln(w, a.eventLine(e))
		case all:
			a.table(w, nil, [][]string{eventRow(e)})
		default:
			a.table(w, nil, messageRows([]control.Message{*e.Message}))
		}
	})
}

// eventRow are the columns that programs get with --all: kind and time, then the contact, the id and the state where the kind
// has them, and of a message its author and text.
func eventRow(e control.Event) []string {
	row := []string{e.Kind, e.At.UTC().Format(time.RFC3339)}
	switch {
	case e.Message != nil && e.Kind == control.EventMessage:
		return append(row, e.Message.Conv.Name, e.Message.ID, e.Message.State, e.Message.From.Name, e.Message.Text)
	case e.Message != nil:
		return append(row, e.Message.Conv.Name, e.Message.ID, e.Message.State)
	case e.Contact != nil:
		return append(row, e.Contact.Name, e.Contact.ID, e.Contact.State)
	case e.Invite != nil:
		return append(row, "", e.Invite.ID, e.Invite.State)
	}
	return row
}

func (a *app) eventLine(e control.Event) string {
	switch {
	case e.Kind == control.EventMessage && e.Message != nil:
		if e.Message.From.Me {
			return "[" + line(e.Message.Conv.Name) + "] " + a.spoken(*e.Message)
		}
		return a.spoken(*e.Message)
	case e.Kind == control.EventReceipt && e.Message != nil:
		return fmt.Sprintf("%s %s to %s is %s", a.when(e.At), shortID(e.Message.ID), line(e.Message.Conv.Name), e.Message.State)
	case e.Contact != nil:
		return fmt.Sprintf("%s contact %s is %s", a.when(e.At), line(e.Contact.Name), e.Contact.State)
	case e.Invite != nil:
		return fmt.Sprintf("%s invite %s is %s", a.when(e.At), shortID(e.Invite.ID), e.Invite.State)
	default:
		return fmt.Sprintf("%s %s", a.when(e.At), e.Kind)
	}
}

// execute runs a person's own command for an event. What a peer wrote goes to its stdin only, never into the command.
func (a *app) execute(ctx context.Context, command string, e control.Event) error {
	var v any = e
	if e.Message != nil {
		v = e.Message
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", e.Seq, err)
	}
	shell := []string{"/bin/sh", "-c"}
	if runtime.GOOS == "windows" {
		shell = []string{"cmd", "/C"}
	}
	cmd := exec.CommandContext(ctx, shell[0], append(shell[1:], command)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(raw, '\n')), a.env.Stdout, a.env.Stderr
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return control.Errorf(control.ExitFailed, "exec_failed", "Correct the command; the same message comes again with the same --cursor.",
			"%q failed on event %d: %v", strings.TrimSpace(command), e.Seq, err)
	}
	return ctx.Err()
}

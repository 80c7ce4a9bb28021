package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sotto/control"
)

func (a *app) chatCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "chat [NAME]", Short: "Write and read line by line",
		Long: "Each line you type is a message to the chat that the prompt names; what arrives is printed above the line you are typing. The\n" +
			"newest of your messages is named again when its state changes. With TERM=dumb nothing is ever redrawn, as screen readers like\n" +
			"it. Into a pipe it prints the same, with local times: programs are better served by sotto watch and sotto read.\n\n" + chatHelp,
		Args: atMost("NAME"), ValidArgsFunction: a.completeName,
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if a.json {
				return errChatJSON()
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return unlessStopped(a.with(cmd.Context(), needNetwork, func(l *link) error { return a.chat(cmd.Context(), l, &name, true) }))
		}),
	}
	c.Flags().Bool("plain", true, "plain lines; the only form there is")
	_ = c.Flags().MarkHidden("plain")
	a.create.register(c.Flags())
	return c
}

func errChatJSON() error {
	return usage("To read: sotto watch --json   to write: sotto send", "a chat is for people and prints no JSON")
}

const chatHelp = `  /to NAME   talk to somebody else      /inbox    who wrote
  /invite    a link for a friend        /verify   compare keys
  /who       contacts                   /quit     leave (or end of input)
  //text     a message that begins with /   /help  this`

// errChatStopped means that somebody stopped the node under a chat, which has said so.
var errChatStopped = errors.New("the node was stopped under the chat")

// unlessStopped makes sotto down a good end of a chat.
func unlessStopped(err error) error {
	if errors.Is(err, errChatStopped) {
		return nil
	}
	return err
}

// talk is one chat session: what the person types goes to conv; what arrives is printed between.
type talk struct {
	refused *control.Error // the last thing that could not be done
	a       *app
	l       *link
	conv    string
	last    control.Message // the newest one sent here, as far as it is known to have come
	edit    *editor         // what is being typed; nil when the terminal, or nobody, edits lines
	shown   map[string]bool // messages sent here that are on the screen before the event tells of them
}

// chat talks with the person called *name, or with whom the person chooses, whose name it leaves there: when a node ends under it
// and another takes over, the talk goes on. It ends with errChatStopped when somebody stopped the node.
// With nobody named it begins with the inbox, if that was asked for.
func (a *app) chat(ctx context.Context, l *link, name *string, inbox bool) error {
	t := &talk{a: a, l: l, shown: map[string]bool{}}
	defer func() {
		if t.conv != "" {
			*name = t.conv
		}
	}()
	stream, err := l.Events(ctx, control.StreamParams{}) // before the history is read, so that nothing falls between
	if err != nil {
		return err
	}
	defer stream.Close()
	if *name != "" {
		if err := t.open(ctx, *name); err != nil {
			return err
		}
	} else if inbox {
		if err := t.inbox(ctx); err != nil {
			return err
		}
	}
	whole := ctx
	g, ctx := errgroup.WithContext(ctx)
	in, err := a.input(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	in.end = nil // the chat ends its line itself
	giveBack := t.takeKeys()
	defer giveBack()
	typed := make(chan string)
	g.Go(func() error {
		defer close(typed)
		if t.edit != nil {
			return readKeys(ctx, in, typed)
		}
		return readLines(ctx, in, typed)
	})
	arrived := make(chan control.Event)
	g.Go(func() error {
		defer close(arrived)
		return t.hear(ctx, stream, arrived)
	})
	g.Go(func() error {
		defer stream.Close()
		return t.run(ctx, typed, arrived)
	})
	err = g.Wait()
	giveBack()
	switch {
	case errors.Is(err, context.Canceled):
		t.endLine() // the prompt stays what it was, with what was typed
		return nil
	case errors.Is(err, control.ErrStopped), l.own && gone(err):
		return t.stopped()
	case err != nil && !errors.Is(err, errQuit):
		return err
	}
	if err := t.leave(whole); err != nil {
		return err
	}
	if t.refused != nil && !tty(a.env.Stdin) { // a script cannot see the marks
		return control.Errorf(t.refused.Exit, "not_all_done", "Each line that was not taken is marked with !", "not everything that was typed could be done")
	}
	return nil
}

// stopped is the end of a chat whose node was stopped: nothing can be waited for.
func (t *talk) stopped() error {
	t.endLine()
	t.a.say("The node was stopped, and the chat with it. To go on: sotto")
	if t.last.State == control.StateQueued {
		t.a.say("· what you wrote last is queued; it goes out next time sotto runs")
	}
	return errChatStopped
}

// takeKeys lets the chat edit the line that is typed, where there is a terminal that can redraw it.
func (t *talk) takeKeys() (giveBack func()) {
	if !tty(t.a.env.Stdin) || !tty(t.a.env.Stdout) || t.dumb() {
		return func() {}
	}
	giveBack, err := takeKeys(t.a.env.Stdin.Fd())
	if err != nil {
		return func() {} // it edits lines itself
	}
	t.edit = &editor{}
	return sync.OnceFunc(giveBack)
}

func (t *talk) dumb() bool { return t.a.env.Getenv("TERM") == "dumb" }

// endLine leaves the line of the prompt.
func (t *talk) endLine() {
	if tty(t.a.env.Stdout) {
		_, _ = fmt.Fprintln(t.a.env.Stdout)
	}
}

// leave lets what was written last go out first, if the node ends with this chat.
func (t *talk) leave(ctx context.Context) error {
	if !t.l.own || t.last.ID == "" {
		return nil
	}
	stop := t.a.waiting(ctx, "Waiting until what you wrote last is delivered; Ctrl-C leaves it queued…")
	m, err := t.a.handOver(ctx, t.l, t.last)
	stop()
	if ctx.Err() != nil || errors.Is(err, control.ErrStopped) || gone(err) {
		m, err = t.last, nil // it stays what it was
	}
	if err == nil && m.State == control.StateQueued {
		t.a.say("· what you wrote last is queued; it goes out next time sotto runs")
	}
	return err
}

var errQuit = errors.New("the person left")

// readKeys passes on what is typed, key by key.
func readKeys(ctx context.Context, in io.Reader, typed chan<- string) error {
	for keys := make([]byte, 4096); ; {
		n, err := in.Read(keys)
		if n > 0 {
			select {
			case typed <- string(keys[:n]):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil { // the terminal is gone, or the chat is over
			return ctx.Err()
		}
	}
}

func readLines(ctx context.Context, in io.Reader, typed chan<- string) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 4096), 2*control.MaxText)
	for lines.Scan() {
		select {
		case typed <- lines.Text():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return control.Errorf(control.ExitRefused, "too_large", "Split it.", "a line is larger than the 64 KiB that one message holds")
	}
	return nil
}

// hear passes on what the node tells, until it ends: control.ErrStopped when somebody told it to.
func (t *talk) hear(ctx context.Context, stream *control.Stream, arrived chan<- control.Event) error {
	for {
		e, err := stream.Next()
		switch {
		case err != nil:
			return ended(ctx, err)
		case e.Kind == control.EventStopped:
			return control.ErrStopped
		}
		select {
		case arrived <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run owns the screen: one line at a time, typed or arrived.
func (t *talk) run(ctx context.Context, typed <-chan string, arrived <-chan control.Event) error {
	t.prompt()
	for {
		var err error
		select {
		case in, ok := <-typed:
			if !ok {
				if tty(t.a.env.Stdin) { // Ctrl-D, which a terminal does not show
					t.endLine()
				}
				return errQuit
			}
			if t.edit != nil {
				err = t.keys(ctx, []byte(in))
			} else {
				err = t.typed(ctx, in)
			}
		case e, ok := <-arrived:
			if !ok {
				return nil // hear knows why
			}
			err = t.arrived(ctx, e)
		case <-ctx.Done():
			return ctx.Err()
		}
		if gone(err) {
			for range arrived { // whether it was stopped or failed is told there
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// keys does what was typed: at the end of a line, what the line says.
func (t *talk) keys(ctx context.Context, keys []byte) error {
	for len(keys) > 0 {
		before := len(t.edit.line)
		rest, entered, ended, plain := t.edit.take(keys)
		switch {
		case ended:
			t.endLine()
			return errQuit
		case entered:
			t.redraw()
			if err := t.typed(ctx, t.edit.enter()); err != nil {
				return err
			}
		case plain && t.edit.ascii(before) && lipgloss.Width(line(string(t.edit.line))) <= t.room(): // nothing is redrawn that need not be
			_, _ = fmt.Fprint(t.a.env.Stdout, string(t.edit.line[before:]))
		default:
			t.redraw()
		}
		keys = rest
	}
	return nil
}

// prompt names the chat on a line of its own, with what is being typed.
func (t *talk) prompt() {
	if !tty(t.a.env.Stdout) {
		return
	}
	typed := ""
	if t.edit != nil {
		typed = t.edit.shown(t.room())
	}
	_, _ = fmt.Fprint(t.a.env.Stdout, t.name()+typed)
}

func (t *talk) name() string {
	if t.conv == "" {
		return "> "
	}
	return "[" + line(t.conv) + "]> "
}

// room is how many columns are left for what is typed.
func (t *talk) room() int {
	width, _, err := term.GetSize(t.a.env.Stdout.Fd())
	if err != nil || width <= 0 {
		width = 80
	}
	return max(width-lipgloss.Width(t.name())-1, 8)
}

func (t *talk) redraw() {
	_, _ = fmt.Fprint(t.a.env.Stdout, takeBack)
	t.prompt()
}

// takeBack empties the line that the cursor is in.
const takeBack = "\r\x1b[K"

func (t *talk) print(format string, args ...any) error {
	start := ""
	switch {
	case !tty(t.a.env.Stdout):
	case t.dumb():
		start = "\n"
	default:
		start = takeBack
	}
	_, err := fmt.Fprintf(t.a.env.Stdout, start+format+"\n", args...)
	t.prompt()
	return err
}

func (t *talk) open(ctx context.Context, name string) error {
	c, err := t.l.Contact(ctx, name)
	if err != nil {
		return err
	}
	t.conv = c.Name
	list, err := t.l.Messages(ctx, control.ListParams{Conv: c.Name})
	if err != nil {
		return err
	}
	for _, m := range list {
		if _, err := fmt.Fprintln(t.a.env.Stdout, t.a.spoken(m)); err != nil {
			return err
		}
	}
	t.a.say("── %s · %s ──", line(c.Name), verifiedWord(c.Verified))
	return nil
}

func (t *talk) inbox(ctx context.Context) error {
	list, err := t.l.Inbox(ctx)
	if err != nil {
		return err
	}
	var out strings.Builder
	t.a.printInbox(&out, list)
	_, err = io.WriteString(t.a.env.Stdout, out.String())
	if len(list) > 0 {
		t.a.say("Choose one: /to NAME")
	}
	return err
}

// beginning is as much of a text as recalls it.
func beginning(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:39]) + "…"
	}
	return s
}

// typed sends a line, or does what a /command says. What goes wrong is said; the chat goes on.
func (t *talk) typed(ctx context.Context, in string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(in), " ")
	if t.edit != nil && (word == "" || t.conv == "" || strings.HasPrefix(in, "/") && !strings.HasPrefix(in, "//")) {
		t.endLine() // what was typed stays; a message is shown in its place as it was sent
	}
	var err error
	switch {
	case word == "":
	case word == "/quit" || word == "/q":
		return errQuit
	case word == "/to":
		err = t.open(ctx, strings.TrimSpace(rest))
	case word == "/inbox":
		err = t.inbox(ctx)
	case word == "/who":
		err = t.who(ctx)
	case word == "/invite":
		err = t.invite(ctx)
	case word == "/verify":
		err = t.verify(ctx)
	case word == "/help":
		t.a.say("%s", chatHelp)
	case strings.HasPrefix(in, "/") && !strings.HasPrefix(in, "//"):
		err = usage("There are:\n"+chatHelp, "unknown command %q", line(word))
	default:
		err = t.send(ctx, strings.TrimPrefix(in, "/"))
	}
	var e *control.Error
	if errors.As(err, &e) && ctx.Err() == nil && e.Exit != control.ExitNoNode {
		t.a.say("! %s\n  %s", text(e.Message), text(e.Hint))
		t.refused, err = e, nil
	}
	t.prompt()
	return err
}

func (t *talk) send(ctx context.Context, body string) error {
	if t.conv == "" {
		return usage("Choose somebody: /to NAME", "nobody to write to")
	}
	if !utf8.ValidString(body) { // not from the editor
		return control.Errorf(control.ExitUsage, "bad_text", "Set your terminal to UTF-8.", "the text is not valid UTF-8; nothing was sent")
	}
	m, err := t.l.Send(ctx, control.SendParams{To: t.conv, Text: body})
	if err != nil {
		if t.edit != nil {
			t.endLine()
		}
		return err
	}
	t.last = m
	if tty(t.a.env.Stdin) { // it was seen when it was typed
		t.shown[m.ID] = true
	}
	if t.edit != nil {
		_, err = fmt.Fprintf(t.a.env.Stdout, takeBack+"%s\n", t.a.spoken(m))
	}
	return err
}

func (t *talk) who(ctx context.Context) error {
	list, err := t.l.Contacts(ctx)
	for _, c := range list {
		t.a.say("%s · %s · %s", line(c.Name), c.State, verifiedWord(c.Verified))
	}
	return err
}

func (t *talk) invite(ctx context.Context) error {
	inv, err := t.l.Invite(ctx, control.InviteParams{})
	if err != nil {
		return err
	}
	return t.a.showInvite(inv, &inviteOptions{})
}

func (t *talk) verify(ctx context.Context) error {
	if t.conv == "" {
		return usage("Choose somebody: /to NAME", "nobody to compare with")
	}
	v, err := t.l.Verify(ctx, t.conv)
	if err != nil {
		return err
	}
	t.a.printVerification(t.a.env.Stdout, v)
	t.a.say("To record the result: sotto verify %s --same", line(v.Name))
	return nil
}

// arrived prints what concerns this chat, names what came in another, and opens the first chat by itself.
func (t *talk) arrived(ctx context.Context, e control.Event) error {
	m := e.Message
	moved := m != nil && m.ID == t.last.ID && m.State != t.last.State
	if moved {
		t.last = *m
	}
	switch {
	case e.Kind == control.EventMessage && m != nil && t.shown[m.ID]:
		delete(t.shown, m.ID)
		return nil
	case e.Kind == control.EventMessage && m != nil && m.Conv.Name == t.conv && t.conv != "":
		if _, err := t.l.Messages(ctx, control.ListParams{Conv: t.conv}); err != nil { // it was seen
			return err
		}
		return t.print("%s", t.a.spoken(*m))
	case e.Kind == control.EventMessage && m != nil && !m.From.Me:
		return t.print("[%s] %s", line(m.Conv.Name), t.a.spoken(*m))
	case e.Kind == control.EventReceipt && m != nil && m.Conv.Name == t.conv && (m.State == control.StateFailed || m.State == control.StateExpired):
		return t.print("! %s was not delivered: %s", shortID(m.ID), line(m.Why))
	case e.Kind == control.EventReceipt && moved && m.Conv.Name == t.conv && tty(t.a.env.Stdout):
		return t.print("%s %s", t.a.mark(*m), line(beginning(m.Text)))
	case e.Kind == control.EventContact && e.Contact != nil && e.Contact.State == "established" && t.conv == "":
		t.conv = e.Contact.Name
		return t.print("%s is here. What you type now goes to %s.", line(t.conv), line(t.conv))
	}
	return nil
}

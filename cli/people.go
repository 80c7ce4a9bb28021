package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sotto/control"
	"sotto/identity"
)

func asControl(err error, e **control.Error) bool { return errors.As(err, e) }

func (a *app) contactsCommand() *cobra.Command {
	c := &cobra.Command{Use: "contacts", Short: "List, show and change contacts", RunE: a.run(a.listContacts)}
	sub := func(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, l *link, args []string) error) {
		c.AddCommand(&cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: a.completeName,
			RunE: a.run(func(cmd *cobra.Command, args []string) error {
				return a.with(cmd.Context(), needStore, func(l *link) error { return run(cmd.Context(), l, args) })
			})})
	}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List all contacts", Args: exactly(), RunE: a.run(a.listContacts)})
	sub("show NAME", "Show one contact", exactly("NAME"), func(ctx context.Context, l *link, args []string) error {
		p, err := l.Contact(ctx, args[0])
		if err != nil {
			return err
		}
		return a.result(p, func(w io.Writer) { a.printContact(w, p) })
	})
	sub("rename NAME NEW", "Give a contact another name", exactly("NAME", "NEW"), func(ctx context.Context, l *link, args []string) error {
		p, err := control.Call[control.Contact](ctx, l.Client, "contact.rename", control.RenameParams{Name: args[0], To: args[1]})
		if err != nil {
			return err
		}
		return a.result(p, func(io.Writer) { a.say("%s is now called %s", line(args[0]), line(p.Name)) })
	})
	sub("remove NAME", "Forget a contact and its keys; what was said can still be read", exactly("NAME"), a.change("contact.remove", "removed",
		"They can come back only with a new invite. What was said stays: sotto read NAME"))
	sub("block NAME", "Nothing more from or to this contact", exactly("NAME"), a.change("contact.block", "blocked", "Undo: sotto contacts unblock NAME"))
	sub("unblock NAME", "Undo block; you meet again by a new invite", exactly("NAME"), a.change("contact.unblock", "unblocked",
		"The old keys are gone, so nothing passes yet. Send them a new invite: sotto invite   or follow theirs: sotto add INVITE"))
	return c
}

// change calls a method that takes a name and gives nothing back; NAME in next becomes theirs.
func (a *app) change(method, done, next string) func(context.Context, *link, []string) error {
	return func(ctx context.Context, l *link, args []string) error {
		c, err := l.Contact(ctx, args[0])
		if err != nil {
			return err
		}
		if _, err := control.Call[control.None](ctx, l.Client, method, control.NameParams{Name: c.Name}); err != nil {
			return err
		}
		next := strings.ReplaceAll(next, "NAME", shellWord(c.Name))
		return a.result(map[string]string{"name": c.Name, "done": done, "hint": a.sameHome(next)}, func(io.Writer) {
			a.say("%s is %s. %s", line(c.Name), done, line(next))
		})
	}
}

func (a *app) listContacts(cmd *cobra.Command, _ []string) error {
	return a.with(cmd.Context(), needStore, func(l *link) error {
		list, err := l.Contacts(cmd.Context())
		if err != nil {
			return err
		}
		return a.result(control.ContactList{Contacts: list}, func(w io.Writer) {
			if len(list) == 0 {
				a.say("No contacts yet. Invite somebody: sotto invite")
				return
			}
			var rows [][]string
			for _, c := range list {
				rows = append(rows, []string{c.Name, c.State, verifiedWord(c.Verified), a.stamp(c.LastSeen), strconv.Itoa(c.Queued)})
			}
			a.table(w, []string{"NAME", "STATE", "VERIFIED", "SEEN", "QUEUED"}, rows)
		})
	})
}

func verifiedWord(v string) string {
	switch v {
	case "yes":
		return "verified"
	case "changed":
		return "KEY CHANGED"
	case "differs":
		return "DIFFERS"
	default:
		return "not compared"
	}
}

func (a *app) printContact(w io.Writer, c control.Contact) {
	rows := [][]string{{"name", c.Name}, {"claims", quoted(c.Claimed)}, {"state", c.State}, {"verified", verifiedWord(c.Verified)}, {"key", c.ID},
		{"since", a.stamp(c.Created)}, {"seen", a.stamp(c.LastSeen)}, {"queued", strconv.Itoa(c.Queued)}, {"wrote", c.Intro}, {"warning", c.Warning}}
	for _, row := range rows {
		if row[1] != "" {
			_, _ = fmt.Fprintf(w, "%s\t%s\n", row[0], line(row[1]))
		}
	}
}

// quoted shows a name that somebody claims for themselves as what it is: a claim.
func quoted(s string) string {
	if s == "" {
		return ""
	}
	return strconv.Quote(line(s))
}

func (a *app) requestsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "requests", Short: "List strangers who ask to be let in", Args: exactly(),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), needStore, func(l *link) error {
				list, err := control.Call[control.ContactList](cmd.Context(), l.Client, "request.list", control.None{})
				if err != nil {
					return err
				}
				return a.result(list, func(w io.Writer) {
					if len(list.Contacts) == 0 {
						a.say("Nobody asks.")
						return
					}
					var rows [][]string
					for _, c := range list.Contacts {
						rows = append(rows, []string{c.Name, quoted(c.Claimed), a.stamp(c.Created), c.Intro})
					}
					a.table(w, []string{"NAME", "CLAIMS", "SINCE", "WROTE"}, rows)
				})
			})
		}),
	}
}

func (a *app) acceptCommand() *cobra.Command {
	var p control.AcceptParams
	c := &cobra.Command{
		Use: "accept NAME", Short: "Let a stranger in", Args: exactly("NAME"),
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			return a.with(cmd.Context(), needNetwork, func(l *link) error {
				got, err := control.Call[control.Contact](cmd.Context(), l.Client, "request.accept", p)
				if err != nil {
					return err
				}
				return a.result(got, func(io.Writer) {
					a.say("%s is your contact. Compare with them: sotto verify %s", line(got.Name), line(got.Name))
				})
			})
		}),
	}
	c.Flags().StringVar(&p.As, "as", "", "call them by this name")
	return c
}

func (a *app) rejectCommand() *cobra.Command {
	var p control.RejectParams
	c := &cobra.Command{
		Use: "reject NAME", Short: "Turn a stranger away", Args: exactly("NAME"),
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			return a.with(cmd.Context(), needStore, func(l *link) error {
				if _, err := control.Call[control.None](cmd.Context(), l.Client, "request.reject", p); err != nil {
					return err
				}
				return a.result(map[string]any{"name": p.Name, "blocked": p.Block}, func(io.Writer) { a.say("%s was turned away; they are not told", line(p.Name)) })
			})
		}),
	}
	c.Flags().BoolVar(&p.Block, "block", false, "and never hear of them again")
	return c
}

func (a *app) verifyCommand() *cobra.Command {
	var same, differ bool
	c := &cobra.Command{
		Use: "verify NAME", Short: "Compare keys with a contact",
		Long:    "Shows signs and digits that both of you see alike if nobody sits in between. Compare them face to face or over another way, not over sotto.",
		Example: "sotto verify bob\nsotto verify bob --same",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeName,
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if same && differ {
				return usage("Choose one.", "--same and --differ exclude each other")
			}
			return a.with(cmd.Context(), needStore, func(l *link) error { return a.verify(cmd.Context(), l, args[0], same, differ) })
		}),
	}
	c.Flags().BoolVar(&same, "same", false, "record that they are the same")
	c.Flags().BoolVar(&differ, "differ", false, "record that they differ")
	return c
}

func (a *app) verify(ctx context.Context, l *link, name string, same, differ bool) error {
	v, err := l.Verify(ctx, name)
	if err != nil {
		return err
	}
	set := same || differ
	if !set && !a.json && a.mayAsk() && tty(a.env.Stdout) {
		a.printVerification(a.env.Stdout, v)
		if same, err = a.confirm(ctx, "Does "+line(v.Name)+" see the same?"); err != nil {
			return err
		}
		if set = same; !set {
			a.say("Nothing was recorded. If you compared and they differ: sotto verify %s --differ", shellWord(v.Name))
			return nil
		}
	}
	if set {
		if v, err = control.Call[control.Verification](ctx, l.Client, "contact.set_verified", control.VerifiedParams{Name: v.Name, Verified: same}); err != nil {
			return err
		}
	}
	return a.result(v, func(w io.Writer) {
		if set {
			a.say("%s: %s", line(v.Name), verifiedWord(v.State))
			if !same {
				a.say("Somebody may sit between you. Write nothing more there: sotto contacts block %s   then meet again by an invite: sotto invite", shellWord(v.Name))
			}
			return
		}
		a.printVerification(w, v)
	})
}

func (a *app) printVerification(w io.Writer, v control.Verification) {
	if !a.ascii {
		_, _ = fmt.Fprintln(w, strings.Join(v.Emoji[:], " "))
	}
	_, _ = fmt.Fprintln(w, v.Digits)
	a.say("%s: %s", line(v.Name), verifiedWord(v.State))
}

func (a *app) inviteCommand() *cobra.Command {
	var p control.InviteParams
	var o inviteOptions
	var expires age
	c := &cobra.Command{
		Use: "invite", Short: "Make a link by which somebody becomes your contact",
		Long: "Prints a link to send to a friend. Whoever has it can become your contact, so send it where only they read it. It works once, for\n" +
			"24 hours, unless you say otherwise, and while your node runs.",
		Example: "sotto invite\nsotto invite --uses 5 --expires 7d\nsotto invite --qr",
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			p.ExpiresSeconds = expires.seconds()
			uses := cmd.Flags().Changed("uses")
			switch {
			case uses && p.Uses < 1:
				return usage("Use 1 to 10000, or --reusable for any number.", "--uses %d: nobody could use that invite", p.Uses)
			case uses && p.Reusable:
				return usage("Give one of them.", "--uses limits what --reusable leaves open")
			}
			if err := a.prepare(&o); err != nil {
				return err
			}
			err := a.with(cmd.Context(), needNetwork, func(l *link) error {
				inv, err := a.newInvite(cmd.Context(), l, p)
				if err != nil {
					return err
				}
				st, err := l.Status(cmd.Context())
				if err != nil {
					return err
				}
				return a.printInvite(inv, st.Net, &o, l.own)
			})
			return errors.Join(err, o.finish())
		}),
	}
	f := c.Flags()
	f.BoolVar(&p.Reusable, "reusable", false, "any number of people may use it")
	f.IntVar(&p.Uses, "uses", 0, "so many people may use it (default 1)")
	f.Var(&expires, "expires", "how long it works (default 24h)")
	f.BoolVar(&o.qr, "qr", false, "print a QR code too")
	f.StringVar(&o.png, "png", "", "write the QR code into this file")
	f.BoolVar(&o.copy, "copy", false, "copy the link to the clipboard, through the terminal")
	a.create.register(f)
	c.AddCommand(&cobra.Command{Use: "list", Short: "List your invites", Args: exactly(), RunE: a.run(a.listInvites)})
	c.AddCommand(&cobra.Command{Use: "revoke ID", Short: "Make an invite worthless", Args: exactly("ID"),
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), needNetwork, func(l *link) error { return a.revoke(cmd.Context(), l, args[0]) })
		})})
	return c
}

// revoke makes an invite worthless; one that was revoked before is told apart.
func (a *app) revoke(ctx context.Context, l *link, id string) error {
	list, err := control.Call[control.InviteList](ctx, l.Client, "invite.list", control.None{})
	if err != nil {
		return err
	}
	before := slices.ContainsFunc(list.Invites, func(i control.Invite) bool {
		return i.State == "revoked" && strings.HasPrefix(i.ID, strings.ToLower(id))
	})
	if _, err := control.Call[control.None](ctx, l.Client, "invite.revoke", control.IDParams{ID: id}); err != nil {
		return err
	}
	return a.result(map[string]any{"id": id, "done": "revoked", "before": before}, func(io.Writer) {
		if before {
			a.say("it was revoked already")
			return
		}
		a.say("revoked")
	})
}

// newInvite makes an invite, which waits a little for a volunteer that keeps its record.
func (a *app) newInvite(ctx context.Context, l *link, p control.InviteParams) (control.Invite, error) {
	defer a.waiting(ctx, "Making the invite known to a volunteer…")()
	return l.Invite(ctx, p)
}

func (a *app) printInvite(inv control.Invite, net control.NetStatus, o *inviteOptions, own bool) error {
	if a.json {
		if err := o.keepQR(inv); err != nil {
			return err
		}
		return a.printJSON(inv)
	}
	uses := "One use"
	switch {
	case inv.MaxUses == 0:
		uses = "Any number of uses"
	case inv.MaxUses > 1:
		uses = fmt.Sprintf("%d uses", inv.MaxUses)
	}
	a.say("Send this link to a friend, where nobody else reads it. %s, until %s.", uses, inv.Expires.Local().Format("2 Jan 15:04"))
	if err := a.showInvite(inv, o); err != nil {
		return err
	}
	if !inv.Published || !net.Online { // a computer of this network that keeps it is no volunteer
		a.say("note: no volunteer was reached yet; the link works on this network, and elsewhere once one is (sotto status)")
	}
	if own {
		a.say("They can follow it while sotto runs here: sotto up")
	}
	return nil
}

func (a *app) listInvites(cmd *cobra.Command, _ []string) error {
	return a.with(cmd.Context(), needStore, func(l *link) error {
		list, err := control.Call[control.InviteList](cmd.Context(), l.Client, "invite.list", control.None{})
		if err != nil {
			return err
		}
		return a.result(list, func(w io.Writer) {
			var rows [][]string
			for _, i := range list.Invites {
				most := strconv.Itoa(i.MaxUses)
				if i.MaxUses == 0 {
					most = "any"
				}
				rows = append(rows, []string{shortID(i.ID), i.State, strconv.Itoa(i.Uses) + "/" + most, a.stamp(i.Expires)})
			}
			a.table(w, []string{"ID", "STATE", "USED", "EXPIRES"}, rows)
		})
	})
}

// addOptions are the flags of add.
type addOptions struct {
	name string
	wait bool
	chat bool // the chat opens at once
}

func (a *app) addCommand() *cobra.Command {
	var o addOptions
	c := &cobra.Command{
		Use: "add INVITE | -", Short: "Follow an invite",
		Example: "sotto add sotto:i/…\nwl-paste | sotto add - --as bob",
		Args:    exactly("INVITE"),
		RunE:    a.run(func(cmd *cobra.Command, args []string) error { return a.add(cmd.Context(), args[0], o) }),
	}
	c.Flags().StringVar(&o.name, "as", "", "call them by this name")
	c.Flags().BoolVar(&o.wait, "wait", false, "wait until they have answered; exit 5 if --timeout is over first")
	a.create.register(c.Flags())
	return c
}

func (a *app) add(ctx context.Context, link0 string, o addOptions) error {
	link0, err := a.pasted(ctx, link0)
	if err != nil {
		return err
	}
	return a.with(ctx, needNetwork, func(l *link) error {
		added, err := a.follow(ctx, l, link0, o)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(added)
		}
		return nil
	})
}

// pasted is the invite itself: "-" stands for stdin, where words may be around it, as in the mail it came with.
func (a *app) pasted(ctx context.Context, given string) (string, error) {
	if given != "-" {
		return given, nil
	}
	raw, err := a.readAll(ctx, "the invite", maxMail)
	if err != nil {
		return "", fmt.Errorf("read the invite from stdin: %w", err)
	}
	return inviteIn(string(raw)), nil
}

// maxMail is how much of stdin is searched for an invite.
const maxMail = 64 << 10

var inviteStart = regexp.MustCompile(`(?i)sotto:i/`)

// inviteIn finds the invite in a text. A mail may have wrapped it: words are joined until they make a whole one.
func inviteIn(body string) string {
	at := inviteStart.FindStringIndex(body)
	if at == nil {
		return strings.TrimSpace(body)
	}
	words := strings.Fields(body[at[0]:])
	link := ""
	for _, word := range words[:min(len(words), 32)] {
		link += strings.TrimRight(word, `<>()[]{}"'“”.,;:!?`)
		if _, err := identity.ParseInvite(link); err == nil {
			return link
		}
	}
	return words[0] // parsing it tells what is wrong
}

// follow adds a contact and tells how far that got. A node of our own stays for the answer; a running one does not need us.
func (a *app) follow(ctx context.Context, l *link, invite string, o addOptions) (control.Added, error) {
	begun := a.clock.Now()
	stop := a.waiting(ctx, "Looking for whoever made the invite…")
	added, err := l.Add(ctx, control.AddParams{Link: invite, Name: o.name, TimeoutMS: control.Millis(a.timeout)})
	stop()
	if err != nil {
		return added, err
	}
	if l.own || o.wait {
		left := a.timeout
		if left > 0 { // what looking for them took is part of it
			left = max(left-a.clock.Now().Sub(begun), time.Millisecond)
		}
		stop := a.waiting(ctx, "Waiting for the answer of %s…", line(added.Contact.Name))
		contact, err := a.answered(ctx, l, added.Contact, left)
		stop()
		added.Contact, added.State = contact, contact.State
		if err != nil && (o.wait || !errors.Is(err, &control.Error{Code: "not_in_time"})) {
			return added, err
		}
	}
	return added, a.sayAdded(ctx, l, added, o.chat)
}

// answered waits until a contact is established.
func (a *app) answered(ctx context.Context, l *link, c control.Contact, limit time.Duration) (control.Contact, error) {
	waiting, cancel := within(ctx, limit)
	defer cancel()
	late := func(err error) error { // a socket's deadline may strike before its context's
		if ctx.Err() == nil && (errors.Is(waiting.Err(), context.DeadlineExceeded) || errors.Is(err, &control.Error{Code: "timeout"})) {
			return control.Errorf(control.ExitNotInTime, "not_in_time", "It goes on by itself while sotto runs; messages you write wait for them.", "%s has not answered yet", c.Name)
		}
		return err
	}
	stream, err := l.Events(waiting, control.StreamParams{Kinds: []string{control.EventContact}})
	if err != nil {
		return c, late(err)
	}
	defer stream.Close()
	for {
		now, err := l.Contact(waiting, c.ID)
		if err != nil {
			return c, late(err)
		}
		if c = now; c.State == "established" {
			return c, nil
		}
		switch e, err := stream.Next(); {
		case err != nil:
			return c, late(ended(waiting, err))
		case e.Kind == control.EventStopped:
			return c, control.ErrStopped
		}
	}
}

func (a *app) sayAdded(ctx context.Context, l *link, added control.Added, chat bool) error {
	name := line(added.Contact.Name)
	switch added.State {
	case "established":
		a.say("Added %s.", name)
	case "pending":
		a.say("Kept the invite; the other side was not found yet. It is tried again while sotto runs.")
	default:
		a.say("Added %s; their answer is awaited.", name)
	}
	v, err := l.Verify(ctx, added.Contact.Name)
	if err != nil {
		return err
	}
	signs := strings.Join(v.Emoji[:], " ")
	if a.ascii {
		signs = v.Digits
	}
	a.say("Compare to be sure: %s   (sotto verify %s)", signs, name)
	switch {
	case chat:
	case l.own:
		a.say("Write: sotto send %s …   Messages arrive while sotto runs: sotto up", name)
	default:
		a.say("Write: sotto send %s …", name)
	}
	return nil
}

func looksLikeInvite(s string) bool {
	s = strings.ToLower(strings.Trim(strings.TrimSpace(s), "<>"))
	return strings.HasPrefix(s, "sotto:")
}

// completeName offers contacts' names to the shell, from a running node only.
func (a *app) completeName(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	l, err := a.connect(ctx, needRunning)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer l.Client.Close()
	list, err := l.Contacts(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, c := range list {
		names = append(names, line(c.Name))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

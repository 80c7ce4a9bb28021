package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sotto/control"
)

func (a *app) inboxCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inbox", Short: "List the chats, unread first", Args: exactly(),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), needStore, func(l *link) error {
				list, err := l.Inbox(cmd.Context())
				if err != nil {
					return err
				}
				return a.result(control.ConversationList{Conversations: list}, func(w io.Writer) { a.printInbox(w, list) })
			})
		}),
	}
}

func (a *app) printInbox(w io.Writer, list []control.Conversation) {
	if len(list) == 0 {
		a.say("No chats yet. Invite somebody: sotto invite")
		return
	}
	var rows [][]string
	for _, c := range list {
		unread, last, at := "", "", ""
		if c.Unread > 0 {
			unread = strconv.Itoa(c.Unread)
		}
		if c.Last != nil {
			last, at = c.Last.From.Name+": "+c.Last.Text, a.stamp(c.Last.At)
		}
		if r := []rune(last); tty(a.env.Stdout) && len(r) > 40 {
			last = string(r[:39]) + "…"
		}
		rows = append(rows, []string{c.Name, unread, last, at})
	}
	a.table(w, []string{"CHAT", "UNREAD", "LAST", "WHEN"}, rows)
}

func (a *app) readCommand() *cobra.Command {
	var p control.ListParams
	var since age
	c := &cobra.Command{
		Use: "read NAME", Short: "Show a chat's messages and mark them read", Args: exactly("NAME"), ValidArgsFunction: a.completeName,
		Example: "sotto read bob\nsotto read bob -n 5 --peek --json",
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			p.Conv = args[0]
			if cmd.Flags().Changed("number") && (p.Limit < 1 || p.Limit > 1000) {
				return usage("Ask for 1 to 1000 messages.", "-n %d", p.Limit)
			}
			if since != 0 {
				p.Since = a.clock.Now().Add(-time.Duration(since))
			}
			return a.with(cmd.Context(), needStore, func(l *link) error {
				list, err := l.Messages(cmd.Context(), p)
				if err != nil {
					return err
				}
				if err := a.printMessages(list); err != nil || p.Peek || len(list) == 0 {
					return err
				}
				return a.sayUnread(cmd.Context(), l, list[0].Conv.Name)
			})
		}),
	}
	f := c.Flags()
	f.IntVarP(&p.Limit, "number", "n", 0, "show the newest so many (default 20, or as many as are unread)")
	f.Var(&since, "since", "only what came in this time (2h)")
	f.BoolVar(&p.Peek, "peek", false, "leave them unread")
	return c
}

// sayUnread tells of what was not shown: as long as something is left, nothing is marked read.
func (a *app) sayUnread(ctx context.Context, l *link, name string) error {
	list, err := l.Inbox(ctx)
	for _, c := range list {
		if c.Name == name && c.Unread > 0 && !c.Removed {
			a.say("Nothing was marked read: %d are unread, and older ones of them were not shown. To see them all: sotto read %s", c.Unread, shellWord(name))
		}
	}
	return err
}

// printMessages is one JSON object a line, rows for programs, or a chat with its days for people.
func (a *app) printMessages(list []control.Message) error {
	if a.json {
		for _, m := range list {
			if err := a.printJSON(m); err != nil {
				return err
			}
		}
		return nil
	}
	return a.result(nil, func(w io.Writer) {
		if !tty(a.env.Stdout) {
			a.table(w, nil, messageRows(list))
			return
		}
		day := ""
		for _, m := range list {
			if d := m.SentAt.Local().Format("Monday 2 January 2006"); d != day {
				day = d
				_, _ = fmt.Fprintln(w, a.bold("── "+day+" ──"))
			}
			_, _ = fmt.Fprintln(w, a.spoken(m)+"  ("+shortID(m.ID)+")")
		}
	})
}

// messageRows are the columns that programs get: id, time, author, state, text.
func messageRows(list []control.Message) [][]string {
	var rows [][]string
	for _, m := range list {
		rows = append(rows, []string{m.ID, m.SentAt.Format(time.RFC3339), m.From.Name, m.State, m.Text})
	}
	return rows
}

package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sotto/control"
)

func (a *app) mailboxesCommand() *cobra.Command {
	c := &cobra.Command{Use: "mailboxes", Short: "Show and choose who keeps your mail while you are away", RunE: a.run(a.listMailboxes),
		Long: "Show and choose who keeps your mail while you are away. Mailboxes are run by volunteers; they keep sealed\n" +
			"envelopes and can neither open them nor see who sent them. The program chooses up to three by itself from\n" +
			"the volunteers it knows; what you add is used first."}
	add := &cobra.Command{Use: "add ADDR", Short: "Have your mail kept at a mailbox", Args: exactly("ADDR"),
		Example: "sotto mailboxes add /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3Koo…"}
	voucher := add.Flags().String("voucher", "", "what the mailbox's operator gave you, if it asks for one")
	add.RunE = a.run(func(cmd *cobra.Command, args []string) error {
		return a.mailbox(cmd, needRunning, "mailbox.add", control.MailboxParams{Addr: args[0], Voucher: *voucher}, func(_ io.Writer, m control.Mailbox) {
			a.say("%s is being asked. Your contacts are told once it has agreed: sotto mailboxes list", m.ID)
			a.say("If its operator keeps a list of who may: %s", m.Key)
		})
	})
	c.AddCommand(
		&cobra.Command{Use: "list", Short: "List your mailboxes", Args: exactly(), RunE: a.run(a.listMailboxes)},
		add,
		&cobra.Command{Use: "drop ID", Short: "Have no more mail left there; what waits there is still taken", Args: exactly("ID"),
			RunE: a.run(func(cmd *cobra.Command, args []string) error {
				return a.mailbox(cmd, needStore, "mailbox.drop", control.IDParams{ID: args[0]}, func(_ io.Writer, m control.Mailbox) { a.say("dropped %s", m.ID) })
			})},
		&cobra.Command{Use: "test ID", Short: "Ask a mailbox how your box there stands", Args: exactly("ID"),
			RunE: a.run(func(cmd *cobra.Command, args []string) error {
				return a.mailbox(cmd, needRunning, "mailbox.test", control.IDParams{ID: args[0]}, func(w io.Writer, m control.Mailbox) {
					_, _ = fmt.Fprintf(w, "%s answers in %.1f ms: %s of %s used, mail is kept %d days\n", m.ID, m.RTT, size(m.Used), size(m.Quota), m.Days)
				})
			})},
	)
	return c
}

// mailbox makes one call about one mailbox and tells what came of it.
func (a *app) mailbox(cmd *cobra.Command, need need, method string, params any, say func(io.Writer, control.Mailbox)) error {
	return a.with(cmd.Context(), need, func(l *link) error {
		m, err := control.Call[control.Mailbox](cmd.Context(), l.Client, method, params)
		if err != nil {
			return err
		}
		return a.result(m, func(w io.Writer) { say(w, m) })
	})
}

func (a *app) listMailboxes(cmd *cobra.Command, _ []string) error {
	return a.with(cmd.Context(), needStore, func(l *link) error {
		list, err := control.Call[control.MailboxList](cmd.Context(), l.Client, "mailbox.list", control.None{})
		if err != nil {
			return err
		}
		return a.result(list, func(w io.Writer) {
			if len(list.Mailboxes) == 0 {
				a.say("No mailbox keeps your mail: while no node of yours runs, messages wait at their senders.\nVolunteers are found by themselves once one is known; or name one: sotto mailboxes add ADDR")
				return
			}
			var rows [][]string
			for _, m := range list.Mailboxes {
				rows = append(rows, []string{m.ID, mailboxState(m), fmt.Sprintf("%s of %s", size(m.Used), size(m.Quota)), fmt.Sprintf("%d d", m.Days), m.Addr})
			}
			a.table(w, []string{"ID", "STATE", "USED", "KEEPS", "ADDRESS"}, rows)
		})
	})
}

func mailboxState(m control.Mailbox) string {
	switch {
	case m.State == "open" && m.Why != "":
		return "does not answer: " + line(m.Why)
	case m.State == "open" && !m.Ready:
		return "being filled with tokens"
	case m.State == "new" && m.Why != "":
		return "not registered: " + line(m.Why)
	case m.State == "new":
		return "being registered"
	}
	return m.State
}

// size is a number of bytes for people.
func size(n uint64) string {
	const mib = 1 << 20
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= mib:
		return fmt.Sprintf("%.1f MB", float64(n)/mib)
	case n == 0:
		return "0"
	}
	return fmt.Sprintf("%.0f kB", max(1, float64(n)/1024))
}

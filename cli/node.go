package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sotto/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the running node does", Args: exactly(),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := within(cmd.Context(), a.timeout)
			defer cancel()
			return a.with(ctx, needRunning, func(l *link) error {
				st, err := l.Status(ctx)
				if err != nil {
					return err
				}
				st = a.here(st)
				return a.result(st, func(w io.Writer) { a.printStatus(w, st) })
			})
		}),
	}
}

func (a *app) printStatus(w io.Writer, st control.Status) {
	sign, how := "● online", " · "+reachLine(st.Net)
	if !st.Net.Online { // the node runs, but nobody beyond this network can be found
		sign = "● running"
	}
	if !st.Network {
		sign, how = "○ store only", ""
	}
	if a.ascii {
		sign = sign[len("●")+1:]
	}
	_, _ = fmt.Fprintf(w, "%s as %s (profile %s) · up %s%s\n", sign, line(st.Name), st.Profile, a.clock.Now().Sub(st.Started).Round(time.Second), how)
	_, _ = fmt.Fprintf(w, "  %d unread · %d waiting to go out · %d ask to be let in · store %s\n", st.Unread, st.Queued, st.Requests, st.Store.State)
	switch st.Boxes {
	case 0:
		_, _ = fmt.Fprintln(w, "  no mailbox keeps your mail while you are away: sotto mailboxes")
	case 1:
		_, _ = fmt.Fprintln(w, "  1 mailbox keeps your mail while you are away")
	default:
		_, _ = fmt.Fprintf(w, "  %d mailboxes keep your mail while you are away\n", st.Boxes)
	}
	for _, warn := range st.Warnings {
		_, _ = fmt.Fprintf(w, "! %s   → fix: %s\n", line(warn.Text), line(warn.Fix))
	}
}

func (a *app) peersCommand() *cobra.Command {
	c := &cobra.Command{Use: "peers", Short: "Show and make connections", RunE: a.run(a.listPeers)}
	c.AddCommand(
		&cobra.Command{Use: "list", Short: "List the node's connections", Args: exactly(), RunE: a.run(a.listPeers)},
		&cobra.Command{Use: "ping NAME", Short: "Measure the way to a contact", Args: exactly("NAME"), ValidArgsFunction: a.completeName, RunE: a.run(a.ping)},
		&cobra.Command{Use: "connect ADDR", Short: "Connect to an address", Args: exactly("ADDR"),
			Example: "sotto peers connect /ip4/203.0.113.7/udp/4002/quic-v1/p2p/12D3Koo…", RunE: a.run(a.connectPeer)},
	)
	return c
}

func (a *app) listPeers(cmd *cobra.Command, _ []string) error {
	return a.with(cmd.Context(), needRunning, func(l *link) error {
		list, err := control.Call[control.PeerList](cmd.Context(), l.Client, "peers.list", control.None{})
		if err != nil {
			return err
		}
		return a.result(list, func(w io.Writer) {
			if len(list.Peers) == 0 {
				a.say("No connections yet.")
				return
			}
			var rows [][]string
			for _, p := range list.Peers {
				how, rtt := "direct", ""
				if !p.Direct {
					how = "relayed"
				}
				if p.RTT > 0 {
					rtt = fmt.Sprintf("%.1f ms", p.RTT)
				}
				rows = append(rows, []string{p.Role, p.Name, how, rtt, p.Addr})
			}
			a.table(w, []string{"ROLE", "NAME", "WAY", "RTT", "ADDRESS"}, rows)
		})
	})
}

func (a *app) ping(cmd *cobra.Command, args []string) error {
	ctx, cancel := within(cmd.Context(), a.timeout)
	defer cancel()
	return a.with(ctx, needRunning, func(l *link) error {
		p, err := control.Call[control.Ping](ctx, l.Client, "peers.ping", control.NameParams{Name: args[0]})
		if err != nil {
			return err
		}
		return a.result(p, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s\t%.1f ms\n", line(p.Name), p.RTT) })
	})
}

func (a *app) connectPeer(cmd *cobra.Command, args []string) error {
	ctx, cancel := within(cmd.Context(), a.timeout)
	defer cancel()
	return a.with(ctx, needRunning, func(l *link) error {
		if _, err := control.Call[control.None](ctx, l.Client, "peers.connect", control.AddrParams{Addr: args[0]}); err != nil {
			return err
		}
		return a.result(map[string]string{"addr": args[0], "done": "connected"}, func(io.Writer) { a.say("connected") })
	})
}

package operator

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sotto/node"
)

// status is what the running volunteer says of itself.
type status struct {
	node.VolunteerStatus
	Since    time.Time      `json:"since"`
	Services Services       `json:"services"`
	Mailbox  *mailboxStatus `json:"mailbox,omitempty"`
}

func (a *app) notRunning() error {
	return failed(exitNotUp, "not_running", "Start it: sotto-mailbox serve --home "+a.home, fmt.Errorf("no volunteer answers in %s", a.home))
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Tell how the running volunteer stands", Args: cobra.NoArgs,
		Long:    "Tell how the running volunteer stands: whom it serves, what it keeps, what is wrong and what helps.",
		Example: "  sotto-mailbox status\n  sotto-mailbox status --json | jq .mailbox.waiting",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.askStatus(cmd.Context())
			if err != nil {
				return a.notRunning()
			}
			if a.json {
				return json.NewEncoder(a.env.Stdout).Encode(s)
			}
			_, err = io.WriteString(a.env.Stdout, s.words())
			return err
		}}
}

const (
	youCanSee = "you can see: addresses, sizes, times, how much waits in a box. You cannot see: who, to whom, what."
)

// words is the status for people.
func (s status) words() string {
	var b strings.Builder
	refused := map[string]uint64{}
	for name, n := range s.Refused {
		refused[name] = n
	}
	if m := s.Mailbox; m != nil {
		fmt.Fprintf(&b, "● serving %s · %s, %s of %s (%d %%)", plural(m.Boxes, "box", "boxes"), plural(m.Waiting, "message", "messages"), size(m.Bytes), size(m.Ceiling), percent(m.Bytes, m.Ceiling))
		if !m.Oldest.IsZero() {
			fmt.Fprintf(&b, " · oldest %d d of %d d", m.OldestDays, m.Policy.KeepDays)
		}
		l := m.Lately
		window := "24 h"
		if l.Hours < 23.8 {
			window = fmt.Sprintf("since the start, %.1f h ago", l.Hours)
		}
		fmt.Fprintf(&b, "\n  %s: in %s · out %s · expired %s · refused %s\n", window, count(l.In), count(l.Out), count(l.Expired), count(l.Refused))
		fmt.Fprintf(&b, "  policy: %s\n  %s\n", m.Policy.words(), youCanSee)
		for _, names := range []map[string]uint64{m.Server.Refused, m.Refused} {
			for name, n := range names {
				refused["mailbox: "+name] += n
			}
		}
	} else {
		b.WriteString("● serving, without a mailbox\n")
	}
	fmt.Fprintf(&b, "  now: %s, %d to the DHT · %s", plural(s.Connections, "connection", "connections"), s.DHTConnections, plural(s.Records, "record", "records"))
	if s.Mailbox != nil {
		fmt.Fprintf(&b, " · %s", plural(s.Mailbox.Server.Waiting, "owner waits for mail", "owners wait for mail"))
	}
	fmt.Fprintf(&b, " · %s\n", plural(s.Volunteers, "other volunteer", "other volunteers"))
	if off := s.Services.off(); off != "" {
		fmt.Fprintf(&b, "  switched off: %s\n", off)
	}
	for _, addr := range bestFirst(s.Bootstrap) {
		fmt.Fprintf(&b, "  bootstrap %s\n", addr)
	}
	if s.Mailbox != nil {
		for _, addr := range bestFirst(s.Service) {
			fmt.Fprintf(&b, "  mailbox %s\n", addr)
		}
		for _, p := range s.Mailbox.Wrong {
			b.WriteString(p.words())
		}
	}
	var names []string
	for name := range refused {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "  refused %d × %s\n", refused[name], name)
	}
	return b.String()
}

func (p problem) words() string {
	sign := "!"
	if p.Down {
		sign = "✗"
	}
	if p.Fix == "" {
		return fmt.Sprintf("  %s %s\n", sign, p.What)
	}
	return fmt.Sprintf("  %s %s\n    → fix: %s\n", sign, p.What, p.Fix)
}

// words says who gets what.
func (p policy) words() string {
	who := map[string]string{
		"open": "open to everybody", "invite": "for those with a voucher", "allowlist": "for keys on the list", "closed": "closed to new boxes",
	}[p.Mode]
	return fmt.Sprintf("%s, %s a message, %s and %s messages a box, %d d", who, size(int64(p.Message)), size(p.BoxSize), count(uint64(p.BoxCount)), p.KeepDays)
}

func (s Services) off() string {
	var list []string
	for _, service := range []struct {
		on   bool
		name string
	}{{s.Relay, "relay"}, {s.DHT, "DHT and bootstrap"}, {s.AutoNAT, "AutoNAT"}} {
		if !service.on {
			list = append(list, service.name)
		}
	}
	return strings.Join(list, ", ")
}

// size is bytes for people, in binary units.
func size(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	v, unit := float64(n), "bytes"
	for i := 0; i < len(units) && v >= 1024; i++ {
		v, unit = v/1024, units[i]
	}
	if v >= 100 || v == float64(int64(v)) {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// count groups digits.
func count(n uint64) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(uint64(max(n, 0))) + " " + many
}

func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 0
	}
	return int64(float64(part) * 100 / float64(whole))
}

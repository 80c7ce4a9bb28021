package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sotto/internal/clock"
	"sotto/internal/disk"
)

func (a *app) quotaCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "quota", Short: "Show or set how much disk is lent to mail", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "show", Short: "Show the quota and how much of it is used", Args: cobra.NoArgs, Example: "  sotto-mailbox quota show",
			RunE: func(cmd *cobra.Command, _ []string) error {
				var s mailboxStatus
				if err := a.give(cmd.Context(), order{Do: orderQuota}, &s); err != nil {
					return err
				}
				return a.showQuota(s)
			}},
		&cobra.Command{Use: "set SIZE", Short: "Lend more or less disk, while serving", Args: cobra.ExactArgs(1),
			Long:    "Lend more or less disk. It holds at once, and the line quota in config.toml is changed, nothing else of it. A mailbox\nthat holds more than its new quota takes nothing until enough was fetched; it throws nothing away.",
			Example: "  sotto-mailbox quota set 50GB",
			RunE:    func(cmd *cobra.Command, args []string) error { return a.setQuota(cmd.Context(), args[0]) }},
	)
	return cmd
}

func (a *app) showQuota(s mailboxStatus) error {
	return a.print(map[string]any{"quota": s.Ceiling, "used": s.Bytes, "open": s.Open, "vouched": s.Vouched, "disk_free": s.Free},
		"quota %s: %s used (%d %%)\n  open boxes: %s of %s in %s\n  vouched and listed boxes: %s of %s in %s\n  disk: %s free\n",
		size(s.Ceiling), size(s.Bytes), percent(s.Bytes, s.Ceiling), size(s.Open.Bytes), size(s.Open.Limit), plural(s.Open.Boxes, "box", "boxes"),
		size(s.Vouched.Bytes), size(s.Vouched.Limit), plural(s.Vouched.Boxes, "box", "boxes"), size(s.Free))
}

// setQuota writes first: what holds now must hold after a restart.
func (a *app) setQuota(ctx context.Context, text string) error {
	n, err := parseSize(text)
	if err != nil {
		return failed(exitUsage, "usage", "See: sotto-mailbox quota set --help", err)
	}
	c, err := loadConfig(a.home)
	if err != nil {
		return err
	}
	c.Mailbox.Quota = int(n / mib)
	if err := c.check(); err != nil {
		return failed(exitUsage, "usage", "In MiB, as config.toml has it; on the command line as in 20GB, 500MiB", err)
	}
	if err := a.give(ctx, order{Do: orderQuota}, nil); err != nil {
		return err
	}
	path := filepath.Join(a.home, configName)
	was, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed(exitFailed, "config", "", err)
	}
	now, err := withQuota(string(was), c)
	if err == nil {
		err = disk.Replace(path, []byte(now), func(string) {})
	}
	if err != nil {
		return failed(exitFailed, "config", fmt.Sprintf("Set quota = %d under [mailbox] by hand, then restart.", c.Mailbox.Quota), fmt.Errorf("change %s: %w", path, err))
	}
	var s mailboxStatus
	if err := a.give(ctx, order{Do: orderQuota, Ceiling: int64(c.Mailbox.Quota) * mib}, &s); err != nil {
		return err
	}
	if ch := a.checkDisk(c); !ch.OK {
		_, _ = io.WriteString(a.env.Stderr, ch.words())
	}
	return a.showQuota(s)
}

// withQuota changes one line of a config.toml, and makes sure that nothing else of what it says changed.
func withQuota(text string, want Config) (string, error) {
	line := "quota = " + strconv.Itoa(want.Mailbox.Quota)
	lines := strings.Split(text, "\n")
	section, begin, done := "", -1, false
	for i, l := range lines {
		trimmed := strings.TrimSpace(l)
		if strings.HasPrefix(trimmed, "[") {
			section = strings.TrimSpace(strings.Trim(strings.SplitN(trimmed, "#", 2)[0], "[] \t"))
			if section == "mailbox" {
				begin = i
			}
			continue
		}
		key, rest, ok := strings.Cut(trimmed, "=")
		if section != "mailbox" || !ok || strings.TrimSpace(key) != "quota" {
			continue
		}
		if _, comment, ok := strings.Cut(rest, "#"); ok {
			lines[i] = fmt.Sprintf("%-27s #%s", line, comment)
		} else {
			lines[i] = line
		}
		done = true
	}
	switch {
	case done:
	case begin >= 0:
		lines = slices.Insert(lines, begin+1, line)
	default:
		lines = append(lines, "[mailbox]", line, "")
	}
	now := strings.Join(lines, "\n")
	c, err := parseConfig(now)
	if err != nil {
		return "", err
	}
	if !reflect.DeepEqual(c, want) {
		return "", errors.New("its form is not one that this command can change")
	}
	return now, nil
}

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Show what this volunteer promises to whom", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(&cobra.Command{Use: "show", Short: "Show the policy that config.toml sets, and what you can and cannot see", Args: cobra.NoArgs, Example: "  sotto-mailbox policy show",
		RunE: func(*cobra.Command, []string) error {
			c, err := loadConfig(a.home)
			if err != nil {
				return err
			}
			if a.json {
				return json.NewEncoder(a.env.Stdout).Encode(c.policy())
			}
			text := "policy: no mailbox\n"
			if c.Mailbox.Enabled {
				text = fmt.Sprintf("policy: %s; at most %s, %s in all\n", c.policy().words(), plural(c.Mailbox.Boxes, "box", "boxes"), size(int64(c.Mailbox.Quota)*mib))
				text += "  who comes without a voucher begins small (1 MiB, 32 messages) and grows on days on which mail is fetched;\n  30 % of the quota is for them, 60 % for boxes by voucher or list, the rest for the database\n"
			}
			if off := c.Services.off(); off != "" {
				text += "  switched off: " + off + "\n"
			}
			_, err = fmt.Fprintf(a.env.Stdout, "%s  %s\n  change it: %s, then restart\n", text, youCanSee, filepath.Join(a.home, configName))
			return err
		}})
	return cmd
}

func (a *app) drainCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "drain", Short: "Leave without loss: take nothing new, hand out what is there", Args: cobra.NoArgs,
		Long: "Leave without loss: take nothing new, and hand out what is there until a moment, after which you may stop. People's\n" +
			"programs see it and move to other mailboxes. The default is when the last promise ends, a day after keep_days. It\nlasts over restarts; status tells how much is left, and when nothing waits any more you may stop earlier.",
		Example: "  sotto-mailbox drain\n  sotto-mailbox drain --until 2026-12-31\n  sotto-mailbox drain --until 14d\n  sotto-mailbox drain --stop"}
	until := cmd.Flags().String("until", "", "a date (2026-12-31), a time (RFC 3339), or days from now (14d)")
	stop := cmd.Flags().Bool("stop", false, "serve on after all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *stop && *until != "" {
			return failed(exitUsage, "usage", "See: sotto-mailbox drain --help", errors.New("--stop and --until contradict each other"))
		}
		return a.drain(cmd.Context(), *until, *stop)
	}
	return cmd
}

func (a *app) drain(ctx context.Context, until string, stop bool) error {
	c, err := loadConfig(a.home)
	if err != nil {
		return err
	}
	o := order{Do: orderDrain}
	now := clock.FromEnv().Now()
	if !stop {
		if o.Until, err = drainUntil(until, now, c.Mailbox.KeepDays); err != nil {
			return failed(exitUsage, "usage", "See: sotto-mailbox drain --help", err)
		}
	}
	var s mailboxStatus
	if err := a.give(ctx, o, &s); err != nil {
		return err
	}
	object := map[string]any{"drain_until": untilOrNil(s.DrainUntil), "waiting": s.Waiting, "boxes": s.Boxes}
	if stop {
		return a.print(object, "serves on: new boxes and new mail are taken\n")
	}
	if last := c.lastPromise(now); o.Until.Before(last) && s.Waiting > 0 {
		_, _ = fmt.Fprintf(a.env.Stderr, "sotto-mailbox: some of the mail is promised until %s; whoever does not come before %s loses it.\n", day(last), day(o.Until))
	}
	return a.print(object, "draining until %s: nothing new is taken · %s in %s still to be fetched · next: sotto-mailbox status; stop when nothing waits, or then\n",
		day(s.DrainUntil), plural(s.Waiting, "message", "messages"), plural(s.Boxes, "box", "boxes"))
}

// lastPromise is when what was taken until now ends at the latest (PROTOCOL 17.4).
func (c Config) lastPromise(now time.Time) time.Time {
	return now.UTC().Truncate(24 * time.Hour).Add(time.Duration(c.Mailbox.KeepDays+1) * 24 * time.Hour)
}

func drainUntil(text string, now time.Time, keepDays int) (time.Time, error) {
	var at time.Time
	var err error
	days, isDays := strings.CutSuffix(text, "d")
	switch {
	case text == "":
		return Config{Mailbox: Mailbox{KeepDays: keepDays}}.lastPromise(now), nil
	case isDays:
		var n int
		if n, err = strconv.Atoi(days); err == nil {
			at = now.Add(time.Duration(min(max(n, 0), 3660)) * 24 * time.Hour)
		}
	case len(text) == len(time.DateOnly):
		at, err = time.Parse(time.DateOnly, text)
	default:
		at, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return at, fmt.Errorf("--until %q: want a date as in 2026-12-31, a time as in 2026-12-31T18:00:00Z, or days as in 14d", text)
	}
	if !at.After(now) {
		return at, fmt.Errorf("--until %q is over", text)
	}
	return at.UTC().Truncate(time.Second), nil
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{Use: "resume", Short: "Let mail end by its day again, after the clock jumped and you set it right", Args: cobra.NoArgs,
		Long:    "After the clock went back, or ahead by more than a day, nothing is deleted by time until you looked at it. Set the\nclock right first; then this lets mail end by its day again.",
		Example: "  timedatectl && sotto-mailbox resume",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.give(cmd.Context(), order{Do: orderResume}, nil); err != nil {
				return err
			}
			return a.print(map[string]any{"resumed": true}, "mail ends by its day again, as of %s\n", day(clock.FromEnv().Now()))
		}}
}

func (a *app) statsCommand() *cobra.Command {
	return &cobra.Command{Use: "stats", Short: "Print the mailbox's numbers, in all, per pool and per day", Args: cobra.NoArgs,
		Example: "  sotto-mailbox stats\n  sotto-mailbox stats --json | jq .open.bytes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s mailboxStatus
			if err := a.give(cmd.Context(), order{Do: orderStats}, &s); err != nil {
				return err
			}
			if a.json {
				return json.NewEncoder(a.env.Stdout).Encode(s)
			}
			_, err := io.WriteString(a.env.Stdout, s.table())
			return err
		}}
}

// table is one number a line, a name and a value.
func (m mailboxStatus) table() string {
	var b strings.Builder
	row := func(name string, v any) { fmt.Fprintf(&b, "%-26s %v\n", name, v) }
	row("boxes", m.Boxes)
	row("messages", m.Waiting)
	row("bytes", m.Bytes)
	row("quota", m.Ceiling)
	for _, p := range []struct {
		name string
		pool
	}{{"open", m.Open}, {"vouched", m.Vouched}} {
		row(p.name+" boxes", p.Boxes)
		row(p.name+" bytes", p.Bytes)
		row(p.name+" limit", p.Limit)
	}
	row("24 h in", m.Lately.In)
	row("24 h out", m.Lately.Out)
	row("24 h expired", m.Lately.Expired)
	row("24 h refused", m.Lately.Refused)
	row("24 h covers hours", fmt.Sprintf("%.1f", m.Lately.Hours))
	row("accepted since start", m.Accepted)
	row("handed out since start", m.Fetched)
	row("acknowledged since start", m.Acked)
	row("expired since start", m.Expired)
	row("commits since start", m.Commits)
	row("commit p50 ms", fmt.Sprintf("%.1f", m.CommitP50))
	row("commit p99 ms", fmt.Sprintf("%.1f", m.CommitP99))
	row("writes waiting", m.Pending)
	row("streams", m.Server.Streams)
	row("owners waiting", m.Server.Waiting)
	row("unaccounted bytes", m.Unaccounted)
	row("garbage bytes", m.Garbage)
	row("database bytes", m.Tables)
	row("disk free", m.Free)
	row("damage found", m.Damaged)
	for _, names := range []map[string]uint64{m.Server.Refused, m.Refused} {
		var list []string
		for name := range names {
			list = append(list, name)
		}
		slices.Sort(list)
		for _, name := range list {
			row("refused: "+name, names[name])
		}
	}
	for _, d := range m.Days {
		row("until "+d.HeldUntil.Format(time.DateOnly), fmt.Sprintf("%d messages, %d bytes", d.Waiting, d.Bytes))
	}
	return b.String()
}

package operator

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"sotto/mailbox"
)

// health is the verdict for watchdogs: whether it serves, and what is wrong.
type health struct {
	OK    bool      `json:"ok"`
	Wrong []problem `json:"wrong"`
}

// healthOf judges a status.
func healthOf(s status, strict bool) health {
	h := health{OK: true, Wrong: []problem{}}
	if s.Mailbox == nil {
		return h
	}
	for _, p := range s.Mailbox.Wrong {
		h.Wrong = append(h.Wrong, p)
		h.OK = h.OK && !p.Down && !strict
	}
	return h
}

func (a *app) healthCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "health", Short: "Exit with 0 if the volunteer serves, with 1 if not", Args: cobra.NoArgs,
		Long:    "Exit with 0 if the volunteer serves, with 1 if not: for watchdogs and monitoring. What a restart cannot mend,\nsuch as a full disk, is told, and is no failure unless --strict is given.",
		Example: "  sotto-mailbox health || systemctl restart sotto-mailbox\n  sotto-mailbox health --strict --json"}
	strict := cmd.Flags().Bool("strict", false, "fail on everything that is wrong, also on what a restart cannot mend")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.askStatus(cmd.Context())
		if errors.Is(err, errNotRunning) {
			return failed(exitFailed, "not_running", "Start it: sotto-mailbox serve --home "+a.home, fmt.Errorf("no volunteer runs in %s", a.home))
		}
		if err != nil {
			return failed(exitFailed, "hung", "It runs and does not answer; restart it: systemctl restart sotto-mailbox", err)
		}
		h := healthOf(s, *strict)
		if a.json {
			if err := json.NewEncoder(a.env.Stdout).Encode(h); err != nil {
				return err
			}
		} else {
			word := "ok"
			if !h.OK {
				word = "not well"
			}
			text := word + "\n"
			for _, p := range h.Wrong {
				text += p.words()
			}
			if _, err := fmt.Fprint(a.env.Stdout, text); err != nil {
				return err
			}
		}
		if !h.OK {
			return failed(exitFailed, "unwell", "See: sotto-mailbox status --home "+a.home, errors.New("the volunteer does not serve as it should"))
		}
		return nil
	}
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{Use: "verify [DIR]", Short: "Read a mailbox's files, or a backup's, and compare everything in them", Args: cobra.MaximumNArgs(1),
		Long: "Read everything that lies in a mailbox's directory or in a backup and compare it: checksums, the hash of every\n" +
			"envelope, every count. Without DIR it is the mailbox in the home directory, which must not be running. It repairs\nnothing. Exit code 1 if anything is wrong.",
		Example: "  sotto-mailbox backup /srv/backup/monday && sotto-mailbox verify /srv/backup/monday\n  systemctl stop sotto-mailbox && sotto-mailbox verify",
		RunE: func(_ *cobra.Command, args []string) error {
			dir := a.home
			if len(args) == 1 {
				dir = args[0]
			}
			return a.verify(dir)
		}}
}

// verify looks at a home, a backup or the mailbox's own directory.
func (a *app) verify(dir string) error {
	files := dir
	if inner := filepath.Join(dir, "mailbox"); !mailbox.HasQueue(dir) && mailbox.HasQueue(inner) {
		files = inner
	}
	if !mailbox.HasQueue(files) {
		return failed(exitUsage, "no_mailbox", "Name the home of a volunteer, its mailbox directory, or what backup made.", fmt.Errorf("%s holds no mailbox", dir))
	}
	r, err := mailbox.VerifyQueue(files)
	if errors.Is(err, mailbox.ErrLocked) {
		return failed(exitRefused, "running", "While it serves, verify a backup: sotto-mailbox backup DIR && sotto-mailbox verify DIR", fmt.Errorf("a volunteer has %s open", files))
	}
	if err != nil {
		return failed(exitFailed, "damaged", "Keep a copy of the directory before anything else.", fmt.Errorf("verify %s: %w", files, err))
	}
	if r.Faults == nil {
		r.Faults = []string{}
	}
	if a.json {
		err = json.NewEncoder(a.env.Stdout).Encode(map[string]any{
			"dir": files, "ok": len(r.Faults) == 0, "boxes": r.Boxes, "envelopes": r.Envelopes, "bytes": r.Bytes, "tokens": r.Tokens, "records": r.Records, "faults": r.Faults,
		})
	} else {
		err = a.printFaults(files, r)
	}
	if err == nil && len(r.Faults) > 0 {
		err = failed(exitFailed, "damaged", "Keep a copy of the directory before anything else. What is whole is still served; restore a backup only if serving fails.",
			fmt.Errorf("%s: %s", files, plural(len(r.Faults), "fault", "faults")))
	}
	return err
}

func (a *app) printFaults(files string, r mailbox.Report) error {
	sign := "✓"
	if len(r.Faults) > 0 {
		sign = "✗"
	}
	_, err := fmt.Fprintf(a.env.Stdout, "%s %s: %s, %s (%s), %s, %s\n", sign, files, plural(r.Boxes, "box", "boxes"), plural(r.Envelopes, "message", "messages"), size(r.Bytes),
		plural(r.Tokens, "token", "tokens"), plural(r.Records, "record", "records"))
	for _, f := range r.Faults {
		_, _ = fmt.Fprintf(a.env.Stdout, "  ✗ %s\n", f)
	}
	return err
}

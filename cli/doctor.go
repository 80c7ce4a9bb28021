package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"sotto/control"
	"sotto/daemon"
)

// doctorFlags choose how closely doctor looks, or what it does instead.
type doctorFlags struct {
	deep, strict bool
	salvage      string
}

func (a *app) doctorCommand() *cobra.Command {
	var f doctorFlags
	c := &cobra.Command{
		Use: "doctor", Short: "Check this home, or save what a damaged one still holds", Args: exactly(),
		Long: "Looks at directories, config, key, disk, clock and store, and prints a line for each: ✓ in order, ! worth a look, ✗ wrong, and what to\n" +
			"do. Exits with 1 when something is wrong. It changes nothing but what every start does. A running node is asked, not waited for.\n\n" +
			"--deep reads every row of the store, which takes a while, and needs the node stopped.\n" +
			"--salvage DIR makes a new home in DIR of all that can be read, tells what is lost, and leaves the old files as they are. Use only\n" +
			"one of the two homes from then on: sessions with friends go on in one place only.",
		Example: "sotto doctor\nsotto down; sotto doctor --deep\nsotto doctor --salvage ~/sotto-new",
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("salvage") {
				return a.salvage(cmd.Context(), f)
			}
			return a.doctor(cmd.Context(), f)
		}),
	}
	c.Flags().BoolVar(&f.deep, "deep", false, "read every row of the store")
	c.Flags().BoolVar(&f.strict, "strict", false, "exit with 1 also when something is only worth a look")
	c.Flags().StringVar(&f.salvage, "salvage", "", "make a new home in this `directory` of what can be read")
	return c
}

// examined is what doctor --json prints.
type examined struct {
	V      int              `json:"v"`
	OK     bool             `json:"ok"`
	Checks []daemon.Finding `json:"checks"`
}

func (a *app) doctor(ctx context.Context, f doctorFlags) error {
	home, err := a.place()
	if err != nil {
		return err
	}
	all := examined{V: 1, OK: true, Checks: []daemon.Finding{}}
	bad := 0
	err = daemon.Examine(ctx, a.doctorOptions(ctx, home), f.deep, func(found daemon.Finding) {
		all.Checks = append(all.Checks, found)
		if found.State == daemon.FindingWrong || f.strict && found.State != daemon.FindingOK {
			all.OK, bad = false, bad+1
		}
		if !a.json {
			a.printFinding(found)
		}
	})
	if err == nil && a.json {
		err = a.printJSON(all)
	}
	if err == nil && bad > 0 {
		err = control.Errorf(control.ExitFailed, "not_well", "Do what stands behind each arrow, then look again: sotto doctor", "%d of %d lines need something done", bad, len(all.Checks))
	}
	return err
}

func (a *app) doctorOptions(ctx context.Context, home daemon.Home) daemon.Options {
	return daemon.Options{Home: home, Version: a.env.Version, Unlock: a.unlock(ctx), Program: a.env.Program, Clock: a.env.Clock, Patience: a.patience()}
}

// printFinding prints a line at once: a deep check takes a while.
func (a *app) printFinding(found daemon.Finding) {
	sign := map[string]string{daemon.FindingOK: "✓", daemon.FindingWarning: "!", daemon.FindingWrong: "✗"}[found.State]
	if a.ascii {
		sign = found.State
	}
	out := fmt.Sprintf("%s %-7s %s", sign, found.Check, line(found.Text))
	if found.Fix != "" {
		out += "   → fix: " + line(a.sameHome(found.Fix))
	}
	if found.State != daemon.FindingOK || !a.quiet {
		_, _ = fmt.Fprintln(a.env.Stdout, out)
	}
}

// salvage makes a new home and tells what it holds, what it does not, and what comes next.
func (a *app) salvage(ctx context.Context, f doctorFlags) error {
	switch {
	case f.salvage == "":
		return usage("Name a new directory: sotto doctor --salvage NEW-DIRECTORY", "--salvage is empty")
	case f.deep || f.strict:
		return usage("A salvage reads everything anyway.", "--salvage excludes --deep and --strict")
	}
	home, err := a.place()
	if err != nil {
		return err
	}
	got, err := daemon.Salvage(ctx, a.doctorOptions(ctx, home), f.salvage)
	if err != nil {
		return err
	}
	if err := a.result(got, func(w io.Writer) { a.table(w, []string{"KIND", "OF", "KEPT", "LOST"}, salvagedRows(got)) }); err != nil {
		return err
	}
	a.sayWhatWasLost(got)
	a.sayWhatNext(got)
	return nil
}

// salvagedRows are the kinds, and under each whose are lost.
func salvagedRows(got daemon.Salvaged) [][]string {
	lost := map[string]int{}
	for _, l := range got.Lost {
		lost[l.Kind] += l.Lost
	}
	kinds := map[string]bool{}
	for _, l := range got.Lost {
		kinds[l.Kind] = true
	}
	for kind := range got.Kept {
		kinds[kind] = true
	}
	sorted := slices.SortedFunc(maps.Keys(kinds), func(x, y string) int {
		return cmp.Or(got.Kept[y]-got.Kept[x], cmp.Compare(x, y))
	})
	var rows [][]string
	for _, kind := range sorted {
		rows = append(rows, []string{kind, "", strconv.Itoa(got.Kept[kind]), strconv.Itoa(lost[kind])})
		for _, l := range got.Lost {
			if l.Kind == kind && l.Of != "" {
				rows = append(rows, []string{kind, l.Of, strconv.Itoa(l.Kept), strconv.Itoa(l.Lost)})
			}
		}
	}
	return rows
}

func (a *app) sayWhatWasLost(got daemon.Salvaged) {
	for _, d := range got.Damage {
		a.say("damaged: %s", line(d))
	}
	if got.Older > 0 {
		a.say("of %d rows only an older version could be read", got.Older)
	}
	switch {
	case len(got.Lost) > 0:
		a.say("What is lost beyond that left no trace: the numbers are what is known.")
	case len(got.Damage) > 0:
		a.say("Nothing is known to be lost; what left no trace cannot be known.")
	default:
		a.say("Nothing is missing.")
	}
}

func (a *app) sayWhatNext(got daemon.Salvaged) {
	there := "sotto --home " + shellWord(got.Home)
	a.say("\nThe new home is %s; in %s not a byte was changed. Use only one of the two from now on.", got.Home, got.Data)
	a.say("  look at it:     %s inbox", there)
	if got.Device {
		a.say("  go on with it:  %s up", there)
	} else {
		a.say("  go on with it:  %s up --name NAME      (this device's keys are lost: friends must remove you, and meet you again by an invite)", there)
	}
	a.say("  or where it was: move %s away, and %s to its place", got.Data, shellWord(got.Home+"/data"))
	if !got.Config {
		a.say("config.toml was not copied: there is none, or it cannot be used.")
	}
}

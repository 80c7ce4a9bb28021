// Command bench measures what sotto promises about speed and size, each figure beside the limit it is judged against,
// taken in the same run on the same machine. Run it with: go run ./bench
//
// Begin with rows, the list of what is measured. limit.go is the yardstick: the least that any program on libp2p and
// Badger must pay.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"time"
)

// row is one figure: what was reached and the limit it should stay within.
type row struct {
	name  string
	want  string
	run   func(ctx context.Context, o options) (figure, error)
	heavy bool // needs minutes: only with -all or by name
}

// figure is a row's outcome.
type figure struct {
	got  string
	beat bool // within what the row wants
	note string
}

// options are the flags.
type options struct {
	count   int           // messages of the sustained row
	idle    time.Duration // how long the idle row watches
	rows    int           // messages in the store of the cold start row
	letters int           // envelopes of the rows about mailboxes
}

var rows = []row{
	{name: "latency", want: "p50 ≤ 1.5 × S (aim 1.0)", run: latency},
	{name: "sustained", want: "≥ 0.2 × S's rate (aim 0.4)", run: sustained},
	{name: "contact", want: "≤ 1 s (aim 10 × one connect)", run: firstContact},
	{name: "deposits", want: "≥ 0.5 × the engine alone (aim 0.7)", run: deposits},
	{name: "drain", want: "≥ 0.35 × the engine alone (aim 0.6)", run: drain},
	{name: "mail", want: "p50 ≤ 5 × the direct path's", run: byMailbox},
	{name: "send", want: "median ≤ 50 ms", run: sendProcess},
	{name: "start", want: "≤ 0.7 s (aim 2.5 × a bare host)", run: coldStart},
	{name: "binary", want: "≤ 45 MB", run: binarySize},
	{name: "idle", want: "≤ 40 MiB, ≤ 0.2 % of a core, ≤ 150 B/s", run: idle, heavy: true},
}

func main() {
	only := flag.String("only", "", "comma-separated rows; empty: all quick ones")
	all := flag.Bool("all", false, "the rows that take minutes too")
	o := options{}
	flag.IntVar(&o.count, "count", 20_000, "messages of the sustained row")
	flag.DurationVar(&o.idle, "idle", 10*time.Minute, "how long the idle row watches")
	flag.IntVar(&o.letters, "letters", 20_000, "envelopes of the rows about mailboxes")
	flag.IntVar(&o.rows, "messages", 50_000, "messages in the store of the start row")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	bare := flag.Bool(bareFlag, false, "start one bare host and end: the yardstick of the start row")
	flag.Parse()
	if *bare {
		if err := bareHost(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		os.Exit(0) // what comes after listening is not measured
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := runRows(ctx, o, *only, *all); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runRows(ctx context.Context, o options, only string, all bool) error {
	wanted := map[string]bool{}
	for _, name := range strings.Split(only, ",") {
		if name != "" {
			wanted[name] = true
		}
	}
	fmt.Printf("%-10s %-46s %-40s %s\n", "row", "reached", "wanted", "")
	for _, r := range rows {
		if len(wanted) > 0 && !wanted[r.name] || len(wanted) == 0 && r.heavy && !all {
			continue
		}
		f, err := r.run(ctx, o)
		if err != nil {
			return fmt.Errorf("row %s: %w", r.name, err)
		}
		verdict := "short of it"
		if f.beat {
			verdict = "ok"
		}
		fmt.Printf("%-10s %-46s %-40s %s\n", r.name, f.got, r.want, verdict)
		if f.note != "" {
			fmt.Printf("%-10s %s\n", "", f.note)
		}
	}
	return nil
}

// Command kill starts real nodes that write to one another, kills them again and again, and checks that nothing of what
// they promised was broken. Run it with: go run ./internal/check/kill
//
// A campaign goes in rounds of 500 kills, each with fresh homes and its own seed, so that what fails can be run again
// alone and a long campaign can be continued.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sotto/internal/check"
)

const roundKills = 500

type options struct {
	kills, nodes, skip int
	seed               uint64
	keep, points       bool
	timeout            time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.kills, "kills", 200, "how often a node is killed")
	flag.IntVar(&o.nodes, "nodes", 2, "how many nodes there are, 2 to 8")
	flag.IntVar(&o.skip, "skip", 0, "go on with a campaign after so many kills; whole rounds only")
	flag.Uint64Var(&o.seed, "seed", 0, "what decides who is killed when; 0 draws one")
	flag.BoolVar(&o.keep, "keep", false, "leave the homes, to look at")
	flag.BoolVar(&o.points, "points", false, "instead of random kills, let a node die at every named crash point")
	flag.DurationVar(&o.timeout, "timeout", 0, "end after this long; 0 is a minute, and 3 s for each kill")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.nodes < 2 || o.nodes > 8 || o.kills < 1 || o.skip%roundKills != 0 || flag.NArg() > 0 {
		flag.Usage()
		return errors.New("these flags do not fit together")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	points, err := crashPoints(ctx, o)
	if err != nil {
		return err
	}
	if o.timeout == 0 {
		o.timeout = 4*time.Minute + time.Duration(o.kills+10*len(points))*3*time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	bin, err := os.MkdirTemp("", "sotto-kill-bin-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	if err := check.Build(ctx, bin); err != nil {
		return err
	}
	return rounds(ctx, o, bin, points)
}

// crashPoints reads the named points from the source, when they are wanted.
func crashPoints(ctx context.Context, o options) ([]string, error) {
	if !o.points {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find the source: %w", err)
	}
	return check.CrashPoints(filepath.Dir(strings.TrimSpace(string(out))))
}

func rounds(ctx context.Context, o options, bin string, points []string) error {
	var sum check.Figures
	total := o.kills
	if points != nil {
		total = roundKills // one round holds all points
	}
	for done := o.skip; done < total; done += roundKills {
		seed := o.seed + uint64(done/roundKills)
		dir, err := os.MkdirTemp("", "sotto-kill-")
		if err != nil {
			return err
		}
		round := check.Options{Kills: min(roundKills, total-done), Seed: seed, Nodes: o.nodes, Points: points, Bin: bin, Dir: dir, Out: os.Stdout}
		fmt.Printf("seed %d, %d nodes in %s\n", seed, o.nodes, dir)
		result, err := check.Run(ctx, round)
		if result != nil && len(result.Bad) > 0 {
			result.Explain(context.WithoutCancel(ctx), round)
			fmt.Printf("FAIL after %d kills; homes kept in %s\nagain: go run ./internal/check/kill -seed %d -kills %d -nodes %d%s\n",
				result.Kills, dir, seed, round.Kills, o.nodes, map[bool]string{true: " -points"}[o.points])
			return fmt.Errorf("%d promises broken", len(result.Bad))
		}
		if err != nil {
			fmt.Printf("stopped; homes kept in %s; go on with: -seed %d -kills %d -skip %d\n", dir, o.seed, o.kills, done)
			return err
		}
		sum.Add(result.Figures)
		if !o.keep {
			err = round.Clean()
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("%sPASS (seed %d)\n", sum, o.seed)
	return nil
}

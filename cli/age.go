package cli

import (
	"strconv"
	"strings"
	"time"
)

// age is a flag for a stretch of time: 90s, 20m, 24h, 7d, 2w.
type age time.Duration

// String writes the age as Set reads it.
func (g *age) String() string {
	if *g == 0 {
		return ""
	}
	return time.Duration(*g).String()
}

// Type names the flag's value in help.
func (g *age) Type() string { return "time" }

// Set reads an age; it must be positive.
func (g *age) Set(s string) error {
	d, err := time.ParseDuration(s)
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			var count int64
			if count, err = strconv.ParseInt(n, 10, 32); err == nil {
				d = time.Duration(count) * unit
			}
		}
	}
	if err != nil || d <= 0 || d > 10*365*24*time.Hour {
		return usage("Write it like 90s, 20m, 24h or 7d.", "%q is not a time", line(s))
	}
	*g = age(d)
	return nil
}

func (g age) seconds() int64 { return int64(time.Duration(g) / time.Second) }

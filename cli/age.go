package cli

import (
	"fmt"
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
	const most = 36500 // days
	long := false
	d, err := time.ParseDuration(s)
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			var count int64
			if count, err = strconv.ParseInt(n, 10, 32); err == nil {
				long = count > most
				d = time.Duration(min(count, most+1)) * unit
			}
		}
	}
	switch {
	case err != nil || d <= 0 && !long:
		return usage("Write it like 90s, 20m, 24h or 7d.", "%q is not a time", line(s))
	case long || d > most*24*time.Hour:
		return usage(fmt.Sprintf("Give at most %dd.", most), "%q is too long a time", line(s))
	}
	*g = age(d)
	return nil
}

// seconds is the age in whole ones, rounded up: 0 means that none was given, which a short one must not become.
func (g age) seconds() int64 { return int64((time.Duration(g) + time.Second - 1) / time.Second) }

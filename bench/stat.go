package main

import (
	"slices"
	"time"
)

// quantile is the value below which the share q of the samples lies.
func quantile(samples []time.Duration, q float64) time.Duration {
	s := slices.Clone(samples)
	slices.Sort(s)
	return s[min(len(s)-1, int(float64(len(s))*q))]
}

func median(samples []time.Duration) time.Duration { return quantile(samples, 0.5) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

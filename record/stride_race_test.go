//go:build race

package record

// flipStride: the race detector, which has nothing to find in a validator, makes each step twenty times as dear.
const flipStride = 23

//go:build race

package identity

// flipStride: the race detector, which has nothing to find in a parser, makes each step twenty times as dear.
const flipStride = 23

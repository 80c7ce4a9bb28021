//go:build !race

package identity

// flipStride: every byte is flipped.
const flipStride = 1

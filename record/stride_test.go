//go:build !race

package record

// flipStride: every byte is flipped.
const flipStride = 1

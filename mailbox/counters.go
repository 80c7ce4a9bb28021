package mailbox

import (
	"errors"
	"io"
	"maps"
	"os"
	"sync"

	"sotto/wire"
)

// What is refused is counted under these names, which Status shows.
const (
	refusedFrameSize     = "frame: length out of bounds"
	refusedTruncated     = "frame: truncated"
	refusedSlow          = "frame: not complete in time"
	refusedRequest       = "request: malformed"
	refusedOp            = "request: unknown op"
	refusedPeer          = "stream: relayed, or a key of another kind"
	refusedStreams       = "stream: too many on one connection"
	refusedPrefixStreams = "stream: too many from one address"
	refusedVisits        = "stream: too many connections from one address"
	refusedPrefixes      = "stream: too many addresses"
	refusedNeverRead     = "stream: answers never read"
	refusedBytes         = "bytes: too many from one address"
	refusedWork          = "work: too much for one address"
	refusedOwner         = "owner: op before auth"
	refusedAuth          = "owner: signature does not verify"
	refusedWaits         = "owner: too many streams wait"
	refusedRecords       = "owner: record not kept"
	refusedRegister      = "register: not admitted"
	refusedSize          = "deposit: not the size of an envelope"
	refusedProof         = "deposit: stranger without work"
	refusedLoad          = "load: too much to do"
	refusedFull          = "load: no room"
	refusedFailed        = "failed: the queue could not serve"
	refusedPut           = "records: could not be put"
)

// counters counts by name. The zero value is ready.
type counters struct {
	mu sync.Mutex
	by map[string]uint64
}

func (c *counters) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]uint64{}
	}
	c.by[name]++
}

// frame counts a failed read by its kind; a stream that merely ended is none.
func (c *counters) frame(err error) {
	switch {
	case errors.Is(err, wire.ErrFrameSize):
		c.add(refusedFrameSize)
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.add(refusedTruncated)
	case isTimeout(err):
		c.add(refusedSlow)
	}
}

func (c *counters) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.by)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

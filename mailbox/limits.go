package mailbox

import (
	"fmt"
	"net/netip"
	"time"

	"sotto/wire"
)

// Limits is what a volunteer gives (reliability 5). A zero field means its default.
type Limits struct {
	Ceiling    int64         // bytes of envelopes, tokens and records in all; 0: 10 GiB
	Vouched    int           // percent of the ceiling for boxes with a voucher or on the list; 0: 60
	Open       int           // percent for all others; 0: 30. What is left is the engine's
	Share      int           // percent of the open part that one address prefix may fill; 0: 2
	Boxes      int           // 0: 20 000. Of these at most two thirds are open boxes
	StartBytes uint64        // of a fresh open box; 0: 1 MiB
	StartCount uint32        // 0: 32
	MaxBytes   uint64        // of a box that stood the test; 0: 64 MiB
	MaxCount   uint32        // 0: 4096
	KeepDays   uint16        // 0: 30
	Reserve    int64         // bytes of the disk that stay free; 0: 512 MB, below 0 none
	Pending    int64         // bytes of deposits that wait for their commit; 0: 32 MiB
	Slow       time.Duration // the slowest commits above which strangers' deposits are shed, and at twice as much those into open boxes; 0: 500 ms, below 0 never
	LotBytes   int64         // of envelopes that are dropped together once all are gone; 0: 64 MiB
}

func (l Limits) withDefaults() Limits {
	l.Ceiling = either(l.Ceiling, 10<<30)
	l.Vouched, l.Open, l.Share, l.Boxes = either(l.Vouched, 60), either(l.Open, 30), either(l.Share, 2), either(l.Boxes, 20_000)
	l.StartBytes, l.StartCount = either(l.StartBytes, 1<<20), either(l.StartCount, 32)
	l.MaxBytes, l.MaxCount = either(l.MaxBytes, 64<<20), either(l.MaxCount, 4096)
	l.Slow = either(l.Slow, 500*time.Millisecond)
	l.KeepDays = either(l.KeepDays, wire.MaxKeepDays)
	l.Reserve, l.Pending, l.LotBytes = either(l.Reserve, 512<<20), either(l.Pending, 32<<20), either(l.LotBytes, 64<<20)
	return l
}

func either[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// mostCount is how many envelopes of a box one transaction can remove.
const mostCount = 8192

// check refuses what cannot be meant.
func (l Limits) check() error {
	switch {
	case l.Ceiling < 0 || l.Vouched < 0 || l.Open < 0 || l.Share < 0 || l.Boxes < 0 || l.Pending < 0 || l.LotBytes < 0:
		return fmt.Errorf("mailbox: limits: a negative one")
	case l.Vouched+l.Open > 100 || l.Share > 100:
		return fmt.Errorf("mailbox: limits: parts of %d %% and %d %%, a share of %d %%", l.Vouched, l.Open, l.Share)
	case l.MaxCount > mostCount:
		return fmt.Errorf("mailbox: limits: %d envelopes in a box are more than %d", l.MaxCount, mostCount)
	case l.KeepDays > wire.MaxKeepDays:
		return fmt.Errorf("mailbox: limits: %d days are more than %d", l.KeepDays, wire.MaxKeepDays)
	case l.StartBytes > l.MaxBytes || l.StartCount > l.MaxCount:
		return fmt.Errorf("mailbox: limits: a fresh box may hold more than one that stood the test")
	}
	return nil
}

// part says which part of the ceiling a box lives on. The open part never takes from the vouched one.
type part int

const (
	partOpen part = iota
	partVouched
	parts
)

// String names the part in status.
func (p part) String() string { return [...]string{"open", "vouched"}[p] }

func (l Limits) part(p part) int64 {
	percent := [...]int{partOpen: l.Open, partVouched: l.Vouched}[p]
	return l.Ceiling / 100 * int64(percent)
}

// share is how much of the open part one prefix may fill; on a tiny mailbox one fresh box's worth all the same.
func (l Limits) share() int64 {
	return max(l.part(partOpen)/100*int64(l.Share), int64(l.StartBytes))
}

// sender is what one address prefix has waiting in open boxes. It is kept in memory only: who deposited what is not written down,
// so a restart forgets it.
type sender struct {
	prefix netip.Prefix
	bytes  int64
}

// senders finds them by prefix, and by the small number that an entry has room for.
type senders struct {
	byPrefix map[netip.Prefix]uint32
	list     []sender // 0 is nobody
	free     []uint32
}

func newSenders() senders {
	return senders{byPrefix: map[netip.Prefix]uint32{}, list: make([]sender, 1)}
}

// bytes is what a prefix has waiting.
func (s *senders) bytes(from netip.Prefix) int64 { return s.list[s.byPrefix[from]].bytes }

// add counts bytes to a prefix and returns its number.
func (s *senders) add(from netip.Prefix, bytes int64) uint32 {
	if !from.IsValid() {
		return 0
	}
	n, ok := s.byPrefix[from]
	if !ok {
		if last := len(s.free) - 1; last >= 0 {
			n, s.free = s.free[last], s.free[:last]
		} else {
			n = uint32(len(s.list))
			s.list = append(s.list, sender{})
		}
		s.list[n] = sender{prefix: from}
		s.byPrefix[from] = n
	}
	s.list[n].bytes += bytes
	return n
}

// remove takes bytes off again; a prefix with nothing waiting is forgotten.
func (s *senders) remove(n uint32, bytes int64) {
	if n == 0 {
		return
	}
	if s.list[n].bytes -= bytes; s.list[n].bytes <= 0 {
		delete(s.byPrefix, s.list[n].prefix)
		s.list[n] = sender{}
		s.free = append(s.free, n)
	}
}

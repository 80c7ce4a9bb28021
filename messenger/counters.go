package messenger

import "sync/atomic"

// Counters says how often something happened since the start; nothing that matters happens uncounted.
type Counters struct {
	Received      uint64 `json:"received"`       // items taken or answered again
	Refused       uint64 `json:"refused"`        // items that will never be taken
	Unopened      uint64 `json:"unopened"`       // items or envelopes that no key opens
	Deferred      uint64 `json:"deferred"`       // items not taken for a passing reason
	Malformed     uint64 `json:"malformed"`      // contents of a contact that break the format
	Duplicates    uint64 `json:"duplicates"`     // contents that were here already
	Conflicts     uint64 `json:"conflicts"`      // contents that contradict their sender's earlier ones
	Gaps          uint64 `json:"gaps"`           // gaps shown
	BadAcks       uint64 `json:"bad_acks"`       // acknowledgements that prove nothing
	Lost          uint64 `json:"lost"`           // items that a receiver could not open
	Resets        uint64 `json:"resets"`         // sessions begun anew
	InvitesReused uint64 `json:"invites_reused"` // second uses of single-use invites
}

// counters is Counters while it counts.
type counters struct {
	received, refused, unopened, deferred, malformed, duplicates, conflicts, gaps, badAcks, lost, resets, invitesReused atomic.Uint64
}

func (c *counters) snapshot() Counters {
	return Counters{
		Received: c.received.Load(), Refused: c.refused.Load(), Unopened: c.unopened.Load(), Deferred: c.deferred.Load(),
		Malformed: c.malformed.Load(), Duplicates: c.duplicates.Load(), Conflicts: c.conflicts.Load(), Gaps: c.gaps.Load(),
		BadAcks: c.badAcks.Load(), Lost: c.lost.Load(), Resets: c.resets.Load(), InvitesReused: c.invitesReused.Load(),
	}
}

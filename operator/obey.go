package operator

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"sotto/mailbox"
)

// What a command may order, of a running volunteer or of a queue that it opened itself.
const (
	orderStatus  = "status"
	orderStats   = "stats"
	orderClients = "clients"
	orderAllow   = "allow"
	orderDeny    = "deny"
	orderInvite  = "invite"
	orderRevoke  = "revoke"
	orderQuota   = "quota"
	orderDrain   = "drain"
	orderResume  = "resume"
	orderBackup  = "backup"
)

// clients is who may have a box besides those that the mode lets in.
type clients struct {
	Mode     string   `json:"mode"`
	Allowed  []string `json:"allowed"` // hex SHA-256 of keys of boxes
	Vouchers int      `json:"vouchers"`
	Open     pool     `json:"open"`
	Vouched  pool     `json:"vouched"`
}

// changed counts what an order changed.
type changed struct {
	Changed int `json:"changed"`
}

// obey does an order on the queue.
func (k keeper) obey(_ context.Context, o order) (any, error) {
	if k.queue == nil {
		return nil, fmt.Errorf("this volunteer keeps no mailbox: [mailbox] enabled is false in %s", configName)
	}
	switch o.Do {
	case orderBackup:
		return changed{}, nil // the stream follows
	case orderStats:
		return k.status(), nil
	case orderClients:
		return k.clients()
	case orderAllow, orderDeny:
		return k.changeList(o)
	case orderInvite:
		if err := k.queue.ForgetVouchers(); err != nil {
			return nil, err
		}
		for _, code := range o.Codes {
			if err := k.queue.AddVoucher([]byte(code), o.Until); err != nil {
				return nil, err
			}
		}
		return changed{len(o.Codes)}, nil
	case orderRevoke:
		for _, code := range o.Codes {
			if err := k.queue.SpendVoucher([]byte(code)); err != nil {
				return nil, fmt.Errorf("%s is no voucher that is honoured: it was used, is over, or never was", code)
			}
		}
		return changed{len(o.Codes)}, nil
	case orderQuota:
		if o.Ceiling > 0 {
			if err := k.queue.SetCeiling(o.Ceiling); err != nil {
				return nil, err
			}
		}
		return k.status(), nil
	case orderDrain:
		if err := k.queue.Drain(o.Until); err != nil {
			return nil, err
		}
		return k.status(), nil
	case orderResume:
		if err := k.queue.Resume(); err != nil {
			return nil, err
		}
		return k.status(), nil
	}
	return nil, fmt.Errorf("this volunteer does not know %q: it is of another version than this command; restart it", o.Do)
}

func (k keeper) changeList(o order) (any, error) {
	c := changed{}
	for _, key := range o.Keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("a key of %d bytes", len(key))
		}
		hash := [32]byte(key)
		if k.queue.Allowed(hash) == (o.Do == orderAllow) {
			continue
		}
		set := k.queue.Deny
		if o.Do == orderAllow {
			set = k.queue.Allow
		}
		if err := set(hash); err != nil {
			return nil, err
		}
		c.Changed++
	}
	return c, nil
}

func (k keeper) clients() (c clients, err error) {
	c.Mode, c.Allowed = k.policy.Mode, []string{}
	for _, hash := range k.queue.ListAllowed() {
		c.Allowed = append(c.Allowed, hex.EncodeToString(hash[:]))
	}
	s := k.queue.Stats()
	c.Open, c.Vouched = poolOf(s.Open), poolOf(s.Vouched)
	c.Vouchers, _, err = k.queue.Vouchers()
	return c, err
}

// pool is one part of the ceiling.
type pool struct {
	Boxes int   `json:"boxes"`
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit"`
}

func poolOf(p mailbox.PartUse) pool { return pool{p.Boxes, p.Bytes, p.Limit} }

// policy is what the volunteer promises to whom.
type policy struct {
	Mode     string `json:"mode"`
	Quota    int64  `json:"quota"` // bytes, as the next start will have it
	Boxes    int    `json:"boxes"`
	BoxSize  int64  `json:"box_size"`
	BoxCount int    `json:"box_count"`
	KeepDays int    `json:"keep_days"`
	Message  int    `json:"message"` // the largest envelope
	Note     string `json:"note,omitempty"`
	Relay    bool   `json:"relay"`
	DHT      bool   `json:"dht"`
	AutoNAT  bool   `json:"autonat"`
}

func (c Config) policy() policy {
	m := c.Mailbox
	return policy{
		Mode: m.Mode, Quota: int64(m.Quota) * mib, Boxes: m.Boxes, BoxSize: int64(m.BoxSize) * mib, BoxCount: m.BoxCount, KeepDays: m.KeepDays,
		Message: mailbox.MaxEnvelope, Note: m.Note, Relay: c.Services.Relay, DHT: c.Services.DHT, AutoNAT: c.Services.AutoNAT,
	}
}

// mailboxStatus is the mailbox's part of status. It names no box and no address.
type mailboxStatus struct {
	Boxes       int                  `json:"boxes"`
	Waiting     int                  `json:"waiting"` // envelopes
	Bytes       int64                `json:"bytes"`
	Ceiling     int64                `json:"ceiling"`
	Unaccounted int64                `json:"unaccounted"` // must be 0
	Open        pool                 `json:"open"`
	Vouched     pool                 `json:"vouched"`
	Oldest      time.Time            `json:"oldest,omitzero"` // day on which the oldest envelope that waits came
	OldestDays  int                  `json:"oldest_days"`     // how long ago
	Days        []dayUse             `json:"days"`
	Lately      lately               `json:"lately"`
	Accepted    uint64               `json:"accepted"` // since the start, as what follows
	Fetched     uint64               `json:"fetched"`
	Acked       uint64               `json:"acked"`
	Expired     uint64               `json:"expired"`
	Commits     uint64               `json:"commits"`
	CommitP50   float64              `json:"commit_p50_ms"`
	CommitP99   float64              `json:"commit_p99_ms"`
	Pending     int                  `json:"pending"` // requests that wait for their commit
	Garbage     int64                `json:"garbage"` // bytes of envelopes that are gone and still take room
	Free        int64                `json:"free"`    // of the disk
	Tables      int64                `json:"tables"`  // bytes of the database's files
	Damaged     int                  `json:"damaged"`
	DamagedTill time.Time            `json:"damaged_until,omitzero"` // no absence is certified before: mail may be missing
	DrainUntil  time.Time            `json:"drain_until,omitzero"`
	Refused     map[string]uint64    `json:"refused"` // by the queue
	Wrong       []problem            `json:"wrong,omitempty"`
	Policy      policy               `json:"policy"`
	Server      mailbox.ServerStatus `json:"server"`
}

// dayUse is what ends on a day.
type dayUse struct {
	HeldUntil time.Time `json:"held_until"`
	Waiting   int       `json:"waiting"`
	Bytes     int64     `json:"bytes"`
}

// problem is what keeps the mailbox from serving as it should, and what helps.
type problem struct {
	What string `json:"what"`
	Fix  string `json:"fix"`
	Down bool   `json:"down"` // it does not serve: a watchdog should act
}

func (k keeper) status() *mailboxStatus {
	if k.queue == nil {
		return nil
	}
	q := k.queue.Stats()
	s := &mailboxStatus{
		Boxes: q.Boxes, Waiting: q.Waiting, Bytes: q.Bytes, Ceiling: q.Ceiling, Unaccounted: q.Unaccounted, Open: poolOf(q.Open), Vouched: poolOf(q.Vouched),
		Oldest: q.Oldest, Days: []dayUse{}, Accepted: q.Accepted, Fetched: q.Fetched, Acked: q.Acked, Expired: q.Expired,
		Commits: q.Commits, CommitP50: q.CommitP50.Seconds() * 1000, CommitP99: q.CommitP99.Seconds() * 1000, Pending: q.Pending,
		Garbage: q.Garbage, Free: q.Free, Tables: q.Tables, Damaged: q.Damaged, DamagedTill: q.DamagedUntil, DrainUntil: q.DrainUntil, Refused: q.Refused,
		Policy: k.policy, Wrong: wrong(q),
	}
	for _, d := range q.Days {
		s.Days = append(s.Days, dayUse{d.HeldUntil, d.Waiting, d.Bytes})
	}
	if k.past != nil {
		s.Lately = k.past.day(q)
		if !q.Oldest.IsZero() {
			s.OldestDays = max(0, int(k.past.clock.Now().Sub(q.Oldest).Hours()/24))
		}
	}
	if k.server != nil {
		s.Server = k.server.Status()
	}
	return s
}

// hangs is how long a write may take before it counts as one that will not come back.
const hangs = time.Minute

// wrong names what keeps the mailbox from serving, worst first.
func wrong(q mailbox.QueueStats) (list []problem) {
	full := q.Ceiling > 0 && (q.Open.Bytes > q.Open.Limit/10*9 || q.Vouched.Bytes > q.Vouched.Limit/10*9)
	for _, w := range []struct {
		is bool
		problem
	}{
		{q.Failed != nil, problem{fmt.Sprintf("a write failed, and nothing is taken or given until the next start: %v", q.Failed),
			"look at the disk (dmesg), then restart the volunteer: systemctl restart sotto-mailbox", true}},
		{q.Stuck > hangs, problem{fmt.Sprintf("a write hangs since %s", q.Stuck.Round(time.Second)), "look at the disk (dmesg, iostat); a restart helps only if it answers again", true}},
		{q.Unaccounted != 0, problem{fmt.Sprintf("the accounts are %d bytes off", q.Unaccounted), "restart the volunteer, which counts anew, and report it", true}},
		{q.Damaged > 0, problem{fmt.Sprintf("damage was found %d times; what is whole is served", q.Damaged),
			"sotto-mailbox backup DIR, then stop the volunteer and run sotto-mailbox verify; look at the disk (smartctl)", false}},
		{q.Damaged == 0 && !q.DamagedUntil.IsZero(), problem{"a backup was restored or damage was found before, so mail may be missing: no absence of mail is certified until " + q.DamagedUntil.Format(time.DateOnly), "", false}},
		{q.Full, problem{fmt.Sprintf("the disk is too full to take more: %s are free", size(q.Free)),
			"free some of the disk, or lend less: sotto-mailbox quota set SIZE; [mailbox] reserve says how much stays free", false}},
		{full && !q.Full, problem{fmt.Sprintf("the quota is nearly used up: open boxes %s of %s, vouched ones %s of %s",
			size(q.Open.Bytes), size(q.Open.Limit), size(q.Vouched.Bytes), size(q.Vouched.Limit)), "lend more: sotto-mailbox quota set SIZE", false}},
		{q.Paused != "", problem{q.Paused, "set the clock right (timedatectl), then: sotto-mailbox resume", false}},
		{q.Refusing, problem{"takes no deposits, as it was told", "", false}},
		{!q.DrainUntil.IsZero(), problem{"draining: takes nothing new until " + day(q.DrainUntil) + ", and hands out what it has", "to serve on after all: sotto-mailbox drain --stop", false}},
	} {
		if w.is {
			list = append(list, w.problem)
		}
	}
	return list
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

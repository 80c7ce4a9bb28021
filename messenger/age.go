package messenger

import (
	"encoding/binary"
	"errors"
	"time"

	"sotto/store"
)

// A clock that jumps must not make anything expire before its time. A program that was off for long cannot tell its
// absence from a jump; so after either it runs for a day before it believes the clock enough to give anything up.
const (
	settingClock = "clock-seen" // wall time in Unix seconds || hours still to run
	jump         = 24 * time.Hour
	probation    = 24 // hours
)

// age is what the program knows of its clock.
type age struct {
	seen  time.Time // wall time when it was noted last
	hours uint64    // that the program still has to run before the clock is believed
}

// noteClock compares wall time with what it was ran ago, and keeps both in the store.
func (m *Messenger) noteClock(tx *store.Tx, ran time.Duration) error {
	now := m.clock.Now()
	raw, err := tx.Setting(settingClock)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	next := age{seen: now}
	if len(raw) == 16 {
		seen := time.Unix(int64(binary.BigEndian.Uint64(raw)), 0)
		next.hours = binary.BigEndian.Uint64(raw[8:])
		switch off := now.Sub(seen) - ran; {
		case off > jump || off < -jump:
			next.hours = probation
		case next.hours > 0 && ran > 0:
			next.hours--
		}
	}
	m.mu.Lock()
	m.age = next
	m.mu.Unlock()
	raw = binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
	return tx.PutSetting(settingClock, binary.BigEndian.AppendUint64(raw, next.hours))
}

// doubtful reports whether the clock may not be a reason to give something up.
func (m *Messenger) doubtful(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := now.Sub(m.age.seen)
	return m.age.hours > 0 || since > jump+upkeepEvery || since < -jump
}

package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A salvage repairs what it took: rows that need one that is gone are dropped or ended, and what is made from rows is made anew.

// repair makes indexes, counts and the event log agree with the rows that are left.
func (v *salvager) repair() error {
	for _, fix := range []func(*Tx) error{
		v.dropParts, v.dropStrays, v.giveUp, v.recount, v.indexMessages, v.dropDangling, v.indexOthers, v.cutEvents, v.resetSessions, v.countLosses,
	} {
		if err := v.to.View(fix); err != nil {
			return fmt.Errorf("store: salvage: %w", err)
		}
		if err := v.write(); err != nil {
			return err
		}
	}
	return nil
}

// set queues a repaired row; the views that find them do not see each other's writes before the next repair.
func (v *salvager) set(k []byte, row any) error {
	plain, isBytes := row.([]byte)
	if !isBytes {
		var err error
		if plain, err = encMode.Marshal(row); err != nil {
			return err
		}
	}
	return v.queue(rawEntry{key: k, value: plain})
}

func (v *salvager) drop(k []byte) error { return v.queue(rawEntry{key: k, deleted: true}) }

func (v *salvager) queue(e rawEntry) error {
	if e.value == nil {
		e.value = []byte{}
	}
	v.rows = append(v.rows, e)
	v.size += len(e.key) + len(e.value) + rowOverhead
	v.report.Rows-- // counted when it was salvaged
	if v.size > batchBytes/2 || len(v.rows) >= batchRows/2 {
		return v.write()
	}
	return nil
}

// dropParts removes what belongs to a row that is gone: states without their message, halves of sessions, also of another age.
func (v *salvager) dropParts(tx *Tx) error {
	without := func(part, of table) error {
		return v.dropIf(tx, part, func(k []byte) bool {
			_, err := tx.getRaw(key(of, k[1:]))
			return errors.Is(err, ErrNotFound)
		})
	}
	return errors.Join(without(tStatus, tMessage), without(tSession, tSessionTail), without(tSessionTail, tSession),
		tx.iterate(scan{prefix: key(tSession)}, func(k, plain []byte) (bool, error) {
			var row Session
			if err := decode(plain, &row); err != nil {
				return false, err
			}
			tail := key(tSessionTail, k[1:])
			if b, err := tx.getRaw(tail); err != nil || tailSum(b) == row.TailSum {
				return true, ignoreMissing(err)
			}
			return true, errors.Join(v.drop(k), v.drop(tail))
		}))
}

func ignoreMissing(err error) error {
	_, err = found(err)
	return err
}

// dropStrays removes what nobody can use without a row that is gone: what is of a contact, and keys of a session. An entry of the outbox whose
// message is gone still goes out, as one of which the person here knows nothing.
func (v *salvager) dropStrays(tx *Tx) error {
	known := map[[32]byte]bool{}
	contacts, err := tx.Contacts()
	if err != nil {
		return err
	}
	for _, c := range contacts {
		known[c.Account] = true
	}
	stray := func(k []byte) bool { return !known[[32]byte(k[1:33])] }
	live := map[[16]byte]bool{}
	err = tx.iterate(scan{prefix: key(tSession), keysOnly: true}, func(k, _ []byte) (bool, error) {
		live[[16]byte(k[len(k)-16:])] = !stray(k)
		return true, nil
	})
	if err != nil {
		return err
	}
	return errors.Join(
		v.dropIf(tx, tSkipped, func(k []byte) bool { return !live[[16]byte(k[1:17])] }),
		v.dropIf(tx, tSession, stray), v.dropIf(tx, tSessionTail, stray), v.dropIf(tx, tContactSecret, stray), v.dropIf(tx, tGranted, stray), v.dropIf(tx, tLate, stray),
		tx.iterate(scan{prefix: key(tPendingAdd)}, func(k, plain []byte) (bool, error) {
			var row PendingAdd
			if err := decode(plain, &row); err != nil {
				return false, err
			}
			if known[row.Account] {
				return true, nil
			}
			return true, v.drop(k)
		}),
		tx.iterate(scan{prefix: key(tOutgoing)}, func(k, plain []byte) (bool, error) {
			if stray(k) {
				return true, v.drop(k)
			}
			out, err := tx.readOutgoing(k, plain)
			if err != nil || out.Control {
				return err == nil, err
			}
			if _, err := tx.getRaw(messageKey(out.Talk, out.Row)); !errors.Is(err, ErrNotFound) {
				return true, err
			}
			out.Control = true
			return true, v.set(k, out)
		}))
}

// States of a message that waits to go out, and of one that will not: the messenger's words.
const (
	messageQueued = "queued"
	messageHeld   = "held"
	messageFailed = "failed"
)

// giveUp ends the waiting of messages whose outbox entry is gone: nothing would send them, and nobody would ever be told.
func (v *salvager) giveUp(tx *Tx) error {
	waiting := map[[16]byte]bool{}
	entries, err := all[Outgoing](tx, key(tOutgoing))
	if err != nil {
		return err
	}
	for _, out := range entries {
		waiting[out.MsgID] = true
	}
	return tx.iterate(scan{prefix: key(tMessage)}, func(k, plain []byte) (bool, error) {
		m, err := readMessage(k, plain)
		if err != nil {
			return false, err
		}
		changed, _, err := tx.State(m.Conv, m.Seq)
		if err != nil || !m.Out || changed != "" && changed != messageHeld || m.State != messageQueued || waiting[m.ID] {
			return true, err
		}
		v.talk(k[1:17]).unsent++
		why := "how far it had come was lost with a damaged disk: ask whether it arrived, or write it again"
		return true, v.set(statusKey(m.Conv, m.Seq), status{State: messageFailed, Why: why, Changed: v.to.now()})
	})
}

// recount makes the counts anew from the messages there are.
func (v *salvager) recount(tx *Tx) error {
	sums := map[string]*tally{}
	count := func(k []byte, seq, one uint64, h [32]byte) {
		t := sums[string(k)]
		if t == nil {
			t = &tally{}
			sums[string(k)] = t
		}
		t.Count += one
		t.Last = max(t.Last, seq)
		t.mix(h)
	}
	for _, counted := range []struct {
		t   table
		one uint64
	}{{tMessage, 1}, {tStatus, 0}} {
		err := tx.iterate(scan{prefix: key(counted.t)}, func(k, plain []byte) (bool, error) {
			conv, seq := [16]byte(k[1:17]), binary.BigEndian.Uint64(k[17:])
			h := tx.s.rowHash(k, plain)
			count(key(tTally, conv[:]), seq, counted.one, h)
			count(blockKey(conv, seq/blockRows), seq, counted.one, h)
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	for _, t := range []table{tTally, tBlock} {
		err := tx.iterate(scan{prefix: key(t)}, func(k, plain []byte) (bool, error) {
			var old tally
			if err := decode(plain, &old); err != nil {
				return false, err
			}
			kept := sums[string(k)]
			if kept == nil {
				v.missing(t, k, old.Count)
				return true, v.drop(k)
			}
			if old.Count > kept.Count {
				v.missing(t, k, old.Count-kept.Count)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	for k, t := range sums {
		if err := v.set([]byte(k), *t); err != nil {
			return err
		}
	}
	return nil
}

// missing notes messages that the count of a conversation, or of a block of it, knows of.
func (v *salvager) missing(t table, k []byte, n uint64) {
	if loss := v.talk(k[1:17]); t == tTally {
		loss.counted += int(n)
	} else {
		loss.blocks += int(n)
	}
}

// indexMessages gives every message its id and its place again.
func (v *salvager) indexMessages(tx *Tx) error {
	return tx.iterate(scan{prefix: key(tMessage)}, func(k, plain []byte) (bool, error) {
		m, err := readMessage(k, plain)
		if err != nil {
			return false, err
		}
		if err := v.set(key(tMessageID, m.ID[:]), place{m.Conv, m.Seq}); err != nil {
			return false, err
		}
		return true, v.set(orderKey(m), nil)
	})
}

// dropDangling removes index rows whose row is gone. An id stays known as deleted, so that its message is not shown twice.
func (v *salvager) dropDangling(tx *Tx) error {
	gone := func(k []byte) bool {
		_, err := tx.getRaw(k)
		return errors.Is(err, ErrNotFound)
	}
	return errors.Join(
		tx.iterate(scan{prefix: key(tMessageID)}, func(k, plain []byte) (bool, error) {
			var at place
			if err := decode(plain, &at); err != nil {
				return false, err
			}
			if at.Seq == 0 || !gone(messageKey(at.Conv, at.Seq)) {
				return true, nil
			}
			v.talk(at.Conv[:]).ids++
			return true, v.set(k, place{Conv: at.Conv})
		}),
		v.dropIf(tx, tOrder, func(k []byte) bool {
			if !gone(ordered(k)) {
				return false
			}
			v.talk(k[1:17]).places++
			return true
		}),
		v.dropIf(tx, tSessionOf, func(k []byte) bool { return gone(key(tSession, k[1:])) }),
		tx.iterate(scan{prefix: key(tSessionID)}, func(k, plain []byte) (bool, error) {
			var owner sessionOwner
			if err := decode(plain, &owner); err != nil {
				return false, err
			}
			if !gone(key(tSession, owner.Account[:], owner.Device[:], k[1:])) {
				return true, nil
			}
			v.dangled[tSession]++
			return true, v.drop(k)
		}),
		tx.iterate(scan{prefix: key(tInviteName)}, func(k, plain []byte) (bool, error) {
			if !gone(key(tInvite, plain)) {
				return true, nil
			}
			v.dangled[tInvite]++
			return true, v.drop(k)
		}),
		tx.iterate(scan{prefix: key(tName)}, func(k, plain []byte) (bool, error) {
			var entry nameEntry
			if err := decode(plain, &entry); err != nil {
				return false, err
			}
			if entry.Kind != nameContact || !gone(key(tContact, entry.ID)) {
				return true, nil
			}
			v.names = append(v.names, string(k[1:]))
			return true, v.drop(k) // or nobody could be called so again
		}),
	)
}

func (v *salvager) dropIf(tx *Tx, t table, gone func(k []byte) bool) error {
	return tx.iterate(scan{prefix: key(t), keysOnly: true}, func(k, _ []byte) (bool, error) {
		if gone(k) {
			return true, v.drop(k)
		}
		return true, nil
	})
}

// indexOthers gives sessions, contacts and invites their index rows again.
func (v *salvager) indexOthers(tx *Tx) error {
	err := tx.iterate(scan{prefix: key(tSession), keysOnly: true}, func(k, _ []byte) (bool, error) {
		account, device, id := [32]byte(k[1:33]), [16]byte(k[33:49]), k[49:]
		return true, errors.Join(v.set(key(tSessionID, id), sessionOwner{account, device}), v.set(key(tSessionOf, k[1:]), nil))
	})
	contacts, cerr := tx.Contacts()
	for _, c := range contacts {
		if c.Name != "" {
			err = errors.Join(err, v.set(nameKey(c.Name), nameEntry{Kind: nameContact, ID: c.Account[:]}))
		}
	}
	invites, ierr := tx.Invites()
	for _, row := range invites {
		if row.Name != ([32]byte{}) {
			err = errors.Join(err, v.set(key(tInviteName, row.Name[:]), row.ID[:]))
		}
	}
	return errors.Join(err, cerr, ierr)
}

// cutEvents keeps the newest events that follow each other without a gap: readers resume behind them.
func (v *salvager) cutEvents(tx *Tx) error {
	last, err := tx.LastSeq()
	if err != nil {
		return err
	}
	next, oldest, found := last, last+1, 0
	err = tx.iterate(scan{prefix: key(tEvent), reverse: true, keysOnly: true}, func(k, _ []byte) (bool, error) {
		oldest = binary.BigEndian.Uint64(k[1:])
		found++
		if oldest == next {
			next--
			return true, nil
		}
		next = 0
		return true, v.drop(k)
	})
	v.dangled[tEvent] = int(last+1-oldest) - found
	return err
}

// resetSessions puts every session behind its floor: the state that is left may be an older one.
func (v *salvager) resetSessions(tx *Tx) error {
	return tx.iterate(scan{prefix: key(tSessionID), keysOnly: true}, func(k, _ []byte) (bool, error) {
		v.to.floor.given[v.to.floor.tag([16]byte(k[1:]))] = resetPosition
		return true, nil
	})
}

// indexRows are made anew from the rows they lead to, or are a part of one: as such nobody misses them.
var indexRows = []table{tState, tName, tTally, tBlock, tOrder, tStatus, tMessageID, tSessionID, tSessionOf, tSessionTail, tHeading, tInviteName}

// countLosses counts what there is and what is known to be missing.
func (v *salvager) countLosses(tx *Tx) error {
	messages := map[[16]byte]int{}
	err := tx.iterate(scan{keysOnly: true}, func(k, _ []byte) (bool, error) {
		t := table(k[0])
		if !slices.Contains(indexRows, t) {
			v.report.Kept[rowName(k)]++
		}
		if t == tMessage {
			messages[[16]byte(k[1:17])]++
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	lost := map[table]int{tContact: len(v.names)}
	for id, r := range v.refused {
		if seen, ok := v.newest[id]; ok {
			if seen < r.version {
				v.report.Older++
			}
			continue
		}
		if t := table(r.key[0]); t == tMessage {
			v.talk(r.key[1:17]).refused++
		} else if !slices.Contains(indexRows, t) {
			lost[t]++
		}
	}
	for t, n := range v.dangled {
		lost[t] = max(lost[t], n)
	}
	if v.report.Kept[tableNames[tSelf]] == 0 {
		lost[tSelf] = 1
	}
	if err := v.lostMessages(tx, messages); err != nil {
		return err
	}
	for _, t := range slices.Sorted(maps.Keys(lost)) {
		if lost[t] > 0 {
			loss := Loss{Kind: tableNames[t], Kept: v.report.Kept[tableNames[t]], Lost: lost[t]}
			if t == tContact {
				loss.Of = strings.Join(v.names, ", ")
			}
			v.report.Lost = append(v.report.Lost, loss)
		}
	}
	return nil
}

// lostMessages reports each conversation that misses some, the ones that miss most first.
func (v *salvager) lostMessages(tx *Tx, kept map[[16]byte]int) error {
	names, err := v.whose(tx)
	if err != nil {
		return err
	}
	for conv, loss := range v.talks {
		if loss.most()+loss.unsent == 0 {
			continue
		}
		name := names[conv]
		if name == "" {
			name = fmt.Sprintf("a lost contact (conversation %x)", conv[:4])
		}
		if v.report.Holes += loss.most(); loss.most() > 0 {
			v.report.Lost = append(v.report.Lost, Loss{Kind: tableNames[tMessage], Of: name, Kept: kept[conv], Lost: loss.most()})
		}
		if loss.unsent > 0 {
			v.report.Lost = append(v.report.Lost, Loss{Kind: tableNames[tOutgoing], Of: name, Lost: loss.unsent})
		}
	}
	slices.SortFunc(v.report.Lost, func(a, b Loss) int { return cmp.Or(b.Lost-a.Lost, strings.Compare(a.Of, b.Of)) })
	return nil
}

// whose says which contact's a conversation is.
func (v *salvager) whose(tx *Tx) (map[[16]byte]string, error) {
	contacts, err := tx.Contacts()
	if err != nil {
		return nil, err
	}
	names := map[[16]byte]string{}
	for _, c := range contacts {
		names[c.Conv] = c.Name
	}
	return names, nil
}

package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/dgraph-io/badger/v4"
)

// SalvageReport says what a salvage read.
type SalvageReport struct {
	Rows    int      // rows the new store has
	Refused int      // versions that did not open
	Holes   int      // messages that were counted and are gone
	Damage  []Damage // files that could not be read wholly
}

// Salvage reads every file of the damaged store in from, with or without MANIFEST, and writes what opens into a fresh store in
// to. The damaged files are not changed. Every session is put behind its send floor: it receives on, but is reset before it sends.
func Salvage(ctx context.Context, from string, to Config) (SalvageReport, error) {
	lock, err := lockFile(filepath.Join(from, lockName))
	if err != nil {
		return SalvageReport{}, err
	}
	report, err := salvage(ctx, from, to)
	return report, errors.Join(err, unlockFile(lock))
}

// salvager writes the newest readable version of each row.
type salvager struct {
	to     *Store
	ring   *ring
	report SalvageReport
	newest map[rowID]uint64 // version written
	rows   []rawEntry       // the next batch, opened
	size   int
}

func salvage(ctx context.Context, from string, cfg Config) (SalvageReport, error) {
	if _, err := os.Lstat(filepath.Join(cfg.Dir, sentinelName)); err == nil {
		return SalvageReport{}, fmt.Errorf("store: salvage into %s: there is a store already: choose a fresh directory", cfg.Dir)
	}
	to, err := Open(ctx, cfg)
	if err != nil {
		return SalvageReport{}, fmt.Errorf("store: salvage: %w", err)
	}
	v := &salvager{to: to, newest: map[rowID]uint64{}, ring: &ring{}}
	err = v.run(ctx, from)
	return v.report, errors.Join(err, to.Close())
}

func (v *salvager) run(ctx context.Context, from string) error {
	if page, err := os.ReadFile(filepath.Join(from, pageName)); err != nil {
		v.found(pageName, err)
	} else if r, _, err := readRing(v.to.keys.page, page); err != nil {
		v.found(pageName, err)
	} else {
		v.ring = r
	}
	files, err := v.openAny(from)
	if err != nil {
		return fmt.Errorf("store: salvage: no key registry can be read: %w", err)
	}
	defer files.close()
	for _, t := range files.live {
		err := files.anyEntries(t, v.within(ctx))
		if ctx.Err() != nil || errors.Is(err, ErrFull) {
			return err
		}
		v.found("table "+strconv.FormatUint(t.id, 10), err)
	}
	for _, name := range files.logs {
		if err := files.readLog(name, true, v.take); err != nil {
			v.found(filepath.Base(name), err)
		}
	}
	if err := v.write(); err != nil {
		return err
	}
	return v.repair()
}

func (v *salvager) found(where string, err error) {
	if err != nil {
		v.report.Damage = append(v.report.Damage, Damage{Where: where, What: err.Error()})
	}
}

// openAny takes the key registry of the store or one of its copies, and every table there is.
func (v *salvager) openAny(from string) (*engineFileSet, error) {
	files, err := v.registry(from, filepath.Join(from, engineDir))
	for n := 1; (err != nil || len(files.dataKeys()) == 0) && n <= keptCopies; n++ {
		if err == nil {
			err = errors.New("the key registry is empty")
		}
		v.found(badger.KeyRegistryFileName, err)
		var dir string
		if dir, err = os.MkdirTemp(v.to.cfg.Dir, "registry"); err != nil {
			return nil, err
		}
		b, rerr := os.ReadFile(filepath.Join(from, keepDir, badger.KeyRegistryFileName+"."+strconv.Itoa(n)))
		if rerr == nil {
			rerr = os.WriteFile(filepath.Join(dir, badger.KeyRegistryFileName), b, 0o600)
		}
		if rerr == nil {
			files, err = v.registry(from, dir)
		} else {
			err = rerr
		}
		if rerr := os.RemoveAll(dir); rerr != nil {
			return nil, rerr
		}
	}
	if err != nil {
		return nil, err
	}
	names, err := engineFiles(from, ".sst")
	if err != nil {
		files.close()
		return nil, err
	}
	known := map[uint64]uint64{}
	if live, err := liveTables(filepath.Join(from, engineDir, badger.ManifestFilename)); err == nil {
		for _, t := range live {
			known[t.id] = t.keyID
		}
	} else {
		v.found(badger.ManifestFilename, err)
	}
	for id := range known {
		files.live = append(files.live, tableFile{id: id, keyID: known[id]})
	}
	for _, name := range names { // also those it does not name: the newest version of a row wins
		if id, ok := tableID(name); ok && known[id] == 0 {
			files.live = append(files.live, tableFile{id: id})
		}
	}
	newestFirst(files.live)
	return files, nil
}

// registry takes the key registry in a directory.
func (v *salvager) registry(from, dir string) (*engineFileSet, error) {
	if err := checkRegistry(filepath.Join(dir, badger.KeyRegistryFileName)); err != nil {
		return nil, err
	}
	return newEngineFiles(from, v.to.keys.db, dir)
}

func (v *salvager) within(ctx context.Context) func(rawEntry) error {
	return func(e rawEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return v.take(e)
	}
}

// take keeps a version when it opens and is the newest of its row so far.
func (v *salvager) take(e rawEntry) error {
	if len(e.key) == 0 || tableNames[table(e.key[0])] == "" {
		return nil // the engine's own
	}
	id := e.id()
	if seen, ok := v.newest[id]; ok && seen >= e.version {
		return nil
	}
	if !e.deleted {
		plain, err := v.to.rows.open(v.ring, e.key, e.value)
		if err != nil {
			v.report.Refused++
			return nil
		}
		e.value = plain
	}
	v.newest[id] = e.version
	v.rows = append(v.rows, e)
	v.size += len(e.key) + len(e.value) + rowOverhead
	if v.size > batchBytes/2 || len(v.rows) >= batchRows/2 {
		return v.write()
	}
	return nil
}

func (v *salvager) write() error {
	if len(v.rows) == 0 {
		return nil
	}
	err := v.to.Update(func(tx *Tx) error {
		for _, e := range v.rows {
			if table(e.key[0]) == tState { // counters go on where they were
				var state counters
				if decode(e.value, &state) == nil {
					tx.state.Event, tx.state.Next = max(tx.state.Event, state.Event), max(tx.state.Next, state.Next)
				}
				continue
			}
			if e.deleted {
				tx.own.set(string(e.key), nil)
			} else {
				tx.own.set(string(e.key), e.value)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store: salvage: %w", err)
	}
	v.report.Rows += len(v.rows)
	v.rows, v.size = nil, 0
	return nil
}

// repair makes indexes, counts and the event log agree with the rows that are left.
func (v *salvager) repair() error {
	for _, fix := range []func(*Tx) error{
		v.dropParts, v.recount, v.indexMessages, v.dropDangling, v.indexOthers, v.cutEvents, v.resetSessions,
	} {
		if err := v.to.View(fix); err != nil {
			return fmt.Errorf("store: salvage: %w", err)
		}
		if err := v.write(); err != nil {
			return err
		}
	}
	return v.to.Update(func(tx *Tx) error {
		_, err := tx.AppendEvent("store.salvaged", v.report)
		return err
	})
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

// dropParts removes what belongs to a row that is gone: states without their message, halves of sessions.
func (v *salvager) dropParts(tx *Tx) error {
	without := func(part, of table) error {
		return v.dropIf(tx, part, func(k []byte) bool {
			_, err := tx.getRaw(key(of, k[1:]))
			return errors.Is(err, ErrNotFound)
		})
	}
	return errors.Join(without(tStatus, tMessage), without(tSession, tSessionTail), without(tSessionTail, tSession))
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
				kept = &tally{}
				return true, v.missing(t, old, tally{}, v.drop(k))
			}
			return true, v.missing(t, old, *kept, nil)
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

func (v *salvager) missing(t table, old, kept tally, err error) error {
	if t == tTally && old.Count > kept.Count {
		v.report.Holes += int(old.Count - kept.Count)
	}
	return err
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
			return true, v.set(k, place{Conv: at.Conv})
		}),
		v.dropIf(tx, tOrder, func(k []byte) bool { return gone(ordered(k)) }),
		v.dropIf(tx, tSessionOf, func(k []byte) bool { return gone(key(tSession, k[1:])) }),
		v.dropIf(tx, tSessionOf, func(k []byte) bool { return gone(key(tSession, k[1:])) }),
		tx.iterate(scan{prefix: key(tSessionID)}, func(k, plain []byte) (bool, error) {
			var owner sessionOwner
			if err := decode(plain, &owner); err != nil {
				return false, err
			}
			if !gone(key(tSession, owner.Account[:], owner.Device[:], k[1:])) {
				return true, nil
			}
			return true, v.drop(k)
		}),
		tx.iterate(scan{prefix: key(tInviteName)}, func(k, plain []byte) (bool, error) {
			if !gone(key(tInvite, plain)) {
				return true, nil
			}
			return true, v.drop(k)
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
	sessions, err := all[Session](tx, key(tSession))
	for _, row := range sessions {
		err = errors.Join(err, v.set(key(tSessionID, row.ID[:]), sessionOwner{row.Account, row.Device}),
			v.set(key(tSessionOf, row.Account[:], row.Device[:], row.ID[:]), nil))
	}
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
	next := last
	return tx.iterate(scan{prefix: key(tEvent), reverse: true, keysOnly: true}, func(k, _ []byte) (bool, error) {
		if binary.BigEndian.Uint64(k[1:]) == next {
			next--
			return true, nil
		}
		next = 0
		return true, v.drop(k)
	})
}

// resetSessions puts every session behind its floor: the state that is left may be an older one.
func (v *salvager) resetSessions(tx *Tx) error {
	return tx.iterate(scan{prefix: key(tSessionID), keysOnly: true}, func(k, _ []byte) (bool, error) {
		v.to.floor.given[v.to.floor.tag([16]byte(k[1:]))] = resetPosition
		return true, nil
	})
}

// openReadable opens a read-only store over a salvaged copy of this one, whose own files stay as they are.
func (s *Store) openReadable(ctx context.Context, found []Damage) (*Store, error) {
	cause := errors.New(found[0].String())
	dir := s.cfg.path(readableDir)
	if err := os.RemoveAll(dir); err != nil {
		return nil, stop(s.cfg.path(engineDir), errors.Join(cause, err))
	}
	cfg := s.cfg
	cfg.Dir, cfg.Ballast, cfg.Probe, cfg.Fault = dir, -1, nil, nil
	if _, err := salvage(ctx, s.cfg.Dir, cfg); err != nil {
		return nil, stop(s.cfg.path(engineDir), errors.Join(cause, err))
	}
	copied, err := Open(ctx, cfg)
	if err != nil {
		return nil, stop(s.cfg.path(engineDir), errors.Join(cause, err))
	}
	copied.outer = s
	for _, d := range found {
		copied.note(d)
	}
	return copied, nil
}

package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	sst "github.com/dgraph-io/badger/v4/table"

	"sotto/internal/disk"
)

// SalvageReport says what a salvage read, and what it knows to be lost.
type SalvageReport struct {
	Rows    int            // rows the new store has
	Refused int            // versions that did not open
	Older   int            // rows of which only an older version opened
	Holes   int            // messages that are known to be lost
	Damage  []Damage       // files that could not be read wholly
	Kept    map[string]int // rows of each kind that the new store has
	Lost    []Loss
}

// Loss is what is known to be missing of a kind. There may be more: what nothing counted and no index named leaves no trace.
type Loss struct {
	Kind string // as a person calls it: message, contact, session …
	Of   string // the contact whose it is, where one can be told
	Kept int
	Lost int
}

// Salvage reads every file of the damaged store in from, with or without MANIFEST, and writes what opens into a fresh store in
// to. The damaged files are not changed. Every session is put behind its send floor: it receives on, but is reset before it sends.
func Salvage(ctx context.Context, from string, to Config) (SalvageReport, error) {
	lock, err := lockFile(filepath.Join(from, lockName))
	if errors.Is(err, syscall.EROFS) { // a disk that died and was mounted to be read: nobody can write there
		lock, err = nil, nil
	}
	if err != nil {
		return SalvageReport{}, err
	}
	v, err := salvage(ctx, from, to)
	if v != nil {
		err = errors.Join(err, v.to.Close())
	}
	if lock != nil {
		err = errors.Join(err, disk.Unlock(lock))
	}
	if v == nil {
		return SalvageReport{}, err
	}
	return v.report, err
}

// salvager writes the newest readable version of each row.
type salvager struct {
	to      *Store
	ring    *ring
	exact   bool // nothing is damaged: the tables that the MANIFEST names, and no others
	live    bool // the table being read is one of those
	report  SalvageReport
	commit  uint64           // the newest one found
	newest  map[rowID]uint64 // version written
	refused map[rowID]refusal
	talks   map[[16]byte]*talkLoss
	dangled map[table]int // rows that only an index still names
	names   []string      // of contacts that are gone
	rows    []rawEntry    // the next batch, opened
	size    int
}

// refusal is the newest version of a row that did not open.
type refusal struct {
	key     []byte
	version uint64
}

// talkLoss is how many messages of a conversation are gone, as each of those who know counts them: the conversation's count, the
// counts of its blocks, the ids and places that lead nowhere, the rows that did not open. Each may be lost itself.
type talkLoss struct {
	counted, blocks, ids, places, refused int
	unsent                                int // own messages whose outbox entry is gone
}

func (l talkLoss) most() int { return max(l.counted, l.blocks, l.ids, l.places, l.refused) }

func newSalvager(to *Store) *salvager {
	return &salvager{to: to, ring: &ring{}, newest: map[rowID]uint64{}, refused: map[rowID]refusal{},
		talks: map[[16]byte]*talkLoss{}, dangled: map[table]int{}, report: SalvageReport{Kept: map[string]int{}}}
}

func (v *salvager) talk(conv []byte) *talkLoss {
	id := [16]byte(conv)
	if v.talks[id] == nil {
		v.talks[id] = &talkLoss{}
	}
	return v.talks[id]
}

// salvage makes a fresh store of what can be read in from. The caller closes it, also after an error.
func salvage(ctx context.Context, from string, cfg Config) (*salvager, error) {
	if _, err := os.Lstat(cfg.path(sentinelName)); err == nil {
		return nil, fmt.Errorf("store: salvage into %s: there is a store already: choose a fresh directory", cfg.Dir)
	}
	to, err := Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("store: salvage: %w", err)
	}
	v := newSalvager(to)
	if err := v.run(ctx, from); err != nil {
		return v, err
	}
	summary := struct{ Rows, Refused, Holes, Files int }{v.report.Rows, v.report.Refused, v.report.Holes, len(v.report.Damage)}
	return v, to.Update(func(tx *Tx) error {
		_, err := tx.AppendEvent("store.salvaged", summary)
		return err
	})
}

func (v *salvager) run(ctx context.Context, from string) error {
	if page, err := os.ReadFile(filepath.Join(from, pageName)); err != nil {
		v.found(filepath.Join(from, pageName), err)
	} else if r, _, err := readRing(v.to.keys.page, page); err != nil {
		v.found(filepath.Join(from, pageName), err)
	} else {
		v.ring = r
	}
	files, err := v.openAny(from)
	if err != nil {
		return fmt.Errorf("store: salvage: no key registry can be read: %w", err)
	}
	defer files.close()
	known := slices.ContainsFunc(files.live, func(t tableFile) bool { return t.keyID != 0 }) // a MANIFEST told
	for _, t := range files.live {
		read := 0
		v.live = t.keyID != 0 || !known
		err := files.anyEntries(t, func(e rawEntry) error {
			read++
			return v.within(ctx, e)
		})
		if ctx.Err() != nil || errors.Is(err, ErrFull) {
			return err
		}
		if err != nil {
			err = fmt.Errorf("%w; %d of its rows were read", err, read)
		}
		v.found(filepath.Join(from, engineDir, sst.IDToFilename(t.id)), err)
	}
	v.live = true
	for _, name := range files.logs {
		if err := files.readLog(name, true, v.take); err != nil {
			v.found(name, err)
		}
	}
	if err := v.write(); err != nil {
		return err
	}
	if head, err := os.ReadFile(filepath.Join(from, headName)); err == nil && parseHead(head) > v.commit {
		v.found(filepath.Join(from, engineDir), fmt.Errorf("the newest change found is number %d, %d were made: what is between is lost", v.commit, parseHead(head)))
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
		v.found(filepath.Join(from, engineDir, badger.KeyRegistryFileName), err)
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
	if live, err := liveTables(filepath.Join(from, engineDir)); err == nil {
		for _, t := range live {
			known[t.id] = t.keyID
		}
	} else {
		v.found(filepath.Join(from, engineDir, badger.ManifestFilename), err)
	}
	for id := range known {
		files.live = append(files.live, tableFile{id: id, keyID: known[id]})
	}
	for _, name := range names { // but for a store that is whole, also those it does not name: the newest version of a row wins
		if id, ok := tableID(name); ok && known[id] == 0 && !v.exact {
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

func (v *salvager) within(ctx context.Context, e rawEntry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return v.take(e)
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
			if v.live && v.refused[id].version <= e.version {
				v.refused[id] = refusal{e.key, e.version}
			}
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
					v.commit = max(v.commit, state.Commit)
					tx.state.Event, tx.state.Next = max(tx.state.Event, state.Event), max(tx.state.Next, state.Next)
				}
				continue
			}
			switch n := e.number(); table(e.key[0]) { // nor are numbers given again that the newest counters knew of, if those are lost
			case tEvent:
				tx.state.Event = max(tx.state.Event, n)
			case tOutgoing, tTrace:
				tx.state.Next = max(tx.state.Next, n)
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

// number is the one that ends the row's key.
func (e rawEntry) number() uint64 {
	if len(e.key) < 9 {
		return 0
	}
	return binary.BigEndian.Uint64(e.key[len(e.key)-8:])
}

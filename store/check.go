package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/dgraph-io/badger/v4"
	sst "github.com/dgraph-io/badger/v4/table"
)

// startBudget is how many bytes of tables a start reads through, newest first; Run begins with the rest.
const startBudget = 96 << 20

// inspect reads the engine's files before the engine does. The engine would cut its write-ahead log at the first bad byte,
// take a bad block for an absent key, and crash on a bad footer.
func (s *Store) inspect(was sentinel) ([]Damage, error) {
	if err := checkRegistry(s.engineFile(badger.KeyRegistryFileName)); err != nil {
		return nil, stop(s.engineFile(badger.KeyRegistryFileName), err)
	}
	files, err := openEngineFiles(s.cfg.Dir, s.keys.db)
	if err != nil {
		return nil, stop(s.cfg.path(engineDir), err)
	}
	defer files.close()
	var found []Damage
	var newest uint64
	if was.Clean && len(files.live) != int(was.Tables) {
		found = append(found, Damage{Where: s.engineFile(badger.ManifestFilename),
			What: fmt.Sprintf("it names %d tables, there were %d", len(files.live), was.Tables)})
	}
	for _, t := range files.live {
		n, err := files.checkTable(t, &s.keys, s.rows)
		newest = max(newest, n)
		if err != nil {
			found = append(found, Damage{Where: s.engineFile(sst.IDToFilename(t.id)), What: err.Error()})
		}
	}
	for _, name := range files.logs {
		err := files.readLog(name, false, func(e rawEntry) error {
			newest = max(newest, s.commitOf(e))
			return nil
		})
		if err != nil {
			found = append(found, Damage{Where: name, What: err.Error()})
		}
	}
	promised := was.Commit
	head, err := os.ReadFile(s.cfg.path(headName))
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("store: read commit head: %w", err)
	}
	promised = max(promised, parseHead(head))
	if newest < promised && len(found) == 0 {
		found = append(found, Damage{Where: s.cfg.path(engineDir),
			What: fmt.Sprintf("they end at commit %d, %d was acknowledged: cut short, deleted, or an older copy", newest, promised)})
	}
	if len(found) == 0 {
		lost, err := files.lostTable()
		if err != nil {
			return nil, stop(s.cfg.path(engineDir), err)
		}
		if lost != "" {
			found = append(found, Damage{Where: s.engineFile(badger.ManifestFilename), What: "it does not name " + lost + ", which holds rows that are nowhere else"})
		}
	}
	s.unread = files.read >= files.budget
	return found, nil
}

// engineFile is the path of one of the engine's files.
func (s *Store) engineFile(name string) string { return filepath.Join(s.cfg.path(engineDir), name) }

// A key registry (badger key_registry.go) is an IV 16 || a known text 12, encrypted || data keys. Data key: length u32 || CRC-32C
// u32 || protobuf. A new one of about 70 bytes comes every ten days.
const (
	registryHead = 28
	mostRegistry = 1 << 20
)

// checkRegistry walks over a key registry before the engine's reader does, which makes room for whatever length it finds: four
// damaged bytes cost it four gigabytes and a quarter of a minute. One that is missing or empty is for others to judge.
func checkRegistry(path string) error {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() > mostRegistry {
		return fmt.Errorf("it has %d bytes, more than it ever needs", info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const frame = 8
	for rest := b[min(registryHead, len(b)):]; len(rest) > 0; {
		if len(rest) < frame || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-frame) {
			return fmt.Errorf("the data key at byte %d reaches beyond the end", len(b)-len(rest))
		}
		end := frame + int(binary.BigEndian.Uint32(rest))
		if crc32.Checksum(rest[frame:end], crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(rest[4:]) {
			return fmt.Errorf("the checksum of the data key at byte %d is wrong", len(b)-len(rest))
		}
		rest = rest[end:]
	}
	return nil
}

// commitOf reads the commit number if the entry is the row of counters.
func (s *Store) commitOf(e rawEntry) uint64 {
	if len(e.key) != 1 || table(e.key[0]) != tState || e.deleted {
		return 0
	}
	plain, err := s.rows.open(nil, e.key, e.value)
	if err != nil {
		return 0
	}
	var state counters
	if decode(plain, &state) != nil {
		return 0
	}
	return state.Commit
}

// keptCopies is how many copies of the engine's two irreplaceable files are kept, the newest being 1.
const keptCopies = 3

// keepCopies copies MANIFEST and KEYREGISTRY as the last run left them.
func (s *Store) keepCopies() error {
	if err := os.MkdirAll(s.cfg.path(keepDir), 0o700); err != nil {
		return fmt.Errorf("store: make directory: %w", err)
	}
	for _, name := range []string{badger.ManifestFilename, badger.KeyRegistryFileName} {
		b, err := os.ReadFile(filepath.Join(s.cfg.path(engineDir), name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("store: copy %s: %w", name, err)
		}
		copyName := func(n int) string { return filepath.Join(s.cfg.path(keepDir), name+"."+strconv.Itoa(n)) }
		if newest, err := os.ReadFile(copyName(1)); err == nil && slices.Equal(newest, b) {
			continue
		}
		for n := keptCopies - 1; n >= 1; n-- {
			if err := os.Rename(copyName(n), copyName(n+1)); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("store: copy %s: %w", name, err)
			}
		}
		if err := s.disk.replace(stepCopies, copyName(1), b); err != nil {
			return err
		}
	}
	return nil
}

// DeepReport is what a Deep check read.
type DeepReport struct {
	Rows     int
	Messages int
	Damage   []Damage
}

// Deep reads everything there is: every table's checksums, every row, every conversation's count, every index. It only reads,
// and what it finds makes the store read-only.
func (s *Store) Deep(ctx context.Context) (DeepReport, error) {
	var report DeepReport
	if err := s.db.VerifyChecksum(); err != nil {
		s.note(Damage{Where: "tables", What: err.Error()})
	}
	err := s.View(func(tx *Tx) error {
		for _, check := range []func(context.Context, *DeepReport) error{tx.deepRows, tx.deepTalks, tx.deepIndexes, tx.deepSessions, tx.deepEvents} {
			if err := check(ctx, &report); err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
		}
		return nil
	})
	report.Damage = s.Damage()
	return report, err
}

// deepRows opens every row. It goes on behind one that does not open.
func (tx *Tx) deepRows(ctx context.Context, report *DeepReport) error {
	it := tx.read.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if report.Rows++; report.Rows%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		k := it.Item().KeyCopy(nil)
		if _, ok := tableNames[table(k[0])]; !ok {
			_ = tx.s.damaged(k, errors.New("key of no known table"))
			continue
		}
		_, _ = tx.openItem(k, it.Item()) // notes what is wrong
	}
	return nil
}

// deepTalks recounts every block of every conversation and the conversations' totals.
func (tx *Tx) deepTalks(ctx context.Context, report *DeepReport) error {
	talks, err := tx.talks()
	if err != nil {
		return err
	}
	for _, c := range talks {
		sum := tally{Last: c.total.Last}
		for block := uint64(0); block <= c.total.Last/blockRows; block++ {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n, err := tx.checkBlock(c.id, block)
			report.Messages += n
			if err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
			part, err := tx.tally(blockKey(c.id, block))
			if err != nil {
				return err
			}
			sum.Count += part.Count
			sum.mix(part.Sum)
		}
		if sum != c.total {
			_ = tx.s.damaged(key(tTally, c.id[:]), errors.New("the parts of a conversation do not add up"))
		}
	}
	return nil
}

// deepIndexes follows every index to its row.
func (tx *Tx) deepIndexes(ctx context.Context, _ *DeepReport) error {
	return errors.Join(
		tx.follow(ctx, tOrder, func(k, _ []byte) []byte { return ordered(k) }),
		tx.follow(ctx, tMessageID, func(_, plain []byte) []byte {
			var at place
			if decode(plain, &at) != nil || at.Seq == 0 {
				return nil
			}
			return messageKey(at.Conv, at.Seq)
		}),
		tx.follow(ctx, tSessionOf, func(k, _ []byte) []byte { return key(tSession, k[1:]) }),
		tx.follow(ctx, tSessionID, func(k, plain []byte) []byte {
			var owner sessionOwner
			if decode(plain, &owner) != nil {
				return nil
			}
			return key(tSession, owner.Account[:], owner.Device[:], k[1:])
		}),
		tx.follow(ctx, tInviteName, func(_, plain []byte) []byte { return key(tInvite, plain) }),
	)
}

// deepSessions puts the parts of every session together.
func (tx *Tx) deepSessions(context.Context, *DeepReport) error {
	_, err := tx.AllSessions()
	return err
}

// deepEvents reads the event log from end to end.
func (tx *Tx) deepEvents(ctx context.Context, _ *DeepReport) error {
	for after := uint64(0); ctx.Err() == nil; {
		list, err := tx.EventsAfter(after, 0)
		if err != nil || len(list) == 0 {
			return err
		}
		after = list[len(list)-1].Seq
	}
	return ctx.Err()
}

func (tx *Tx) follow(ctx context.Context, t table, target func(k, plain []byte) []byte) error {
	return tx.iterate(scan{prefix: key(t)}, func(k, plain []byte) (bool, error) {
		to := target(k, plain)
		if to == nil {
			return true, ctx.Err()
		}
		_, err := tx.getRaw(to)
		_ = tx.s.danglingIndex(k, err) // notes it
		return true, ctx.Err()
	})
}

// tableID reads the number in a table's file name.
func tableID(name string) (uint64, bool) {
	base := filepath.Base(name)
	id, err := strconv.ParseUint(base[:max(0, len(base)-len(".sst"))], 10, 64)
	return id, err == nil
}

// version splits an engine key into ours and the version behind it.
func version(k []byte) ([]byte, uint64, bool) {
	if len(k) < 9 {
		return nil, 0, false
	}
	n := len(k) - 8
	return k[:n], ^binary.BigEndian.Uint64(k[n:]), true
}

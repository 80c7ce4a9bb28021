package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/options"
	sst "github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2"
	"github.com/dgraph-io/ristretto/v2/z"

	"sotto/internal/engine"
)

// engineFileSet reads the engine's files without the engine: nothing is changed, and what would crash it becomes an error.
type engineFileSet struct {
	dir      string
	registry *badger.KeyRegistry
	live     []tableFile // newest first
	logs     []string    // oldest first
	index    *ristretto.Cache[uint64, *fb.TableIndex]
	read     int64 // bytes of tables read through so far
	budget   int64 // and how many to read at most
}

type tableFile struct {
	id    uint64
	keyID uint64 // 0 when no MANIFEST tells: every data key is tried
}

// rawEntry is a version of a row as it lies in a file.
type rawEntry struct {
	key     []byte
	version uint64
	value   []byte
	deleted bool
}

// Marks of the engine's entries (badger value.go).
const (
	markDelete  = 1 << 0
	markPointer = 1 << 1
	markTxn     = 1 << 6
	markFinTxn  = 1 << 7
)

// openEngineFiles reads MANIFEST and key registry and lists what they name.
func openEngineFiles(dir string, key []byte) (*engineFileSet, error) {
	files, err := newEngineFiles(dir, key, filepath.Join(dir, engineDir))
	if err != nil {
		return nil, err
	}
	live, err := liveTables(filepath.Join(dir, engineDir))
	if err != nil {
		files.close()
		return nil, fmt.Errorf("%s: %w", badger.ManifestFilename, err)
	}
	files.live, files.budget = live, startBudget
	return files, nil
}

func newEngineFiles(dir string, key []byte, registryDir string) (*engineFileSet, error) {
	registry, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: registryDir, ReadOnly: true, EncryptionKey: key})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", badger.KeyRegistryFileName, err)
	}
	logs, err := engineFiles(dir, ".mem")
	if err != nil {
		return nil, err
	}
	index, err := ristretto.NewCache(&ristretto.Config[uint64, *fb.TableIndex]{NumCounters: 1000, MaxCost: 4 << 20, BufferItems: 64})
	if err != nil {
		return nil, err
	}
	return &engineFileSet{dir: filepath.Join(dir, engineDir), registry: registry, logs: logs, index: index, budget: 1 << 62}, nil
}

func (f *engineFileSet) close() { f.index.Close() }

// liveTables lists the tables that the MANIFEST of an engine's directory names, newest first.
func liveTables(dir string) ([]tableFile, error) {
	tables, err := engine.Tables(dir)
	if err != nil {
		return nil, err
	}
	var live []tableFile
	for id, t := range tables {
		live = append(live, tableFile{id: id, keyID: t.KeyID})
	}
	newestFirst(live)
	return live, nil
}

func newestFirst(live []tableFile) {
	slices.SortFunc(live, func(a, b tableFile) int {
		if a.id > b.id {
			return -1
		}
		return 1
	})
}

// takenBack lists the tables that a MANIFEST once named and names no more (badger manifest.go): magic u32 || version u32 ||
// change sets. Change set: length u32 || CRC-32C u32 || protobuf: repeated change 1 { id 1, operation 2: 1 takes back }.
func takenBack(manifest []byte) map[uint64]bool {
	gone := map[uint64]bool{}
	const frame = 8
	for rest := manifest[min(frame, len(manifest)):]; len(rest) >= frame; {
		size := uint64(binary.BigEndian.Uint32(rest))
		if size > uint64(len(rest)-frame) {
			break
		}
		set := rest[frame : frame+size]
		if crc32.Checksum(set, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(rest[4:]) {
			break
		}
		rest = rest[frame+size:]
		eachField(set, func(field, _ uint64, change []byte) {
			var id, op uint64
			eachField(change, func(field, n uint64, _ []byte) {
				switch field {
				case 1:
					id = n
				case 2:
					op = n
				}
			})
			if field == 1 {
				gone[id] = op == 1
			}
		})
	}
	return gone
}

// eachField calls fn with the numbers and the byte strings of a protobuf message, until something else comes.
func eachField(b []byte, fn func(field, n uint64, bytes []byte)) {
	for len(b) > 0 {
		tag, used := binary.Uvarint(b)
		if used <= 0 {
			return
		}
		b = b[used:]
		n, used := binary.Uvarint(b)
		if used <= 0 {
			return
		}
		b = b[used:]
		switch tag & 7 {
		case 0:
			fn(tag>>3, n, nil)
		case 2:
			if n > uint64(len(b)) {
				return
			}
			fn(tag>>3, 0, b[:n])
			b = b[n:]
		default:
			return
		}
	}
}

// withTable maps a table read-only and opens it; a crash of the engine's reader is an error.
func (f *engineFileSet) withTable(t tableFile, use func(*sst.Table) error) (err error) {
	fd, err := os.Open(filepath.Join(f.dir, sst.IDToFilename(t.id)))
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	info, err := fd.Stat()
	if err != nil {
		return err
	}
	if info.Size() < 16 {
		return errors.New("the file is cut short")
	}
	data, err := z.Mmap(fd, false, info.Size())
	if err != nil {
		return err
	}
	defer func() { _ = z.Munmap(data) }()
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the file cannot be read as a table")
		}
	}()
	key, err := f.registry.DataKey(t.keyID)
	if err != nil {
		return err
	}
	f.index.Clear() // the cache is keyed by table only, not by data key
	opened, err := sst.OpenInMemoryTable(data, t.id, &sst.Options{
		ReadOnly: true, ChkMode: options.OnBlockRead, BlockSize: 4096, DataKey: key, Compression: options.None, IndexCache: f.index,
	})
	if err != nil {
		return err
	}
	return use(opened)
}

// checkTable reads a table through, within the budget, and returns the newest commit its counters row tells.
func (f *engineFileSet) checkTable(t tableFile, k *keys, rows *sealer) (commit uint64, err error) {
	s := &Store{rows: rows, keys: *k}
	err = f.withTable(t, func(tab *sst.Table) error {
		it := tab.NewIterator(0)
		for it.Rewind(); it.Valid(); it.Next() {
			e, ok := tableEntry(it)
			if !ok || len(e.key) != 1 || table(e.key[0]) != tState {
				break
			}
			commit = max(commit, s.commitOf(e))
		}
		if err := it.Close(); err != nil {
			return err
		}
		if f.read >= f.budget {
			return nil
		}
		f.read += int64(tab.OnDiskSize())
		return tab.VerifyChecksum()
	})
	return commit, err
}

// lostTable finds a table that the MANIFEST does not name although it holds what is nowhere else. The engine would delete it.
// Tables that a crash left unfinished repeat what lies in the log or in the tables they were made from. Tables that the
// MANIFEST took back, and a crash left behind, hold what was deleted since, and the marks of that.
func (f *engineFileSet) lostTable() (string, error) {
	names, err := engineFiles(filepath.Dir(f.dir), ".sst")
	if err != nil {
		return "", err
	}
	manifest, err := os.ReadFile(filepath.Join(f.dir, badger.ManifestFilename))
	if err != nil {
		return "", err
	}
	gone := takenBack(manifest)
	orphans := slices.DeleteFunc(names, func(name string) bool {
		id, ok := tableID(name)
		return !ok || gone[id] || slices.ContainsFunc(f.live, func(t tableFile) bool { return t.id == id })
	})
	if len(orphans) == 0 {
		return "", nil
	}
	newest := map[rowID]uint64{}
	note := func(e rawEntry) error {
		newest[e.id()] = max(newest[e.id()], e.version)
		return nil
	}
	for _, t := range f.live {
		if err := f.entries(t, note); err != nil {
			return "", err
		}
	}
	for _, name := range f.logs {
		if err := f.readLog(name, false, note); err != nil {
			return "", err
		}
	}
	for _, name := range orphans {
		id, _ := tableID(name)
		err := f.anyEntries(tableFile{id: id}, func(e rawEntry) error {
			if newest[e.id()] < e.version {
				return errLostTable
			}
			return nil
		})
		if errors.Is(err, errLostTable) {
			return filepath.Base(name), nil
		}
	}
	return "", nil
}

var errLostTable = errors.New("holds rows that are nowhere else")

// rowID stands for a key in maps over all rows.
type rowID [16]byte

func (e rawEntry) id() rowID {
	sum := sha256.Sum256(e.key)
	return rowID(sum[:16])
}

// anyEntries reads a table of which no MANIFEST tells the data key.
func (f *engineFileSet) anyEntries(t tableFile, fn func(rawEntry) error) error {
	if t.keyID != 0 {
		return f.entries(t, fn)
	}
	err := errors.New("no data key")
	for _, id := range f.dataKeys() {
		read := 0
		err = f.entries(tableFile{id: t.id, keyID: id}, func(e rawEntry) error {
			read++
			return fn(e)
		})
		if err == nil || read > 0 {
			return err
		}
	}
	return err
}

func tableEntry(it *sst.Iterator) (rawEntry, bool) {
	k, ts, ok := version(it.Key())
	if !ok {
		return rawEntry{}, false
	}
	v := it.Value()
	return rawEntry{key: bytes.Clone(k), version: ts, value: bytes.Clone(v.Value), deleted: v.Meta&markDelete != 0}, v.Meta&markPointer == 0
}

// entries calls fn for every readable entry of a table, from both ends up to the damage when there is some.
func (f *engineFileSet) entries(t tableFile, fn func(rawEntry) error) error {
	return f.withTable(t, func(tab *sst.Table) error {
		n, err := walk(tab, 0, fn)
		if err != nil || n == int(tab.KeyCount()) {
			return err
		}
		if _, err = walk(tab, sst.REVERSED, fn); err != nil {
			return err
		}
		return fmt.Errorf("%d entries, %d could be read from the front", tab.KeyCount(), n)
	})
}

func walk(tab *sst.Table, direction int, fn func(rawEntry) error) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = nil // a damaged block: what came before it counts
		}
	}()
	it := tab.NewIterator(direction | sst.NOCACHE)
	defer func() { _ = it.Close() }()
	for it.Rewind(); it.Valid(); it.Next() {
		n++
		if e, ok := tableEntry(it); ok {
			if err := fn(e); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// The engine's write-ahead log (badger memtable.go): key id u64 || base IV 12 || entries. Entry: meta u8 || user meta u8 ||
// uvarint key length, value length, expiry || key and value, AES-CTR with IV base || offset u32 || CRC-32C u32. The entries of a
// transaction carry a mark and end with a finishing entry; without it none of them counts.
const logHeader = 20

// readLog calls fn for each entry of whole transactions, in order. With lenient it goes on behind entries whose checksum is
// wrong and takes unfinished transactions too.
func (f *engineFileSet) readLog(path string, lenient bool, fn func(rawEntry) error) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) < logHeader {
		return nil // a kill between creating and sizing it
	}
	key, err := f.registry.DataKey(binary.BigEndian.Uint64(b))
	if err != nil {
		return err
	}
	var dataKey []byte
	if key != nil {
		dataKey = key.Data
	}
	return parseLog(b, dataKey, lenient, fn)
}

func parseLog(b, dataKey []byte, lenient bool, fn func(rawEntry) error) error {
	var txn []rawEntry
	flush := func() error {
		for _, e := range txn {
			if err := fn(e); err != nil {
				return err
			}
		}
		txn = txn[:0]
		return nil
	}
	for off := logHeader; off < len(b); {
		h, ok := parseEntryHeader(b[off:])
		if !ok {
			break
		}
		body := b[off : off+h.size]
		sum := binary.BigEndian.Uint32(body[h.size-crc32.Size:])
		whole := crc32.Checksum(body[:h.size-crc32.Size], crc32.MakeTable(crc32.Castagnoli)) == sum
		if !whole && !lenient {
			break
		}
		if whole {
			plain := cryptLog(dataKey, b[8:logHeader], off, body[h.header:h.size-crc32.Size])
			k, ts, ok := version(plain[:h.key])
			switch {
			case h.meta&markFinTxn != 0:
				if err := flush(); err != nil {
					return err
				}
			case ok && h.meta&markPointer == 0:
				txn = append(txn, rawEntry{key: k, version: ts, value: plain[h.key:], deleted: h.meta&markDelete != 0})
			}
			if h.meta&(markTxn|markFinTxn) == 0 || lenient {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		off += h.size
	}
	return nil
}

// entryHeader says where the parts of a log entry are.
type entryHeader struct {
	meta   byte
	header int // length of the header
	key    int // length of the key
	size   int // of the whole entry
}

func parseEntryHeader(b []byte) (entryHeader, bool) {
	if len(b) < 5 {
		return entryHeader{}, false
	}
	h := entryHeader{meta: b[0], header: 2}
	var lengths [3]uint64
	for i := range lengths {
		v, n := binary.Uvarint(b[h.header:])
		if n <= 0 {
			return entryHeader{}, false
		}
		lengths[i] = v
		h.header += n
	}
	if lengths[0] == 0 || lengths[0] > 1<<16 || lengths[1] > 1<<30 {
		return entryHeader{}, false
	}
	h.key = int(lengths[0])
	h.size = h.header + h.key + int(lengths[1]) + crc32.Size
	return h, h.size <= len(b)
}

// cryptLog decrypts the key and value of the entry at an offset.
func cryptLog(dataKey, baseIV []byte, off int, sealed []byte) []byte {
	plain := make([]byte, len(sealed))
	if dataKey == nil {
		copy(plain, sealed)
		return plain
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return plain // keys of the registry have a valid length
	}
	iv := binary.BigEndian.AppendUint32(bytes.Clone(baseIV), uint32(off))
	cipher.NewCTR(block, iv).XORKeyStream(plain, sealed)
	return plain
}

// dataKeys lists the ids of the registry's keys: they count up from 1.
func (f *engineFileSet) dataKeys() []uint64 {
	var ids []uint64
	for id := uint64(1); id < 1<<16; id++ {
		key, err := f.registry.DataKey(id)
		if err != nil || key == nil {
			break
		}
		ids = append(ids, id)
	}
	return ids
}

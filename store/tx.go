package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/dgraph-io/badger/v4"
	"github.com/fxamacker/cbor/v2"
)

// Tx is one view of the store, or one function's turn in a batch of writes. It sees what earlier functions of the same
// batch wrote, in iterators too, and it is not for use by several goroutines or after its function returned.
type Tx struct {
	s     *Store
	read  *badger.Txn
	ring  *ring
	base  *overlay          // what earlier functions of the batch wrote
	own   *overlay          // what this function wrote; nil in a view
	seen  map[string][]byte // rows the batch read from the engine, opened once; nil is absent
	state counters
	floor []reservation
	after []func()
	vault bool // this function wrote into the vault
}

// counters are the numbers that only rise, kept in one row that each commit rewrites.
type counters struct {
	Commit uint64 `cbor:"1,keyasint"` // commits so far; commit.head repeats it outside the database
	Event  uint64 `cbor:"2,keyasint"` // number of the newest event
	Next   uint64 `cbor:"3,keyasint"` // numbers given to outbox and trace rows
}

// AfterCommit runs fn once the writes of this function are durable, before its caller is answered. It must not block.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

// overlay holds writes that are not in the database yet, as plain bytes; nil means deleted.
type overlay struct {
	rows map[string][]byte
	keys []string // sorted
	size int      // what the rows will need in the database, roughly
}

func newOverlay() *overlay { return &overlay{rows: map[string][]byte{}} }

func (o *overlay) set(k string, plain []byte) {
	old, had := o.rows[k]
	if !had {
		i, _ := slices.BinarySearch(o.keys, k)
		o.keys = slices.Insert(o.keys, i, k)
		o.size += len(k) + rowOverhead
	}
	o.size += len(plain) - len(old)
	o.rows[k] = plain
}

func (o *overlay) merge(from *overlay) {
	for _, k := range from.keys {
		o.set(k, from.rows[k])
	}
}

// under returns the keys with the prefix, sorted.
func (o *overlay) under(prefix string) []string {
	from, _ := slices.BinarySearch(o.keys, prefix)
	to := from + sort.Search(len(o.keys)-from, func(i int) bool {
		k := o.keys[from+i]
		return len(k) < len(prefix) || k[:len(prefix)] != prefix
	})
	return o.keys[from:to]
}

// find looks a key up in this function's writes, then in those of the batch.
func (tx *Tx) find(k string) (plain []byte, known bool) {
	for _, o := range []*overlay{tx.own, tx.base} {
		if o == nil {
			continue
		}
		if plain, ok := o.rows[k]; ok {
			return plain, true
		}
	}
	return nil, false
}

// getRaw returns the plain bytes under a key, or ErrNotFound.
func (tx *Tx) getRaw(k []byte) ([]byte, error) {
	if plain, known := tx.find(string(k)); known {
		if plain == nil {
			return nil, ErrNotFound
		}
		return plain, nil
	}
	if plain, known := tx.seen[string(k)]; known {
		if plain == nil {
			return nil, ErrNotFound
		}
		return plain, nil
	}
	plain, err := tx.fetch(k)
	if tx.seen != nil && (err == nil || errors.Is(err, ErrNotFound)) {
		tx.seen[string(k)] = plain
	}
	return plain, err
}

// fetch reads a row from the engine.
func (tx *Tx) fetch(k []byte) ([]byte, error) {
	item, err := tx.read.Get(k)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, tx.s.damaged(k, err)
	}
	return tx.openItem(k, item)
}

func (tx *Tx) openItem(k []byte, item *badger.Item) (plain []byte, err error) {
	verr := item.Value(func(sealed []byte) error {
		plain, err = tx.s.rows.open(tx.ring, k, sealed)
		return nil
	})
	if err = errors.Join(verr, err); err != nil {
		return nil, tx.s.damaged(k, err)
	}
	return plain, nil
}

func (tx *Tx) has(k []byte) (bool, error) {
	_, err := tx.getRaw(k)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (tx *Tx) putRaw(k, plain []byte) error {
	if tx.own == nil {
		return errors.New("store: write inside a view")
	}
	if len(plain) > maxRow {
		return fmt.Errorf("store: row of %d bytes: %w", len(plain), ErrTooLarge)
	}
	if len(k) > maxKey {
		return fmt.Errorf("store: name of %d bytes: %w", len(k), ErrTooLarge)
	}
	if plain == nil {
		plain = []byte{}
	}
	tx.vault = tx.vault || table(k[0]).vault()
	tx.own.set(string(k), plain)
	return nil
}

func (tx *Tx) delete(k []byte) error {
	if tx.own == nil {
		return errors.New("store: write inside a view")
	}
	tx.vault = tx.vault || table(k[0]).vault()
	tx.own.set(string(k), nil)
	return nil
}

// get decodes the row under a key.
func get[T any](tx *Tx, k []byte) (T, error) {
	var row T
	plain, err := tx.getRaw(k)
	if err != nil {
		return row, err
	}
	if err := decode(plain, &row); err != nil {
		return row, tx.s.damaged(k, err)
	}
	return row, nil
}

// put encodes a row under a key.
func put(tx *Tx, k []byte, row any) error {
	plain, err := encMode.Marshal(row)
	if err != nil {
		return fmt.Errorf("store: encode row: %w", err)
	}
	return tx.putRaw(k, plain)
}

// all decodes every row of a prefix in key order.
func all[T any](tx *Tx, prefix []byte) ([]T, error) {
	var rows []T
	err := tx.iterate(scan{prefix: prefix}, func(k, plain []byte) (bool, error) {
		var row T
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		rows = append(rows, row)
		return true, nil
	})
	return rows, err
}

// scan says which keys to walk over.
type scan struct {
	prefix   []byte
	from     []byte // first key to consider (last one when reverse); nil is the end of the prefix
	reverse  bool
	keysOnly bool // the callback gets no value
}

// iterate calls fn for each live key in order until it says to stop. fn must not write.
func (tx *Tx) iterate(sc scan, fn func(k, plain []byte) (more bool, err error)) error {
	pending := tx.pending(sc)
	opt := badger.IteratorOptions{Prefix: sc.prefix, Reverse: sc.reverse, PrefetchValues: false}
	it := tx.read.NewIterator(opt)
	defer it.Close()
	for it.Seek(sc.start()); ; {
		stored := it.ValidForPrefix(sc.prefix)
		if !stored && len(pending) == 0 {
			return nil
		}
		order := 1 // the pending key comes first
		if stored {
			order = -1
			if len(pending) > 0 {
				order = bytes.Compare(it.Item().Key(), []byte(pending[0]))
				if sc.reverse {
					order = -order
				}
			}
		}
		var more bool
		var err error
		if order < 0 {
			more, err = tx.visitStored(sc, it.Item(), fn)
		} else {
			more, err = tx.visitPending(sc, pending[0], fn)
			pending = pending[1:]
		}
		if err != nil || !more {
			return err
		}
		if order <= 0 {
			it.Next()
		}
	}
}

// start is the key at which a stored scan begins; going backwards that is just above the prefix.
func (sc scan) start() []byte {
	switch {
	case sc.from != nil:
		return sc.from
	case sc.reverse:
		return append(slices.Clip(sc.prefix), bytes.Repeat([]byte{0xff}, maxKey+1-len(sc.prefix))...)
	}
	return sc.prefix
}

// pending lists the batch's keys of the scan in the scan's direction.
func (tx *Tx) pending(sc scan) []string {
	var keys []string
	for _, o := range []*overlay{tx.base, tx.own} {
		if o != nil {
			keys = append(keys, o.under(string(sc.prefix))...)
		}
	}
	if sc.from != nil {
		keys = slices.DeleteFunc(keys, func(k string) bool {
			return !sc.reverse && k < string(sc.from) || sc.reverse && k > string(sc.from)
		})
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if sc.reverse {
		slices.Reverse(keys)
	}
	return keys
}

func (tx *Tx) visitStored(sc scan, item *badger.Item, fn func(k, plain []byte) (bool, error)) (bool, error) {
	k := item.KeyCopy(nil)
	if sc.keysOnly {
		if item.ValueSize() < minSealed {
			return false, tx.s.damaged(k, errEmptyValue)
		}
		return fn(k, nil)
	}
	plain, err := tx.openItem(k, item)
	if err != nil {
		return false, err
	}
	return fn(k, plain)
}

func (tx *Tx) visitPending(sc scan, k string, fn func(k, plain []byte) (bool, error)) (bool, error) {
	plain, _ := tx.find(k)
	switch {
	case plain == nil: // deleted in this batch
		return true, nil
	case sc.keysOnly:
		return fn([]byte(k), nil)
	}
	return fn([]byte(k), plain)
}

// Rows are CBOR with small integer keys: fields can be added, and a field this version does not know is skipped.
var (
	encMode = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, Time: cbor.TimeRFC3339NanoUTC}.EncMode())
	decMode = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 20, MaxMapPairs: 1 << 16}.DecMode())
)

func must[T any](mode T, err error) T {
	if err != nil {
		panic(err) // fixed options: a mistake of ours, seen by every test
	}
	return mode
}

func decode(plain []byte, row any) error { return decMode.Unmarshal(plain, row) }

package mailbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"sotto/internal/disk"
	"sotto/wire"
)

// What only the operator's commands ask of a queue.

// Limits are the queue's, defaults filled in.
func (q *Queue) Limits() Limits {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.limits
}

// SetCeiling changes how much the queue may hold in all, until the next start. A queue that holds more than that takes nothing until mail
// was fetched; it drops nothing.
func (q *Queue) SetCeiling(ceiling int64) error {
	if ceiling <= 0 {
		return fmt.Errorf("mailbox: ceiling of %d bytes", ceiling)
	}
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(*batch) error {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.limits.Ceiling = ceiling
		return nil
	}})
}

// Vouchers counts the vouchers that are honoured, and those whose time is over. The codes themselves are not kept.
func (q *Queue) Vouchers() (good, over int, err error) {
	leave, err := q.visit()
	if err != nil {
		return 0, 0, err
	}
	defer leave()
	now := q.now().Unix()
	err = q.db.View(func(txn *badger.Txn) error {
		return each(txn, []byte{rowVoucher}, func(_, v []byte) error {
			if voucherOver(v, now) {
				over++
			} else {
				good++
			}
			return nil
		})
	})
	return good, over, err
}

// ForgetVouchers removes vouchers whose time is over.
func (q *Queue) ForgetVouchers() error {
	return q.write(&op{bytes: sweepAtOnce * 40, rows: sweepAtOnce, do: func(b *batch) error {
		keys, err := keysUnder(q.db.DB, []byte{rowVoucher}, sweepAtOnce)
		if err != nil {
			return err
		}
		now := q.now().Unix()
		for _, k := range keys {
			v, err := b.get(k)
			if err != nil {
				return err
			}
			if voucherOver(v, now) {
				b.delete(k)
			}
		}
		return nil
	}})
}

func voucherOver(v []byte, now int64) bool {
	return len(v) != 8 || be.Uint64(v) != 0 && now >= int64(be.Uint64(v))
}

// visit begins a read.
func (q *Queue) visit() (leave func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.enter(); err != nil {
		return nil, err
	}
	return q.readers.Done, nil
}

// HasQueue reports whether a queue's files lie in a directory. It touches nothing.
func HasQueue(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, sentinelName))
	return err == nil
}

// A backup is a stream: magic 8 || version u8 || rows (key length u16, value length u32, key, value) || 0 u16 || number of rows u64 ||
// SHA-256 of all before. Without its end it is none.
const (
	backupMagic   = "sottoqbk"
	backupVersion = 1
	maxBackupKey  = 1 << 10
	maxBackupRow  = 1 << 20
)

// Errors of a backup's stream.
var (
	ErrNoBackup  = errors.New("this is not the backup of a mailbox, or of a newer version")
	ErrCutBackup = errors.New("the backup is cut off or damaged")
)

// Backup writes all that the queue holds at one moment between two commits, while it serves on. One iterator holds the engine's files of
// that moment, whatever is dropped meanwhile. Numbers of envelopes jump ahead in it, as after a loss: what owners fetched after the backup
// was made is above what a restored queue gives out.
func (q *Queue) Backup(ctx context.Context, to io.Writer) (rows uint64, err error) {
	leave, err := q.visit()
	if err != nil {
		return 0, err
	}
	defer leave()
	var txn *badger.Txn
	var it *badger.Iterator
	err = q.write(&op{bytes: opBytes, rows: opRows, do: func(*batch) error { // the loop also does the drops: none is under way
		txn = q.db.NewTransaction(false)
		opt := badger.DefaultIteratorOptions
		opt.PrefetchValues = false
		it = txn.NewIterator(opt)
		return nil
	}})
	if err != nil {
		return 0, err
	}
	defer txn.Discard()
	defer it.Close()
	w := newRowWriter(to)
	for it.Rewind(); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return w.rows, fmt.Errorf("mailbox: back up: %w", err)
		}
		err := it.Item().Value(func(v []byte) error { return w.row(it.Item().Key(), q.ahead(it.Item().Key(), v)) })
		if err != nil {
			return w.rows, fmt.Errorf("mailbox: back up: %w", err)
		}
	}
	return w.rows, w.end()
}

// ahead makes a row of a backup honest about what comes after it: numbers of a box jump, and no absence is signed until what was promised
// within a month after it has ended, for a restored queue does not know that mail.
func (q *Queue) ahead(k, v []byte) []byte {
	switch k[0] {
	case rowBox:
		if row, err := parseBox(v); err == nil {
			row.Next += lostSkip
			return row.marshal()
		}
	case rowState:
		if row, err := parseState(v); err == nil {
			row.Damaged = max(row.Damaged, uint16(q.now().Unix()/daySeconds)+2*(wire.MaxKeepDays+1))
			return row.marshal()
		}
	}
	return v
}

type rowWriter struct {
	w    *bufio.Writer
	sum  hash.Hash
	rows uint64
	err  error
}

func newRowWriter(to io.Writer) *rowWriter {
	sum := sha256.New()
	w := &rowWriter{w: bufio.NewWriterSize(io.MultiWriter(to, sum), 1<<16), sum: sum}
	w.write(append([]byte(backupMagic), backupVersion))
	return w
}

func (w *rowWriter) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

func (w *rowWriter) row(k, v []byte) error {
	if len(k) == 0 || len(k) > maxBackupKey || len(v) > maxBackupRow {
		return fmt.Errorf("a row of %d and %d bytes", len(k), len(v))
	}
	w.write(be.AppendUint32(be.AppendUint16(nil, uint16(len(k))), uint32(len(v))))
	w.write(k)
	w.write(v)
	w.rows++
	return w.err
}

func (w *rowWriter) end() error {
	w.write(be.AppendUint64(be.AppendUint16(nil, 0), w.rows))
	if w.err == nil {
		w.err = w.w.Flush()
	}
	w.write(w.sum.Sum(nil))
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

// readRows calls fn with the rows of a backup, and fails unless its end is there and fits. What fn is given is its own.
func readRows(from io.Reader, fn func(k, v []byte) error) error {
	r := bufio.NewReaderSize(from, 1<<16)
	sum := sha256.New()
	cut := func(err error) error {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrCutBackup
		}
		return err
	}
	read := func(n int) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		sum.Write(b)
		return b, cut(err)
	}
	if head, err := read(len(backupMagic) + 1); err != nil || string(head[:8]) != backupMagic || head[8] != backupVersion {
		return errors.Join(ErrNoBackup, err)
	}
	for rows := uint64(0); ; rows++ {
		b, err := read(2)
		if err != nil {
			return err
		}
		length := int(be.Uint16(b))
		if length == 0 {
			if b, err = read(8); err != nil {
				return err
			}
			want := sum.Sum(nil)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(r, got); err != nil || be.Uint64(b) != rows || !bytes.Equal(got, want) {
				return ErrCutBackup
			}
			return nil
		}
		if b, err = read(4); err != nil {
			return err
		}
		size := int64(be.Uint32(b))
		if length > maxBackupKey || size > maxBackupRow {
			return ErrCutBackup
		}
		k, err := read(length)
		if err != nil {
			return err
		}
		v, err := read(int(size))
		if err != nil {
			return err
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
}

// RestoreQueue makes a queue's directory from a backup, and returns when it is on disk. The directory must not hold a queue. When it fails,
// what it made is to be thrown away.
func RestoreQueue(ctx context.Context, dir string, from io.Reader) error {
	if HasQueue(dir) {
		return fmt.Errorf("mailbox: restore: %s holds a mailbox already", dir)
	}
	db, err := openDatabase(QueueConfig{Dir: dir, NoSync: true}.withDefaults())
	if err != nil {
		return err
	}
	state, err := db.fill(ctx, dir, from)
	if err = errors.Join(err, db.close(state.Commit, err == nil)); err != nil {
		return fmt.Errorf("mailbox: restore: %w", err)
	}
	return syncTree(dir)
}

// fill writes the rows; the state row, which says how many commits there are, is among them.
func (d *database) fill(ctx context.Context, dir string, from io.Reader) (state stateRow, err error) {
	const lookEvery = 16 << 20 // bytes between two looks at the disk, which the engine must not fill
	batch := d.NewWriteBatch()
	defer batch.Cancel()
	size := int64(lookEvery)
	err = readRows(from, func(k, v []byte) error {
		if size += int64(len(k) + len(v)); size >= lookEvery {
			size = 0
			if free, err := disk.Free(dir); err != nil || free < 4*lookEvery+roomLeft {
				return errors.Join(fmt.Errorf("%d MiB are free, which is not enough", free>>20), err)
			}
		}
		if len(k) == 1 && k[0] == rowState {
			if state, err = parseState(v); err != nil {
				return err
			}
		}
		return errors.Join(ctx.Err(), batch.Set(k, v))
	})
	if err == nil {
		err = batch.Flush()
	}
	if err == nil {
		d.committed(state.Commit)
		err = d.Sync()
	}
	return state, err
}

// roomLeft stays free beside a backup.
const roomLeft = 64 << 20

// syncTree makes a directory with all in it durable.
func syncTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return disk.SyncDir(path)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return fmt.Errorf("mailbox: sync %s: %w", dir, err)
	}
	return nil
}

// MaxEnvelope is the size of the largest envelope.
const MaxEnvelope = wire.MaxEnvelope

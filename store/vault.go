package store

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// The vault: rows of some tables are sealed under the key of an epoch. An LSM store does not erase, so old versions of a
// deleted key stay in its files; when the epoch's key is gone they cannot be read. Changing the epoch (PROTOCOL A.2):
//
//  1. the new key goes into the free slot of vault.keys, synced: both are alive;
//  2. every row that names the old epoch is sealed anew, in as many commits as it takes;
//  3. when none names it any more, its slot is erased, synced.
//
// A crash between any two of them leaves both keys or one, and every row readable.

const (
	reencryptRows  = 2000
	reencryptBytes = 512 << 10
)

// NewEpoch makes all versions of vault rows that were written before it unreadable, but for the newest of each.
func (s *Store) NewEpoch() error {
	s.epochMu.Lock()
	defer s.epochMu.Unlock()
	if s.ring.old != nil { // an earlier change was cut off
		if err := s.finishEpoch(); err != nil {
			return err
		}
	}
	k, err := randomEpoch(s.ring.now.epoch + 1)
	if err != nil {
		return err
	}
	free := 1 - s.slot
	b, err := sealSlot(s.keys.page, k)
	if err != nil {
		return err
	}
	if err := s.page.write(stepNewSlot, free, b); err != nil {
		return s.fail(err)
	}
	s.vaultChanged.Store(false)
	s.setRing(&ring{now: k, old: s.ring.now})
	s.slot = free
	return s.finishEpoch()
}

func (s *Store) setRing(r *ring) {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	s.ring = r
}

// finishEpoch seals the rows of the old epoch anew and erases its key. The caller holds epochMu.
func (s *Store) finishEpoch() error {
	for {
		moved, err := s.reencrypt()
		if err != nil {
			return fmt.Errorf("store: change epoch: %w", err)
		}
		if moved == 0 {
			break
		}
	}
	if err := s.page.write(stepEraseSlot, 1-s.slot, make([]byte, slotSize)); err != nil {
		return s.fail(err)
	}
	s.setRing(&ring{now: s.ring.now})
	return nil
}

// reencrypt goes once over the vault and says how many rows named another epoch.
func (s *Store) reencrypt() (int, error) {
	moved := 0
	from := []byte{byte(vaultTables[0])}
	for from != nil {
		err := s.disk.around(stepReencrypt, func() error {
			return s.submit(func(tx *Tx) error {
				n, next, err := tx.reencryptSome(from)
				if err == nil {
					moved, from = moved+n, next
				}
				return err
			}, true).Wait()
		})
		if err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// reencryptSome seals rows from a key on anew and returns the key to go on at, nil at the end of the vault.
func (tx *Tx) reencryptSome(from []byte) (n int, next []byte, err error) {
	for i, t := range vaultTables {
		if from[0] != byte(t) {
			continue
		}
		it := tx.read.NewIterator(badger.IteratorOptions{Prefix: []byte{byte(t)}})
		for it.Seek(from); it.Valid(); it.Next() {
			if n >= reencryptRows || tx.own.size >= reencryptBytes {
				next = it.Item().KeyCopy(nil)
				it.Close()
				return n, next, nil
			}
			moved, err := tx.reencryptRow(it.Item())
			if err != nil {
				it.Close()
				return n, nil, err
			}
			n += moved
		}
		it.Close()
		if i+1 < len(vaultTables) {
			from = []byte{byte(vaultTables[i+1])}
		}
	}
	return n, nil, nil
}

func (tx *Tx) reencryptRow(item *badger.Item) (moved int, err error) {
	k := item.KeyCopy(nil)
	if _, known := tx.find(string(k)); known { // written in this batch: sealed under the new key anyway
		return 0, nil
	}
	verr := item.Value(func(sealed []byte) error {
		if epoch, ok := epochOf(sealed); ok && epoch == tx.ring.now.epoch {
			return nil
		}
		var plain []byte
		if plain, err = tx.s.rows.open(tx.ring, k, sealed); err == nil {
			tx.own.set(string(k), plain)
			moved = 1
		}
		return nil
	})
	if err = errors.Join(verr, err); err != nil {
		return 0, tx.s.damaged(k, err)
	}
	return moved, nil
}

// checkVault looks at every vault row and reports those whose key is gone.
func (tx *Tx) checkVault() error {
	for _, t := range vaultTables {
		it := tx.read.NewIterator(badger.IteratorOptions{Prefix: []byte{byte(t)}})
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			err := item.Value(func(sealed []byte) error {
				epoch, ok := epochOf(sealed)
				if !ok {
					return errEmptyValue
				}
				if tx.ring.find(epoch) == nil {
					return errEpoch
				}
				return nil
			})
			if err != nil {
				err = tx.s.damaged(item.KeyCopy(nil), err)
				it.Close()
				return err
			}
		}
		it.Close()
	}
	return nil
}

package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/crypto/chacha20poly1305"
)

// vault.keys holds the keys of at most two epochs, each in a slot of its own disk page, so that a torn write takes one slot at
// most (PROTOCOL A.2). Slot: magic 8 || version u8 || 7 zero || epoch u64 || nonce 24 || sealed key 48 || SHA-256 of all before,
// zero to the end. An empty slot is all zero.
const (
	slotSize  = 4096
	pageSize  = 2 * slotSize
	slotBody  = 8 + 8 + 8 + chacha20poly1305.NonceSizeX + 32 + chacha20poly1305.Overhead
	slotUsed  = slotBody + sha256.Size
	pageMagic = "sottokey"
)

// slotState is what a slot was found to be.
type slotState int

const (
	slotEmpty slotState = iota
	slotTorn            // checksum wrong: a write that a crash cut off, or damage
	slotGood
)

// slot is a parsed slot; the key in it is still sealed.
type slot struct {
	state slotState
	epoch uint64
	body  []byte
}

var errPageSize = fmt.Errorf("vault.keys is not %d bytes long", pageSize)

// parsePage splits a key page. It never fails on a slot: a slot is good, empty or torn.
func parsePage(page []byte) ([2]slot, error) {
	var slots [2]slot
	if len(page) != pageSize {
		return slots, errPageSize
	}
	for i := range slots {
		slots[i] = parseSlot(page[i*slotSize : (i+1)*slotSize])
	}
	return slots, nil
}

func parseSlot(b []byte) slot {
	if len(bytes.TrimLeft(b, "\x00")) == 0 {
		return slot{state: slotEmpty}
	}
	sum := sha256.Sum256(b[:slotBody])
	rest := bytes.TrimLeft(b[slotUsed:], "\x00")
	if string(b[:8]) != pageMagic || b[8] != 1 || !bytes.Equal(sum[:], b[slotBody:slotUsed]) || len(rest) > 0 {
		return slot{state: slotTorn}
	}
	return slot{state: slotGood, epoch: binary.BigEndian.Uint64(b[16:24]), body: b[:slotBody]}
}

// sealSlot makes the bytes of a slot.
func sealSlot(pageKey []byte, k *epochKey) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(pageKey)
	if err != nil {
		return nil, fmt.Errorf("store: key page: %w", err)
	}
	b := make([]byte, 0, slotSize)
	b = append(b, pageMagic...)
	b = append(b, 1, 0, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, k.epoch)
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("store: key page: %w", err)
	}
	header := b[:24:24]
	b = append(b, nonce...)
	b = aead.Seal(b, nonce, k.secret[:], header)
	sum := sha256.Sum256(b)
	b = append(b, sum[:]...)
	return b[:slotSize], nil
}

// open unseals the key of a good slot.
func (s slot) open(pageKey []byte) (*epochKey, error) {
	aead, err := chacha20poly1305.NewX(pageKey)
	if err != nil {
		return nil, fmt.Errorf("store: key page: %w", err)
	}
	plain, err := aead.Open(nil, s.body[24:48], s.body[48:], s.body[:24])
	if err != nil || len(plain) != 32 {
		return nil, errors.New("the key page does not belong to this key file")
	}
	return newEpochKey(s.epoch, [32]byte(plain))
}

// keyPage is the open vault.keys.
type keyPage struct {
	f    *os.File
	disk stepDisk
}

func (p *keyPage) write(s step, index int, b []byte) error {
	if p == nil { // in memory
		return nil
	}
	return p.disk.writeAt(s, p.f, b, int64(index*slotSize), true)
}

func (p *keyPage) close() error {
	if p == nil {
		return nil
	}
	return p.f.Close()
}

// createPage writes a page with the first epoch's key.
func createPage(d stepDisk, path string, pageKey []byte) error {
	first, err := randomEpoch(1)
	if err != nil {
		return err
	}
	b, err := sealSlot(pageKey, first)
	if err != nil {
		return err
	}
	return d.replace(stepPage, path, append(b, make([]byte, slotSize)...))
}

func randomEpoch(epoch uint64) (*epochKey, error) {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, fmt.Errorf("store: new epoch: %w", err)
	}
	return newEpochKey(epoch, secret)
}

// readRing opens every key of a page. With two good slots the higher epoch is in use and the other one is being given up.
func readRing(pageKey, page []byte) (*ring, int, error) {
	slots, err := parsePage(page)
	if err != nil {
		return nil, 0, err
	}
	r, current := &ring{}, 0
	for i, s := range slots {
		if s.state != slotGood {
			continue
		}
		k, err := s.open(pageKey)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case r.now == nil:
			r.now, current = k, i
		case k.epoch > r.now.epoch:
			r.old, r.now, current = r.now, k, i
		default:
			r.old = k
		}
	}
	if r.now == nil {
		return nil, 0, errors.New("both slots of vault.keys are unreadable")
	}
	return r, current, nil
}

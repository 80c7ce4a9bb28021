package store

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

// Each value is sealed under its key, so that damage, a value moved to another key, or an empty value cannot pass for
// data (PROTOCOL A.3): version 1 || [epoch u64, vault tables only] || nonce 24 || XChaCha20-Poly1305.
const (
	rowVersion  = 1
	minSealed   = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	rowOverhead = minSealed + 8 + 24 // what sealing and the engine add to a row, roughly
	maxRow      = 1<<20 - 256        // sealed it stays below ValueThreshold: no value log
	maxKey      = 1024
)

var (
	errEmptyValue = errors.New("value empty or cut short")
	errUnopened   = errors.New("value does not open")
	errEpoch      = errors.New("value names an epoch whose key is gone")
)

// keys are what the root key of the home unlocks.
type keys struct {
	db    []byte // Badger's own encryption: hides ids and names on disk
	row   []byte
	page  []byte
	floor []byte
	check []byte
}

func deriveKeys(root [32]byte) (keys, error) {
	var k keys
	for _, d := range []struct {
		to    *[]byte
		label string
	}{{&k.db, "db"}, {&k.row, "row"}, {&k.page, "page"}, {&k.floor, "floor"}, {&k.check, "check"}} {
		out, err := hkdf.Key(sha256.New, root[:], nil, "sotto/v1 store "+d.label, 32)
		if err != nil {
			return keys{}, fmt.Errorf("store: derive keys: %w", err)
		}
		*d.to = out
	}
	return k, nil
}

// epochKey is one generation of the vault's key.
type epochKey struct {
	epoch  uint64
	secret [32]byte
	aead   cipher.AEAD
}

func newEpochKey(epoch uint64, secret [32]byte) (*epochKey, error) {
	aead, err := chacha20poly1305.NewX(secret[:])
	if err != nil {
		return nil, fmt.Errorf("store: epoch key: %w", err)
	}
	return &epochKey{epoch: epoch, secret: secret, aead: aead}, nil
}

// ring holds the epoch keys that were alive when a transaction began. It never changes.
type ring struct {
	now *epochKey
	old *epochKey // nil but while an epoch is being changed
}

func (r *ring) find(epoch uint64) *epochKey {
	for _, k := range []*epochKey{r.now, r.old} {
		if k != nil && k.epoch == epoch {
			return k
		}
	}
	return nil
}

// sealer seals and opens rows.
type sealer struct {
	aead   cipher.AEAD
	prefix [16]byte      // of this run's nonces
	count  atomic.Uint64 // the rest of them
}

func newSealer(rowKey []byte) (*sealer, error) {
	aead, err := chacha20poly1305.NewX(rowKey)
	if err != nil {
		return nil, fmt.Errorf("store: row key: %w", err)
	}
	s := &sealer{aead: aead}
	if _, err := rand.Read(s.prefix[:]); err != nil {
		return nil, fmt.Errorf("store: random nonce: %w", err)
	}
	return s, nil
}

func (s *sealer) seal(r *ring, k, plain []byte) []byte {
	out := make([]byte, 0, minSealed+8+len(plain))
	out = append(out, rowVersion)
	aead := s.aead
	if table(k[0]).vault() {
		aead = r.now.aead
		out = binary.BigEndian.AppendUint64(out, r.now.epoch)
	}
	nonce := len(out)
	out = append(out, s.prefix[:]...)
	out = binary.BigEndian.AppendUint64(out, s.count.Add(1))
	return aead.Seal(out, out[nonce:], plain, k)
}

func (s *sealer) open(r *ring, k, sealed []byte) ([]byte, error) {
	if len(sealed) < minSealed || len(k) == 0 {
		return nil, errEmptyValue
	}
	if sealed[0] != rowVersion {
		return nil, fmt.Errorf("value has version %d", sealed[0])
	}
	aead, box := s.aead, sealed[1:]
	if table(k[0]).vault() {
		if len(sealed) < minSealed+8 {
			return nil, errEmptyValue
		}
		epoch := r.find(binary.BigEndian.Uint64(box))
		if epoch == nil {
			return nil, errEpoch
		}
		aead, box = epoch.aead, box[8:]
	}
	plain, err := aead.Open(nil, box[:chacha20poly1305.NonceSizeX], box[chacha20poly1305.NonceSizeX:], k)
	if err != nil {
		return nil, errUnopened
	}
	if plain == nil {
		plain = []byte{}
	}
	return plain, nil
}

// epochOf reads which epoch a sealed vault row names.
func epochOf(sealed []byte) (uint64, bool) {
	if len(sealed) < minSealed+8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(sealed[1:]), true
}

package session

import (
	"crypto/hpke"
	"encoding/binary"
	"fmt"

	"sotto/identity"
	"sotto/internal/canon"
)

// Sizes of an envelope: there are no others, so that a store sees only which of three a message fits in.
const (
	EnvelopeSmall  = 8 << 10
	EnvelopeMedium = 32 << 10
	EnvelopeLarge  = 128 << 10
)

const (
	envelopeVersion uint8 = 1
	sealEncSize           = ctSize + pointSize // X-Wing ciphertext

	// EnvelopeOverhead is what an envelope needs beside its items; each item adds ItemFrame.
	EnvelopeOverhead = 1 + sealEncSize + tagSize + 1
	// ItemFrame is the length that stands before each item in an envelope.
	ItemFrame = 4
	// MaxEnvelopeItems is how many items one envelope can name.
	MaxEnvelopeItems = 255
)

// EnvelopeSize returns the size of the envelope that holds items of these lengths in all.
func EnvelopeSize(items [][]byte) (int, error) {
	if len(items) == 0 || len(items) > MaxEnvelopeItems {
		return 0, fmt.Errorf("envelope of %d items, 1 to %d: %w", len(items), MaxEnvelopeItems, ErrTooLarge)
	}
	need := EnvelopeOverhead
	for _, it := range items {
		need += ItemFrame + len(it)
	}
	for _, size := range []int{EnvelopeSmall, EnvelopeMedium, EnvelopeLarge} {
		if need <= size {
			return size, nil
		}
	}
	return 0, fmt.Errorf("envelope of %d bytes, at most %d: %w", need, EnvelopeLarge, ErrTooLarge)
}

// SealEnvelope seals items for whoever holds the seal key (PROTOCOL 10.2). Each call gives an unrelated envelope:
// every stored copy is sealed afresh.
func SealEnvelope(to identity.SealKey, items [][]byte) ([]byte, error) {
	size, err := EnvelopeSize(items)
	if err != nil {
		return nil, fmt.Errorf("seal envelope: %w", err)
	}
	key, err := to.HPKE()
	if err != nil {
		return nil, fmt.Errorf("seal envelope: %w: %w", ErrBad, err)
	}
	plain := make([]byte, 1, size-EnvelopeOverhead+1)
	plain[0] = byte(len(items))
	for _, it := range items {
		if len(it) == 0 || len(it) > MaxItem {
			return nil, fmt.Errorf("seal envelope: item of %d bytes: %w", len(it), ErrTooLarge)
		}
		plain = canon.AppendLP(plain, it)
	}
	plain = plain[:cap(plain)] // make cleared the rest: the pad
	enc, sender, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), envelopeInfo(&to))
	if err != nil {
		return nil, fmt.Errorf("seal envelope: %w", err)
	}
	sealed, err := sender.Seal([]byte{envelopeVersion}, plain)
	if err != nil {
		return nil, fmt.Errorf("seal envelope: %w", err)
	}
	return append(append(append(make([]byte, 0, size), envelopeVersion), enc...), sealed...), nil
}

// envelopeInfo binds the seal key and its number.
func envelopeInfo(key *identity.SealKey) []byte {
	digest := sum(key.Key[:])
	info := binary.BigEndian.AppendUint32([]byte("sotto/v1 env"), key.ID)
	return append(info, digest[:]...)
}

// OpenEnvelope tries the live seal keys in turn and returns the items; ErrNotOurs when none fits. Nothing outside says
// which key an envelope is for, so put the newest first.
func OpenEnvelope(keys []*identity.SealSecret, env []byte) ([][]byte, error) {
	switch len(env) {
	case EnvelopeSmall, EnvelopeMedium, EnvelopeLarge:
	default:
		return nil, fmt.Errorf("open envelope: %d bytes is no envelope's size: %w", len(env), ErrBad)
	}
	if env[0] != envelopeVersion {
		return nil, fmt.Errorf("open envelope: version %d: %w", env[0], ErrUnsupported)
	}
	for _, key := range keys {
		public := key.Public()
		r, err := hpke.NewRecipient(env[1:1+sealEncSize], key.HPKE(), hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), envelopeInfo(&public))
		if err != nil {
			continue // a malformed X25519 share fails here, with every key
		}
		if plain, err := r.Open([]byte{envelopeVersion}, env[1+sealEncSize:]); err == nil {
			return splitItems(plain)
		}
	}
	return nil, fmt.Errorf("open envelope: no seal key fits: %w", ErrNotOurs)
}

// splitItems reads count || lp(item)... and insists on a zero pad, so that an envelope has one form only.
func splitItems(plain []byte) ([][]byte, error) {
	r := canon.NewReader(plain)
	items := make([][]byte, r.U8())
	for i := range items {
		items[i] = r.LP(MaxItem)
		if r.Err() == nil && len(items[i]) == 0 {
			return nil, fmt.Errorf("open envelope: empty item: %w", ErrBad)
		}
	}
	if r.Err() != nil || len(items) == 0 {
		return nil, fmt.Errorf("open envelope: items do not fit: %w", ErrBad)
	}
	var pad byte
	for _, b := range r.Raw(r.Len()) {
		pad |= b
	}
	if pad != 0 {
		return nil, fmt.Errorf("open envelope: pad is not zero: %w", ErrBad)
	}
	return items, nil
}

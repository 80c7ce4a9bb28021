package identity

import (
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/tyler-smith/go-bip39"

	"sotto/internal/canon"
)

// Seed is the 32 bytes from which an account comes; on paper it is 24 words (PROTOCOL 3.1).
type Seed [32]byte

// NewSeed draws a seed.
func NewSeed(r io.Reader) (Seed, error) {
	var s Seed
	if _, err := io.ReadFull(r, s[:]); err != nil {
		return Seed{}, fmt.Errorf("draw seed: %w", err)
	}
	return s, nil
}

// Words writes the seed as 24 BIP-39 words. Whoever reads them is the account: show them only when asked to.
func (s Seed) Words() string {
	words, err := bip39.NewMnemonic(s[:])
	if err != nil {
		panic("identity: bip39: " + err.Error()) // only for a wrong length, and 32 bytes is a right one
	}
	return words
}

// SeedFromWords reads 24 BIP-39 words, in any case and spacing.
func SeedFromWords(words string) (Seed, error) {
	if len(words) > 1024 {
		return Seed{}, fmt.Errorf("read recovery words: that is far longer than 24 words: %w", ErrInvalid)
	}
	list := strings.Fields(strings.ToLower(words))
	if len(list) != 24 {
		return Seed{}, fmt.Errorf("read recovery words: %d words given, 24 needed: %w", len(list), ErrInvalid)
	}
	for i, w := range list {
		if _, ok := bip39.GetWordIndex(w); !ok {
			return Seed{}, fmt.Errorf("read recovery words: word %d is not in the word list; check its spelling: %w", i+1, ErrInvalid)
		}
	}
	entropy, err := bip39.EntropyFromMnemonic(strings.Join(list, " "))
	if err != nil {
		return Seed{}, fmt.Errorf("read recovery words: a word is wrong or two are swapped; compare them with the paper: %w", ErrInvalid)
	}
	return Seed(entropy), nil
}

// Equal compares in constant time.
func (s Seed) Equal(o Seed) bool { return subtle.ConstantTimeCompare(s[:], o[:]) == 1 }

// String says only that there is a secret.
func (Seed) String() string { return redaction }

// GoString says only that there is a secret.
func (Seed) GoString() string { return redaction }

// Format says only that there is a secret, whatever the verb.
func (Seed) Format(s fmt.State, v rune) { hidden{}.Format(s, v) }

// MarshalJSON says only that there is a secret.
func (Seed) MarshalJSON() ([]byte, error) { return hidden{}.MarshalJSON() }

// MarshalText says only that there is a secret.
func (Seed) MarshalText() ([]byte, error) { return hidden{}.MarshalText() }

// LogValue says only that there is a secret.
func (Seed) LogValue() slog.Value { return hidden{}.LogValue() }

// Account derives the account key.
func (s Seed) Account() *Account {
	return &Account{key: ed25519.NewKeyFromSeed(derive(s[:], "sotto/v1 account", ed25519.SeedSize))}
}

// Account is a person's signing key AK. It signs device lists and owns the records of invites.
type Account struct {
	hidden
	key ed25519.PrivateKey
}

// ID is the account's public key.
func (a *Account) ID() AccountID { return AccountID(a.key.Public().(ed25519.PublicKey)) }

// Sign signs an object of the given type (PROTOCOL 2.4).
func (a *Account) Sign(typ string, fields []byte) []byte { return canon.Sign(a.key, typ, fields) }

// RecordSeed is the Ed25519 seed with which package record signs the account's invite records.
func (a *Account) RecordSeed() [32]byte { return [32]byte(a.key.Seed()) }

// Equal compares in constant time.
func (a *Account) Equal(o *Account) bool { return subtle.ConstantTimeCompare(a.key, o.key) == 1 }

// AccountID is an account's public key: who someone is, everywhere and for ever.
type AccountID [32]byte

// base32Lower is RFC 4648 base32 in lower case without padding.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String is 52 characters of lower-case base32.
func (id AccountID) String() string { return base32Lower.EncodeToString(id[:]) }

// Short is the beginning of String, enough for a person to tell accounts apart in a log or a list.
func (id AccountID) Short() string { return id.String()[:8] }

// ParseAccountID reads what String wrote, in either case, and checks that it is a usable key.
func ParseAccountID(s string) (AccountID, error) {
	b, err := decodeBase32(s)
	if err != nil || len(b) != len(AccountID{}) {
		return AccountID{}, fmt.Errorf("read account id: want 52 letters and digits 2-7: %w", ErrInvalid)
	}
	id := AccountID(b)
	if err := checkEdPoint(id); err != nil {
		return AccountID{}, fmt.Errorf("read account id: %w", err)
	}
	return id, nil
}

// decodeBase32 takes either case and refuses spare bits that are set, so that one value has one spelling.
func decodeBase32(s string) ([]byte, error) {
	s = strings.ToLower(s)
	b, err := base32Lower.DecodeString(s)
	if err != nil {
		return nil, err
	}
	if base32Lower.EncodeToString(b) != s {
		return nil, fmt.Errorf("spare bits set: %w", ErrInvalid)
	}
	return b, nil
}

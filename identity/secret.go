package identity

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
)

// redaction is all that a secret ever prints, formats, logs or marshals as.
const redaction = "(secret)"

// hidden, embedded in a struct, keeps what is inside from being printed, logged or marshalled by accident.
type hidden struct{}

// String says only that there is a secret.
func (hidden) String() string { return redaction }

// GoString says only that there is a secret.
func (hidden) GoString() string { return redaction }

// Format says only that there is a secret, whatever the verb.
func (hidden) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redaction) }

// MarshalJSON says only that there is a secret.
func (hidden) MarshalJSON() ([]byte, error) { return []byte(`"` + redaction + `"`), nil }

// MarshalText says only that there is a secret.
func (hidden) MarshalText() ([]byte, error) { return []byte(redaction), nil }

// LogValue says only that there is a secret.
func (hidden) LogValue() slog.Value { return slog.StringValue(redaction) }

// derive is HKDF-SHA-256 with an empty salt: derive(ikm, info, n) (PROTOCOL 1).
func derive(ikm []byte, info string, n int) []byte {
	out, err := hkdf.Key(sha256.New, ikm, nil, info, n)
	if err != nil {
		panic("identity: hkdf: " + err.Error()) // only for n > 8160, and every n here is a constant
	}
	return out
}

// draw reads n random bytes.
func draw(r io.Reader, what string, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("draw %s: %w", what, err)
	}
	return b, nil
}

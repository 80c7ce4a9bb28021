package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode/utf8"

	"sotto/internal/canon"
)

// Errors of invite links; each message around them says what to do.
var (
	// ErrNotInvite: some other text, or a link of another program.
	ErrNotInvite = errors.New("this is no sotto invite")
	// ErrOtherLink: a sotto link of another kind, such as one that links a device; never to be taken for an invite.
	ErrOtherLink = errors.New("a sotto link, but not an invite")
	// ErrTruncated: the beginning of an invite.
	ErrTruncated = errors.New("the invite is incomplete: its end is missing")
	// ErrMistyped: an invite with a wrong character in it.
	ErrMistyped = errors.New("the invite has a wrong character")
)

// InviteSecret finds and opens an invite's bundle. It is never stored in the clear or logged; InviteID may be.
type InviteSecret [16]byte

// Equal compares in constant time.
func (s InviteSecret) Equal(o InviteSecret) bool { return subtle.ConstantTimeCompare(s[:], o[:]) == 1 }

// String says only that there is a secret.
func (InviteSecret) String() string { return redaction }

// GoString says only that there is a secret.
func (InviteSecret) GoString() string { return redaction }

// Format says only that there is a secret, whatever the verb.
func (InviteSecret) Format(s fmt.State, v rune) { hidden{}.Format(s, v) }

// MarshalJSON says only that there is a secret.
func (InviteSecret) MarshalJSON() ([]byte, error) { return hidden{}.MarshalJSON() }

// MarshalText says only that there is a secret.
func (InviteSecret) MarshalText() ([]byte, error) { return hidden{}.MarshalText() }

// LogValue says only that there is a secret.
func (InviteSecret) LogValue() slog.Value { return hidden{}.LogValue() }

// NewInviteSecret draws one.
func NewInviteSecret(r io.Reader) (InviteSecret, error) {
	var s InviteSecret
	if _, err := io.ReadFull(r, s[:]); err != nil {
		return InviteSecret{}, fmt.Errorf("draw invite secret: %w", err)
	}
	return s, nil
}

// Invite is what a link says: whom one will meet, and the secret that finds and opens the rest (PROTOCOL 5.1).
type Invite struct {
	Account  AccountID
	Secret   InviteSecret
	Reusable bool
	Hints    []string // multiaddrs of the inviter or of a bootstrap node; in the link only, never in the QR code
}

// Link layout (PROTOCOL 5.1).
const (
	linkScheme   = "sotto:"
	linkPrefix   = "sotto:i/"
	linkVersion  = 1
	linkReusable = 1 << 0
	linkHints    = 1 << 1
	linkBase     = 1 + 1 + 32 + 16 // version, flags, account, secret
	linkSum      = 4
	maxLink      = len(linkPrefix) + (linkBase+1+MaxHints*(1+MaxHint)+linkSum+4)*8/5
	maxPasted    = 4 * maxLink // with the white space of a mail that wrapped it
)

// Link is the lower-case form, for messages; it carries the hints.
func (i Invite) Link() string { return linkPrefix + base32Lower.EncodeToString(i.payload(i.Hints)) }

// QR is the upper-case form without hints: it fits QR's alphanumeric mode and 19 rows of a terminal.
func (i Invite) QR() string {
	return strings.ToUpper(linkPrefix + base32Lower.EncodeToString(i.payload(nil)))
}

func (i Invite) payload(hints []string) []byte {
	var flags uint8
	if i.Reusable {
		flags |= linkReusable
	}
	if len(hints) > 0 {
		flags |= linkHints
	}
	var w canon.Writer
	w.U8(linkVersion).U8(flags).Raw(i.Account[:]).Raw(i.Secret[:])
	if len(hints) > 0 {
		w.U8(uint8(len(hints)))
		for _, h := range hints {
			w.U8(uint8(len(h))).Raw([]byte(h))
		}
	}
	return w.Raw(linkChecksum(w.Bytes())).Bytes()
}

func linkChecksum(payload []byte) []byte {
	sum := sha256.Sum256(append([]byte("sotto/v1 link"), payload...))
	return sum[:linkSum]
}

// CheckHints refuses hints that a link cannot carry.
func CheckHints(hints []string) error {
	if len(hints) > MaxHints {
		return fmt.Errorf("invite hints: %d given, at most %d fit a link: %w", len(hints), MaxHints, ErrInvalid)
	}
	for _, h := range hints {
		if !validHint(h) {
			return fmt.Errorf("invite hint: want a multiaddr such as /ip4/192.0.2.1/udp/4001/quic-v1/p2p/…, at most %d bytes: %w", MaxHint, ErrInvalid)
		}
	}
	return nil
}

func validHint(h string) bool {
	if len(h) == 0 || len(h) > MaxHint || h[0] != '/' {
		return false
	}
	for _, c := range []byte(h) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// ParseInvite reads a link in either form, as people paste it: any case, white space and line breaks inside, <> or
// quotes around it.
func ParseInvite(s string) (Invite, error) {
	i, err := parseInvite(s)
	for _, known := range []error{ErrNotInvite, ErrOtherLink, ErrTruncated, ErrMistyped} {
		if errors.Is(err, known) {
			return Invite{}, err // it names the invite itself
		}
	}
	if err != nil {
		return Invite{}, fmt.Errorf("read invite: %w", err)
	}
	return i, nil
}

// told is one of this package's errors in words of its own.
type told struct {
	text string
	is   error
}

func (e told) Error() string { return e.text }

func (e told) Unwrap() error { return e.is }

func parseInvite(s string) (Invite, error) {
	if len(s) > maxPasted {
		return Invite{}, told{fmt.Sprintf("this is no sotto invite: it has %d bytes", len(s)), ErrNotInvite}
	}
	s = strings.ToLower(strings.Trim(strings.Join(strings.Fields(s), ""), "<>\"'“”`"))
	body, ok := strings.CutPrefix(s, linkPrefix)
	if !ok {
		return Invite{}, otherText(s)
	}
	b, err := decodeLink(body)
	if err != nil {
		return Invite{}, err
	}
	r := canon.NewReader(b[:len(b)-linkSum])
	if v := r.U8(); v != linkVersion {
		return Invite{}, fmt.Errorf("link format %d: %w", v, ErrNewer)
	}
	flags := r.U8()
	if flags&^(linkReusable|linkHints) != 0 {
		return Invite{}, fmt.Errorf("link flags %#x: %w", flags, ErrNewer)
	}
	i := Invite{Reusable: flags&linkReusable != 0}
	r.Copy(i.Account[:])
	r.Copy(i.Secret[:])
	if flags&linkHints != 0 {
		i.Hints = readHints(r)
	}
	if err := closeReader(r); err != nil {
		return Invite{}, err
	}
	return i, checkEdPoint(i.Account)
}

// otherText says what a text is that does not begin as an invite.
func otherText(s string) error {
	switch {
	case s == "":
		return told{"no invite was given", ErrNotInvite}
	case strings.HasPrefix(linkPrefix, s):
		return ErrTruncated
	case strings.HasPrefix(s, linkScheme):
		return fmt.Errorf("%w: it may need a newer version of sotto", ErrOtherLink)
	}
	return fmt.Errorf("%w: one begins with %q", ErrNotInvite, linkPrefix)
}

// decodeLink decodes the base32 and checks the checksum, which is the last four bytes in every version; when it is wrong
// the layout of this version tells whether the end is missing.
func decodeLink(body string) ([]byte, error) {
	if strings.HasSuffix(body, "…") || strings.HasSuffix(body, "...") {
		return nil, told{"the invite was cut off: it ends in …", ErrTruncated}
	}
	if pos := strings.IndexFunc(body, func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz234567", c) }); pos >= 0 {
		wrong, _ := utf8.DecodeRuneInString(body[pos:])
		return nil, told{fmt.Sprintf("the invite has a wrong character: %q at place %d after %q", string(wrong), pos+1, linkPrefix), ErrMistyped}
	}
	b, err := decodeBase32(body)
	if err == nil && len(b) > linkSum && bytes.Equal(linkChecksum(b[:len(b)-linkSum]), b[len(b)-linkSum:]) {
		return b, nil
	}
	whole, _ := base32Lower.DecodeString(body[:len(body)/8*8]) // what is certainly there of a cut link
	if len(body) < linkLength(whole) {
		return nil, ErrTruncated
	}
	return nil, ErrMistyped
}

// linkLength is how many characters a link of this version that begins with b has at least.
func linkLength(b []byte) int {
	n := linkBase
	if len(b) > 1 && b[0] == linkVersion && b[1]&linkHints != 0 {
		n++
		if len(b) >= n {
			for range min(int(b[n-1]), MaxHints) {
				n++
				if len(b) >= n {
					n += int(b[n-1])
				}
			}
		}
	}
	return base32Lower.EncodedLen(n + linkSum)
}

func readHints(r *canon.Reader) []string {
	n := int(r.U8())
	if r.Err() == nil && (n == 0 || n > MaxHints) {
		r.Fail(fmt.Errorf("%d hints: %w", n, ErrInvalid))
	}
	var hints []string
	for i := 0; i < n && r.Err() == nil; i++ {
		h := string(r.Raw(int(r.U8())))
		if r.Err() == nil && !validHint(h) {
			r.Fail(fmt.Errorf("hint is not a multiaddr: %w", ErrInvalid))
		}
		hints = append(hints, h)
	}
	return hints
}

// ID names the invite in the store, in logs and in what its bundle signs; it gives nothing of the secret away.
func (i Invite) ID() [16]byte { return [16]byte(derive(i.Secret[:], "sotto/v1 invite id", 16)) }

// Discovery is the secret S under which the invite's record is found and opened; its record key is the account key.
func (i Invite) Discovery() [32]byte { return [32]byte(derive(i.Secret[:], "sotto/v1 invite", 32)) }

// Equal compares account, secret and kind; the secret in constant time.
func (i Invite) Equal(o Invite) bool {
	return i.Secret.Equal(o.Secret) && i.Account == o.Account && i.Reusable == o.Reusable
}

package identity

import (
	"bytes"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"sotto/internal/canon"
)

// ErrWithdrawn: the record is there and signed, but says that the invite was used or taken back.
var ErrWithdrawn = errors.New("invite was already used or taken back; ask for a new one")

// Bundle is what an invite leads to: everything the guest needs to write its first message at once (PROTOCOL 5.3).
// It is sealed in a record that only holders of the link can find.
type Bundle struct {
	hidden
	Card      []byte   // signed card as it travels
	Parsed    Card     // the same, verified; set by ParseBundle
	OneTime   *Prekey  // for single-use invites; nil for reusable ones
	RecordKey [32]byte // A of the inviting device
	Discovery [32]byte // S of the inviting device
	Name      string   // what the inviter calls itself; a claim, show it through CleanName
	Reach     []byte   // signed reach (SignReach), may be empty
	NotAfter  time.Time
	Uses      uint16 // how many guests are welcome; 1 with OneTime
	Exts      []canon.Extension
}

const bundleVersion = 1

// maxCardBytes bounds the card inside a bundle.
const maxCardBytes = 6144

func (b Bundle) fields() []byte {
	var w canon.Writer
	w.U8(bundleVersion).LP(b.Card)
	if b.OneTime == nil {
		w.U8(0)
	} else {
		w.U8(1)
		b.OneTime.write(&w)
	}
	w.Raw(b.RecordKey[:]).Raw(b.Discovery[:]).LP([]byte(b.Name)).LP(b.Reach)
	writeTime(&w, b.NotAfter)
	return w.U16(b.Uses).Extensions(b.Exts).Bytes()
}

// bundleSigned is what the signature covers: the same bundle under another invite is another object.
func bundleSigned(inviteID [16]byte, fields []byte) []byte {
	return append(inviteID[:len(inviteID):len(inviteID)], fields...)
}

// Marshal signs the bundle for one invite, as the device whose card is in it.
func (b Bundle) Marshal(dev *Device, inviteID [16]byte) ([]byte, error) {
	b.NotAfter = b.NotAfter.UTC().Truncate(time.Second)
	fields := b.fields()
	out := append(fields[:len(fields):len(fields)], dev.Sign(typBundle, bundleSigned(inviteID, fields))...)
	card, err := ParseCard(b.Card)
	if err == nil {
		_, err = ParseBundle(out, card.Account(), inviteID)
	}
	if err != nil {
		return nil, fmt.Errorf("sign invite bundle: %w", err)
	}
	return out, nil
}

// ParseBundle reads a bundle and verifies that the wanted account made it for this invite. Empty bytes are a withdrawn
// invite. It does not look at the clock: see CheckTime.
func ParseBundle(b []byte, want AccountID, inviteID [16]byte) (Bundle, error) {
	if len(b) == 0 {
		return Bundle{}, fmt.Errorf("read invite bundle: %w", ErrWithdrawn)
	}
	out, err := parseBundle(bytes.Clone(b), want, inviteID)
	if err != nil {
		return Bundle{}, fmt.Errorf("read invite bundle: %w", err)
	}
	return out, nil
}

func parseBundle(raw []byte, want AccountID, inviteID [16]byte) (Bundle, error) {
	if len(raw) > MaxBundle {
		return Bundle{}, fmt.Errorf("%d bytes, at most %d allowed: %w", len(raw), MaxBundle, ErrInvalid)
	}
	fields, sig, err := splitSig(raw)
	if err != nil {
		return Bundle{}, err
	}
	r := canon.NewReader(fields)
	if err := readVersion(r, bundleVersion); err != nil {
		return Bundle{}, err
	}
	b := Bundle{Card: r.LP(maxCardBytes)}
	switch flag := r.U8(); flag {
	case 0:
	case 1:
		p := readPrekey(r)
		b.OneTime = &p
	default:
		r.Fail(fmt.Errorf("one-time flag %d", flag))
	}
	r.Copy(b.RecordKey[:])
	r.Copy(b.Discovery[:])
	b.Name, b.Reach = string(r.LP(MaxName)), r.LP(MaxReach)
	b.NotAfter, b.Uses, b.Exts = readTime(r), r.U16(), r.Extensions()
	if err := closeReader(r); err != nil {
		return Bundle{}, err
	}
	if b.Parsed, err = parseCard(b.Card); err != nil {
		return Bundle{}, fmt.Errorf("card: %w", err)
	}
	if b.Parsed.Account() != want {
		return Bundle{}, fmt.Errorf("it %w", ErrOtherAccount)
	}
	if !b.Parsed.Entry().Verify(typBundle, bundleSigned(inviteID, fields), sig) {
		return Bundle{}, fmt.Errorf("not signed for this invite: %w", ErrInvalid)
	}
	return b, b.check()
}

// check holds what a well-formed bundle must hold beyond its layout.
func (b Bundle) check() error {
	switch {
	case !utf8.ValidString(b.Name):
		return fmt.Errorf("name is not UTF-8: %w", ErrInvalid)
	case b.Uses == 0 || (b.OneTime != nil && b.Uses != 1):
		return fmt.Errorf("%d uses: %w", b.Uses, ErrInvalid)
	}
	if err := checkEdPoint(b.RecordKey); err != nil {
		return fmt.Errorf("record key: %w", err)
	}
	if b.OneTime != nil {
		return b.OneTime.check()
	}
	return nil
}

// CheckTime refuses an invite or card that has expired, with a day's grace for wrong clocks.
func (b Bundle) CheckTime(now time.Time) error {
	if err := checkExpiry("invite", b.NotAfter, now); err != nil {
		return err
	}
	return b.Parsed.CheckTime(now)
}

package identity

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"sotto/internal/canon"
)

// Box is a mailbox at which a device's mail may be left.
type Box struct {
	Addr []byte // binary multiaddr of the mailbox, with its key
	ID   [32]byte
}

// CardCore is what a device publishes about itself; signed by DK (PROTOCOL 4.2).
type CardCore struct {
	Suite, MinSuite  uint8 // the best suite the device speaks, the lowest it accepts
	Device           DeviceID
	Seq              uint64 // the higher wins
	Issued, NotAfter time.Time
	Seal             SealKey
	Boxes            []Box
	PrekeysHash      [32]byte // binds the prekey, which travels apart from the core
	Exts             []canon.Extension
}

// Card is everything needed to write to a device: list, core, signed prekey (PROTOCOL 4.4).
type Card struct {
	Devices    DeviceList
	Core       CardCore
	Prekey     Prekey
	PrekeyExts []canon.Extension
}

const cardVersion = 1

// Largest parts of a card, checked before anything is read into memory.
const (
	maxListBytes    = 2048
	maxCoreBytes    = 4096
	maxPrekeysBytes = 2048
)

func (c CardCore) fields() []byte {
	var w canon.Writer
	w.U8(cardVersion).U8(c.Suite).U8(c.MinSuite).Raw(c.Device[:]).U64(c.Seq)
	writeTime(&w, c.Issued)
	writeTime(&w, c.NotAfter)
	w.U32(c.Seal.ID).Raw(c.Seal.Key[:]).U8(uint8(len(c.Boxes)))
	for _, b := range c.Boxes {
		w.LP(b.Addr).Raw(b.ID[:])
	}
	return w.Raw(c.PrekeysHash[:]).Extensions(c.Exts).Bytes()
}

// SignCard puts a device's card together: it fills in device, suite and prekeys hash and signs. The list is the
// account's signed device list, which must name the device.
func SignCard(list []byte, dev *Device, core CardCore, prekey Prekey) ([]byte, error) {
	core.Device, core.PrekeysHash = dev.ID(), prekeysHash(prekey, nil)
	if core.Suite == 0 {
		core.Suite, core.MinSuite = Suite, Suite
	}
	fields := core.fields()
	var w canon.Writer
	w.U8(cardVersion).LP(list).LP(append(fields, dev.Sign(typCard, fields)...)).LP(prekeysFields(prekey, nil))
	if _, err := ParseCard(w.Bytes()); err != nil {
		return nil, fmt.Errorf("sign card: %w", err)
	}
	return w.Bytes(), nil
}

// ParseCard reads a card and verifies its chain: account key, device list, device key, core, prekey.
// It does not look at the clock: see CheckTime.
func ParseCard(b []byte) (Card, error) {
	c, err := parseCard(bytes.Clone(b))
	if err != nil {
		return Card{}, fmt.Errorf("read contact card: %w", err)
	}
	return c, nil
}

func parseCard(b []byte) (Card, error) {
	r := canon.NewReader(b)
	if err := readVersion(r, cardVersion); err != nil {
		return Card{}, err
	}
	list, core, prekeys := r.LP(maxListBytes), r.LP(maxCoreBytes), r.LP(maxPrekeysBytes)
	if err := closeReader(r); err != nil {
		return Card{}, err
	}
	var c Card
	var err error
	if c.Devices, err = parseDeviceList(list); err != nil {
		return Card{}, fmt.Errorf("device list: %w", err)
	}
	if c.Core, err = parseCore(core, c.Devices); err != nil {
		return Card{}, err
	}
	pr := canon.NewReader(prekeys)
	c.Prekey, c.PrekeyExts = readPrekey(pr), pr.Extensions()
	if err := closeReader(pr); err != nil {
		return Card{}, fmt.Errorf("prekey: %w", err)
	}
	if objectHash(typPrekeys, prekeys) != c.Core.PrekeysHash {
		return Card{}, fmt.Errorf("prekey is not the one that was signed: %w", ErrInvalid)
	}
	return c, c.Prekey.check()
}

func parseCore(b []byte, list DeviceList) (CardCore, error) {
	fields, sig, err := splitSig(b)
	if err != nil {
		return CardCore{}, err
	}
	r := canon.NewReader(fields)
	if err := readVersion(r, cardVersion); err != nil {
		return CardCore{}, err
	}
	c := CardCore{Suite: r.U8(), MinSuite: r.U8()}
	r.Copy(c.Device[:])
	c.Seq = r.U64()
	c.Issued, c.NotAfter = readTime(r), readTime(r)
	c.Seal.ID = r.U32()
	r.Copy(c.Seal.Key[:])
	n := int(r.U8())
	if r.Err() == nil && n > MaxBoxes {
		return CardCore{}, fmt.Errorf("%d mailboxes, at most %d allowed: %w", n, MaxBoxes, ErrInvalid)
	}
	for range n {
		box := Box{Addr: r.LP(MaxBoxAddr)}
		r.Copy(box.ID[:])
		c.Boxes = append(c.Boxes, box)
	}
	r.Copy(c.PrekeysHash[:])
	c.Exts = r.Extensions()
	if err := closeReader(r); err != nil {
		return CardCore{}, err
	}
	entry, ok := list.Find(c.Device)
	if !ok || !entry.Verify(typCard, fields, sig) {
		return CardCore{}, fmt.Errorf("not signed by a device of %s: %w", list.Account.Short(), ErrInvalid)
	}
	return c, c.check()
}

// check holds what a well-formed core must hold beyond its layout.
func (c CardCore) check() error {
	switch {
	case c.MinSuite == 0 || c.Suite < c.MinSuite:
		return fmt.Errorf("suites %d to %d: %w", c.MinSuite, c.Suite, ErrInvalid)
	case c.MinSuite > Suite:
		return fmt.Errorf("needs suite %d: %w", c.MinSuite, ErrNewer)
	case !c.NotAfter.After(c.Issued) || c.NotAfter.Sub(c.Issued) > MaxCardLife:
		return fmt.Errorf("lasts from %s to %s: %w", day(c.Issued), day(c.NotAfter), ErrInvalid)
	}
	return c.Seal.check()
}

// Account is whose card it is.
func (c Card) Account() AccountID { return c.Devices.Account }

// Entry is the device the card is for.
func (c Card) Entry() DeviceEntry {
	e, _ := c.Devices.Find(c.Core.Device) // ParseCard made sure
	return e
}

// CheckTime refuses a card that has expired or is not valid yet, with a day's grace for wrong clocks.
func (c Card) CheckTime(now time.Time) error {
	what := "contact card of " + c.Account().Short()
	if now.Add(ClockSkew).Before(c.Core.Issued) {
		return notYet(what, c.Core.Issued, now)
	}
	return checkExpiry(what, c.Core.NotAfter, now)
}

// checkExpiry words the refusal so that a wrong clock is the first thing a person looks at.
func checkExpiry(what string, notAfter, now time.Time) error {
	if now.After(notAfter.Add(ClockSkew)) {
		return dateError{ErrExpired, fmt.Sprintf("%s expired on %s; this computer's clock says %s: if that is wrong set the clock, else ask for a new one",
			what, day(notAfter), day(now))}
	}
	return nil
}

func notYet(what string, issued, now time.Time) error {
	return dateError{ErrNotYet, fmt.Sprintf("%s was made on %s, but this computer's clock says %s: set the clock right and try again",
		what, day(issued), day(now))}
}

// dateError carries a full sentence, yet still is ErrExpired or ErrNotYet.
type dateError struct {
	kind error
	text string
}

// Error is the sentence.
func (e dateError) Error() string { return e.text }

// Unwrap is ErrExpired or ErrNotYet.
func (e dateError) Unwrap() error { return e.kind }

func day(t time.Time) string { return t.UTC().Format("2 January 2006") }

// SignReach signs where a device can be reached; at most MaxReach−68 bytes.
func SignReach(dev *Device, reach []byte) []byte {
	return append(canon.AppendLP(nil, reach), dev.Sign(typReach, reachFields(dev.ID(), reach))...)
}

// OpenReach verifies a signed reach and returns what is inside.
func OpenReach(entry DeviceEntry, signed []byte) ([]byte, error) {
	if len(signed) > MaxReach {
		return nil, fmt.Errorf("read reach: %d bytes, at most %d allowed: %w", len(signed), MaxReach, ErrInvalid)
	}
	r := canon.NewReader(bytes.Clone(signed))
	reach, sig := r.LP(MaxReach), r.Raw(64)
	if err := closeReader(r); err != nil {
		return nil, fmt.Errorf("read reach: %w", err)
	}
	if !entry.Verify(typReach, reachFields(entry.ID, reach), sig) {
		return nil, fmt.Errorf("read reach: not signed by device %s: %w", entry.ID, ErrInvalid)
	}
	return reach, nil
}

func reachFields(id DeviceID, reach []byte) []byte {
	var w canon.Writer
	return w.Raw(id[:]).LP(reach).Bytes()
}

// IsDate reports whether an error is about a date, so that a wrong clock may be the cause.
func IsDate(err error) bool { return errors.Is(err, ErrExpired) || errors.Is(err, ErrNotYet) }

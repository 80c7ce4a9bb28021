package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sotto/internal/canon"
)

// object is one kind of signed bytes and the function that reads it.
type object struct {
	name  string
	bytes []byte
	parse func([]byte) error
}

func objects() []object {
	p := newPerson("ana")
	id := p.invite().ID()
	open := p.bundle()
	open.OneTime, open.Uses = nil, 5
	entry := p.device.Entry(made)
	return []object{
		{"device list", p.list, func(b []byte) error { _, err := ParseDeviceList(b); return err }},
		{"card", p.card, func(b []byte) error { _, err := ParseCard(b); return err }},
		{"bundle", must(p.bundle().Marshal(p.device, id)), func(b []byte) error { _, err := ParseBundle(b, p.account.ID(), id); return err }},
		{"reusable bundle", must(open.Marshal(p.device, id)), func(b []byte) error { _, err := ParseBundle(b, p.account.ID(), id); return err }},
		{"reach", SignReach(p.device, []byte("where I am")), func(b []byte) error { _, err := OpenReach(entry, b); return err }},
		{"device secret", p.device.MarshalSecret(), func(b []byte) error { _, err := ParseDevice(b); return err }},
		{"prekey secret", p.spk.MarshalSecret(), func(b []byte) error { _, err := ParsePrekeySecret(b); return err }},
		{"seal secret", p.lk.MarshalSecret(), func(b []byte) error { _, err := ParseSealSecret(b); return err }},
	}
}

func named(err error) bool {
	return errors.Is(err, ErrInvalid) || errors.Is(err, ErrNewer) || errors.Is(err, ErrOtherAccount) || errors.Is(err, ErrWithdrawn)
}

func TestEveryObjectIsRefusedWhenCutAnywhereOrFollowedByAnything(t *testing.T) {
	for _, o := range objects() {
		if err := o.parse(o.bytes); err != nil {
			t.Fatalf("%s itself: %v", o.name, err)
		}
		for n := range o.bytes {
			if err := o.parse(o.bytes[:n]); !named(err) {
				t.Fatalf("%s cut to %d of %d bytes: %v", o.name, n, len(o.bytes), err)
			}
		}
		for _, tail := range []string{"\x00", "x", strings.Repeat("\x00", 64)} {
			if err := o.parse(append(bytes.Clone(o.bytes), tail...)); !named(err) {
				t.Errorf("%s with %q behind: %v", o.name, tail, err)
			}
		}
	}
}

func TestEverySignedObjectIsRefusedWithAnyByteFlipped(t *testing.T) {
	card := newPerson("ana").card
	for _, o := range objects() {
		if strings.HasSuffix(o.name, "secret") {
			continue // nothing to check random keys against; the vault binds them
		}
		inside := bytes.Index(o.bytes, card) // a bundle's card: its bytes are flipped on their own
		for n := 0; n < len(o.bytes); n += flipStride {
			if inside > 0 && n > inside && n < inside+len(card) {
				n = inside + len(card)
			}
			bad := bytes.Clone(o.bytes)
			bad[n] ^= 1 << (n % 8)
			if err := o.parse(bad); !named(err) {
				t.Fatalf("%s with byte %d flipped: %v", o.name, n, err)
			}
		}
	}
}

func TestAParsedObjectDoesNotChangeWithTheBufferItCameFrom(t *testing.T) {
	p := newPerson("ana")
	buf := bytes.Clone(p.card)
	c := must(ParseCard(buf))
	clear(buf)
	if !bytes.Equal(c.Devices.Bytes(), p.list) || string(c.Core.Exts[0].Data) != "later" {
		t.Error("the card points into the caller's buffer")
	}
}

// hostile public keys.
var (
	lowOrderX = []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p, not canonical
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0900000000000000000000000000000000000000000000000000000000000080", // the base point with the spare bit set
		"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	}
	badEd = []string{
		"0100000000000000000000000000000000000000000000000000000000000000", // identity
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // order 2
		"0000000000000000000000000000000000000000000000000000000000000000", // order 4
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
		"0100000000000000000000000000000000000000000000000000000000000080", // identity with the sign bit
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = p + 1
		"0200000000000000000000000000000000000000000000000000000000000000", // not on the curve
	}
)

func key32(s string) [32]byte { return [32]byte(must(hex.DecodeString(s))) }

func TestLowOrderAndNonCanonicalKeysAreRefusedWhereverTheyStand(t *testing.T) {
	p := newPerson("ana")
	for _, k := range lowOrderX {
		l := p.deviceList()
		l.Devices[0].IdentityKey = key32(k)
		if _, err := ParseDeviceList(l.Sign(p.account)); !errors.Is(err, ErrInvalid) {
			t.Errorf("identity key %s: %v", k, err)
		}
		pre := p.spk.Public()
		pre.X = key32(k)
		if _, err := SignCard(p.list, p.device, p.core(), pre); !errors.Is(err, ErrInvalid) {
			t.Errorf("prekey %s: %v", k, err)
		}
		core := p.core()
		copy(core.Seal.Key[1184:], must(hex.DecodeString(k)))
		if _, err := SignCard(p.list, p.device, core, p.spk.Public()); !errors.Is(err, ErrInvalid) {
			t.Errorf("seal key %s: %v", k, err)
		}
		b := p.bundle()
		b.OneTime.X = key32(k)
		if _, err := b.Marshal(p.device, p.invite().ID()); !errors.Is(err, ErrInvalid) {
			t.Errorf("one-time prekey %s: %v", k, err)
		}
	}
	for _, k := range badEd {
		l := p.deviceList()
		l.Devices[0].SignKey = key32(k)
		if _, err := ParseDeviceList(l.Sign(p.account)); !errors.Is(err, ErrInvalid) {
			t.Errorf("device key %s: %v", k, err)
		}
		b := p.bundle()
		b.RecordKey = key32(k)
		if _, err := b.Marshal(p.device, p.invite().ID()); !errors.Is(err, ErrInvalid) {
			t.Errorf("record key %s: %v", k, err)
		}
		if _, err := ParseAccountID(AccountID(key32(k)).String()); !errors.Is(err, ErrInvalid) {
			t.Errorf("account %s: %v", k, err)
		}
		if _, err := ParseInvite(Invite{Account: key32(k)}.Link()); !errors.Is(err, ErrInvalid) {
			t.Errorf("invite by %s: %v", k, err)
		}
	}
}

func TestMLKEMKeysOfWrongLengthOrUnreducedAreRefused(t *testing.T) {
	p := newPerson("ana")
	pre := p.spk.Public()
	for i := range 3 {
		pre.EK[i] = 0xff // coefficients above q
	}
	if _, err := SignCard(p.list, p.device, p.core(), pre); !errors.Is(err, ErrInvalid) {
		t.Errorf("unreduced prekey: %v", err)
	}
	core := p.core()
	core.Seal.Key[0], core.Seal.Key[1] = 0xff, 0xff
	if _, err := SignCard(p.list, p.device, core, p.spk.Public()); !errors.Is(err, ErrInvalid) {
		t.Errorf("unreduced seal key: %v", err)
	}
	for _, change := range []int{-1, -1152, 1} { // the prekeys object is as long as its keys, no shorter, no longer
		core := p.core()
		core.Device, core.Suite, core.MinSuite = p.device.ID(), Suite, Suite
		keys := prekeysFields(p.spk.Public(), nil)
		if change < 0 {
			keys = slices.Delete(keys, 20, 20-change)
		} else {
			keys = slices.Insert(keys, 100, 0)
		}
		core.PrekeysHash = objectHash(typPrekeys, keys)
		fields := core.fields()
		var w canon.Writer
		w.U8(cardVersion).LP(p.list).LP(append(fields, p.device.Sign(typCard, fields)...)).LP(keys)
		if _, err := ParseCard(w.Bytes()); !errors.Is(err, ErrInvalid) {
			t.Errorf("key %+d bytes: %v", change, err)
		}
	}
}

func TestUnknownCriticalExtensionsNeedANewerVersionAndOthersSurvive(t *testing.T) {
	p := newPerson("ana")
	critical := []canon.Extension{{ID: 0x8001, Data: []byte("x")}}
	ordinary := []canon.Extension{{ID: 1, Data: []byte("x")}, {ID: 0x7fff}}
	l := p.deviceList()
	l.Exts = critical
	if _, err := ParseDeviceList(l.Sign(p.account)); !errors.Is(err, ErrNewer) {
		t.Errorf("list: %v", err)
	}
	l.Exts = ordinary
	got := must(ParseDeviceList(l.Sign(p.account)))
	if again := got.Sign(p.account); !bytes.Equal(again, got.Bytes()) {
		t.Error("unknown extensions are lost when a list is signed again")
	}
	l.Exts = []canon.Extension{{ID: 2}, {ID: 1}}
	if _, err := ParseDeviceList(l.Sign(p.account)); !errors.Is(err, ErrInvalid) {
		t.Errorf("extensions out of order: %v", err)
	}
	core := p.core()
	core.Exts = critical
	if _, err := SignCard(p.list, p.device, core, p.spk.Public()); !errors.Is(err, ErrNewer) {
		t.Errorf("card: %v", err)
	}
	b := p.bundle()
	b.Exts = critical
	if _, err := b.Marshal(p.device, p.invite().ID()); !errors.Is(err, ErrNewer) {
		t.Errorf("bundle: %v", err)
	}
}

func TestDeviceListsHoldOneToEightDistinctDevicesAndADateOfThisEra(t *testing.T) {
	p := newPerson("ana")
	for name, change := range map[string]func(*DeviceList){
		"no device":             func(l *DeviceList) { l.Devices = nil },
		"nine devices":          func(l *DeviceList) { l.Devices = manyDevices(9) },
		"one device twice":      func(l *DeviceList) { l.Devices = append(l.Devices, l.Devices[0]) },
		"number 0":              func(l *DeviceList) { l.Seq = 0 },
		"first after another":   func(l *DeviceList) { l.Prev[0] = 1 },
		"second after none":     func(l *DeviceList) { l.Seq = 2 },
		"issued in year 10 000": func(l *DeviceList) { l.Issued = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		l := p.deviceList()
		change(&l)
		if _, err := ParseDeviceList(l.Sign(p.account)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := p.deviceList()
	l.Devices = manyDevices(8)
	if got, err := ParseDeviceList(l.Sign(p.account)); err != nil || len(got.Devices) != 8 {
		t.Errorf("eight devices: %v", err)
	}
}

func manyDevices(n int) []DeviceEntry {
	r := fixed("many devices")
	var list []DeviceEntry
	for range n {
		list = append(list, must(NewDevice(r)).Entry(made))
	}
	return list
}

func TestAnAccountThatSignsTwoHistoriesIsNoticed(t *testing.T) {
	p := newPerson("ana")
	first := must(ParseDeviceList(p.list))
	next := func(prev [32]byte, seq uint64, devices int) DeviceList {
		return must(ParseDeviceList(DeviceList{Seq: seq, Prev: prev, Issued: made, Devices: manyDevices(devices)}.Sign(p.account)))
	}
	second, fork := next(first.Hash(), 2, 1), next(first.Hash(), 2, 2)
	other := must(ParseDeviceList(newPerson("bob").list))
	for name, c := range map[string]struct {
		list, held DeviceList
		newer      bool
		err        error
	}{
		"the same":               {first, first, false, nil},
		"the next":               {second, first, true, nil},
		"the one before":         {first, second, false, nil},
		"a later one":            {next([32]byte{1}, 9, 1), first, true, nil},
		"another with its place": {fork, second, false, ErrEquivocation},
		"one that skips its own": {next([32]byte{1}, 2, 1), first, false, ErrEquivocation},
		"another past":           {first, next([32]byte{1}, 2, 1), false, ErrEquivocation},
		"another account's":      {other, first, false, ErrOtherAccount},
	} {
		newer, err := c.list.Follows(c.held)
		if newer != c.newer || !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v", name, newer, err)
		}
	}
}

func TestACardIsOnlyTakenFromADeviceOfItsAccount(t *testing.T) {
	p, q := newPerson("ana"), newPerson("bob")
	if _, err := SignCard(p.list, q.device, p.core(), p.spk.Public()); !errors.Is(err, ErrInvalid) {
		t.Errorf("signed by a foreign device: %v", err)
	}
	forged := p.deviceList()
	forged.Devices = append(forged.Devices, q.device.Entry(made))
	mixed := append(forged.Sign(p.account)[:len(forged.fields())], p.list[len(p.list)-64:]...)
	if _, err := SignCard(mixed, q.device, p.core(), p.spk.Public()); !errors.Is(err, ErrInvalid) {
		t.Errorf("list with a device slipped in: %v", err)
	}
	var w canon.Writer // q's prekey under p's core
	r := canon.NewReader(p.card[1:])
	w.U8(cardVersion).LP(r.LP(maxListBytes)).LP(r.LP(maxCoreBytes)).LP(prekeysFields(q.spk.Public(), nil))
	if _, err := ParseCard(w.Bytes()); !errors.Is(err, ErrInvalid) {
		t.Errorf("swapped prekey: %v", err)
	}
}

func TestSignaturesOfOneKindDoNotPassForAnother(t *testing.T) {
	p := newPerson("ana")
	fields := p.deviceList().fields()
	if _, err := ParseDeviceList(append(bytes.Clone(fields), p.account.Sign("card", fields)...)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a list signed as a card: %v", err)
	}
	reach := append(canon.AppendLP(nil, []byte("here")), p.device.Sign("reach", canon.AppendLP(nil, []byte("here")))...)
	if _, err := OpenReach(p.device.Entry(made), reach); !errors.Is(err, ErrInvalid) {
		t.Errorf("a reach without its device: %v", err)
	}
	if _, err := OpenReach(p.device.Entry(made), SignReach(p.device, make([]byte, MaxReach))); !errors.Is(err, ErrInvalid) {
		t.Error("an oversize reach is taken")
	}
}

func TestCardsSayWhichSuitesAndDatesTheyAreFor(t *testing.T) {
	p := newPerson("ana")
	for name, c := range map[string]struct {
		change func(*CardCore)
		want   error
	}{
		"speaks a newer suite too":     {func(c *CardCore) { c.Suite, c.MinSuite = 9, 1 }, nil},
		"accepts newer suites only":    {func(c *CardCore) { c.Suite, c.MinSuite = 9, 2 }, ErrNewer},
		"accepts more than it speaks":  {func(c *CardCore) { c.Suite, c.MinSuite = 1, 2 }, ErrInvalid},
		"accepts suite 0":              {func(c *CardCore) { c.Suite, c.MinSuite = 1, 0 }, ErrInvalid},
		"ends before it begins":        {func(c *CardCore) { c.NotAfter = c.Issued.Add(-time.Hour) }, ErrInvalid},
		"lasts 31 days":                {func(c *CardCore) { c.NotAfter = c.Issued.Add(31 * 24 * time.Hour) }, ErrInvalid},
		"lasts 30 days":                {func(c *CardCore) { c.NotAfter = c.Issued.Add(30 * 24 * time.Hour) }, nil},
		"is from 1970":                 {func(c *CardCore) { c.Issued, c.NotAfter = time.Unix(0, 0), time.Unix(60, 0) }, nil},
		"is from year 10 000":          {func(c *CardCore) { c.NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, ErrInvalid},
		"has four mailboxes":           {func(c *CardCore) { c.Boxes = make([]Box, 4) }, ErrInvalid},
		"has a mailbox address of 257": {func(c *CardCore) { c.Boxes = []Box{{Addr: make([]byte, 257)}} }, ErrInvalid},
	} {
		core := p.core()
		change := c.change
		change(&core)
		if _, err := SignCard(p.list, p.device, core, p.spk.Public()); !errors.Is(err, c.want) {
			t.Errorf("a card that %s: %v", name, err)
		}
	}
}

func TestDatesAreRefusedWithADaysGraceAndTheClockIsNamed(t *testing.T) {
	p := newPerson("ana")
	c := must(ParseCard(p.card))
	until := c.Core.NotAfter
	for name, x := range map[string]struct {
		now  time.Time
		want error
	}{
		"today":                   {made, nil},
		"23 h after the end":      {until.Add(23 * time.Hour), nil},
		"25 h after the end":      {until.Add(25 * time.Hour), ErrExpired},
		"a month after the end":   {until.Add(30 * 24 * time.Hour), ErrExpired},
		"23 h before it was made": {made.Add(-23 * time.Hour), nil},
		"a month before":          {made.Add(-30 * 24 * time.Hour), ErrNotYet},
	} {
		err := c.CheckTime(x.now)
		if !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "clock") || !IsDate(err)) {
			t.Errorf("%s: %q does not name the clock", name, err)
		}
	}
	id := p.invite().ID()
	b := must(ParseBundle(must(p.bundle().Marshal(p.device, id)), p.account.ID(), id))
	if err := b.CheckTime(made.Add(47 * time.Hour)); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	if err := b.CheckTime(made.Add(49 * time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("expired invite: %v", err)
	}
}

func TestABundleIsOnlyGoodForItsInviteAndItsAccount(t *testing.T) {
	p, q := newPerson("ana"), newPerson("bob")
	id := p.invite().ID()
	raw := must(p.bundle().Marshal(p.device, id))
	if _, err := ParseBundle(raw, q.account.ID(), id); !errors.Is(err, ErrOtherAccount) {
		t.Errorf("for another account: %v", err)
	}
	if _, err := ParseBundle(raw, p.account.ID(), [16]byte{1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("for another invite: %v", err)
	}
	if _, err := ParseBundle(nil, p.account.ID(), id); !errors.Is(err, ErrWithdrawn) {
		t.Errorf("withdrawn: %v", err)
	}
	for name, change := range map[string]func(*Bundle){
		"no uses":             func(b *Bundle) { b.Uses = 0 },
		"one-time for two":    func(b *Bundle) { b.Uses = 2 },
		"a name of 65 bytes":  func(b *Bundle) { b.Name = strings.Repeat("n", 65) },
		"a name not in UTF-8": func(b *Bundle) { b.Name = "\xff" },
		"a reach too long":    func(b *Bundle) { b.Reach = make([]byte, 1025) },
		"no card":             func(b *Bundle) { b.Card = nil },
	} {
		b := p.bundle()
		change(&b)
		if _, err := b.Marshal(p.device, id); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheLargestBundleFitsARecord(t *testing.T) {
	p := newPerson("ana")
	l := p.deviceList()
	l.Devices = append(manyDevices(7), l.Devices...)
	core := p.core()
	core.Boxes = make([]Box, MaxBoxes)
	for i := range core.Boxes {
		core.Boxes[i].Addr = make([]byte, MaxBoxAddr)
	}
	b := p.bundle()
	b.Card = must(SignCard(l.Sign(p.account), p.device, core, p.spk.Public()))
	b.Name, b.Reach = strings.Repeat("n", MaxName), make([]byte, MaxReach)
	raw, err := b.Marshal(p.device, p.invite().ID())
	if err != nil || len(raw) > MaxBundle {
		t.Fatalf("%d bytes: %v", len(raw), err)
	}
	b.Exts = []canon.Extension{{ID: 1, Data: make([]byte, 4000)}}
	if _, err := b.Marshal(p.device, p.invite().ID()); !errors.Is(err, ErrInvalid) {
		t.Errorf("an oversize bundle: %v", err)
	}
}

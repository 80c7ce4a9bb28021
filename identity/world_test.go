package identity

import (
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sotto/internal/canon"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

// fixed is an endless stream of fixed bytes: SHAKE-256 of a label.
func fixed(label string) io.Reader {
	h := sha3.NewSHAKE256()
	_, _ = h.Write([]byte(label))
	return h
}

var made = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// person is one account with one device and all it publishes, always the same for the same name.
type person struct {
	seed    Seed
	account *Account
	device  *Device
	list    []byte
	spk     *PrekeySecret
	lk      *SealSecret
	card    []byte
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newPerson(name string) person {
	r := fixed(name)
	p := person{seed: must(NewSeed(r)), device: must(NewDevice(r)), spk: must(NewPrekey(r, 7)), lk: must(NewSealKey(r, 9))}
	p.account = p.seed.Account()
	p.list = p.deviceList().Sign(p.account)
	p.card = must(SignCard(p.list, p.device, p.core(), p.spk.Public()))
	return p
}

func (p person) deviceList() DeviceList {
	return DeviceList{Account: p.account.ID(), Seq: 1, Issued: made, Devices: []DeviceEntry{p.device.Entry(made)}}
}

func (p person) core() CardCore {
	return CardCore{
		Seq: 3, Issued: made, NotAfter: made.Add(14 * 24 * time.Hour), Seal: p.lk.Public(),
		Boxes: []Box{{Addr: []byte{4, 192, 0, 2, 1, 0x91, 2, 0x0f, 0xa1}, ID: [32]byte{1, 2, 3}}},
		Exts:  []canon.Extension{{ID: 5, Data: []byte("later")}},
	}
}

func (p person) invite() Invite {
	return Invite{Account: p.account.ID(), Secret: must(NewInviteSecret(fixed("invite secret"))), Hints: []string{"/ip4/192.0.2.1/udp/4001/quic-v1"}}
}

func (p person) bundle() Bundle {
	one := must(NewPrekey(fixed("one-time"), 11)).Public()
	return Bundle{
		Card: p.card, OneTime: &one, RecordKey: p.device.RecordKey(), Discovery: p.device.Discovery(), Name: "Ana",
		Reach: SignReach(p.device, []byte("where I am")), NotAfter: made.Add(24 * time.Hour), Uses: 1,
	}
}

// vector checks a value against testdata/vectors.json under its name, or writes it there with -update.
func vector(t *testing.T, values map[string]string) {
	t.Helper()
	path := filepath.Join("testdata", "vectors.json")
	if *update {
		out := must(json.MarshalIndent(values, "", "  "))
		if err := os.WriteFile(path, append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	var want map[string]string
	if err := json.Unmarshal(must(os.ReadFile(path)), &want); err != nil {
		t.Fatal(err)
	}
	for name, got := range values {
		if want[name] != got {
			t.Errorf("%s is\n%s, the vector says\n%s", name, got, want[name])
		}
	}
	for name := range want {
		if _, ok := values[name]; !ok {
			t.Errorf("vector %q is checked by nothing", name)
		}
	}
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

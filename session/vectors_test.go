package session

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/cryptotest"

	"sotto/identity"
)

var update = flag.Bool("update", false, "write testdata anew")

// hexed is bytes that a vector shows as hex.
type hexed []byte

func (h hexed) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexed) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func hexedAll(list [][]byte) []hexed {
	out := make([]hexed, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}

// pinned compares v with testdata/name, or writes it with -update.
func pinned(t *testing.T, name string, v any) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code makes now; if PROTOCOL.md changed too, run with -update", path)
	}
}

type prekeyVector struct {
	ID       uint32 `json:"id"`
	XPrivate hexed  `json:"x_private"`
	KEMSeed  hexed  `json:"kem_seed"`
}

func vectorOf(p *identity.PrekeySecret) *prekeyVector {
	return &prekeyVector{p.ID, p.X().Bytes(), p.KEM().Bytes()}
}

type partyVector struct {
	Account    hexed         `json:"account"`
	Device     hexed         `json:"device"`
	DK         hexed         `json:"dk_public"`
	IKPrivate  hexed         `json:"ik_private"`
	DeviceList hexed         `json:"device_list"`
	SPK        *prekeyVector `json:"signed_prekey,omitempty"`
	OPK        *prekeyVector `json:"one_time_prekey,omitempty"`
}

func partyOf(p *person) partyVector {
	id := p.local.Device.ID()
	return partyVector{
		Account: p.local.Account[:], Device: id[:], DK: hexed(p.local.Device.SignKey()),
		IKPrivate: p.local.Device.IdentityKey().Bytes(), DeviceList: p.local.Devices,
	}
}

type handshakeVector struct {
	Name string `json:"name"`
	// Random: EK_A, ML-KEM encapsulation (m), first ratchet X25519 key, its ML-KEM seed (d || z).
	Random        []hexed     `json:"random"`
	A             partyVector `json:"a"`
	B             partyVector `json:"b"`
	IKM           hexed       `json:"ikm"`
	Transcript    hexed       `json:"transcript"`
	SK            hexed       `json:"sk"`
	HKa           hexed       `json:"hka"`
	NHKb          hexed       `json:"nhkb"`
	RootKey       hexed       `json:"first_chain_rk"`
	ChainKey      hexed       `json:"first_chain_ck"`
	NextHeaderKey hexed       `json:"first_chain_nhk"`
	SessionID     hexed       `json:"session_id"`
	InitialHeader hexed       `json:"initial_header"`
}

func TestHandshakeVectors(t *testing.T) {
	var vectors []handshakeVector
	for _, oneTime := range []bool{true, false} {
		a, b := newPerson(t, "vector a"), newPerson(t, "vector b")
		v := handshakeVector{Name: "signed prekey only", A: partyOf(a), B: partyOf(b)}
		v.B.SPK = vectorOf(b.spk)
		var opk *identity.Prekey
		if oneTime {
			v.Name, v.B.OPK, opk = "with a one-time prekey", vectorOf(b.oneTime[9]), b.publicOneTime()
		}
		r := newStream("handshake vector")
		s := must(Initiate(a.local, b.card, opk, r))(t)
		v.Random, v.Transcript, v.SessionID, v.InitialHeader = hexedAll(r.draws), s.ad[:], s.id[:], s.initial
		v.HKa, v.NHKb, v.RootKey = s.send.hk[:], s.nhkr[:], s.rk[:]
		v.ChainKey, v.NextHeaderKey = s.send.ck[:], s.nhks[:]
		v.IKM, v.SK = handshakeSecrets(t, v, s)
		vectors = append(vectors, v)
	}
	pinned(t, "handshake.json", vectors)
}

// handshakeSecrets derives again, from the vector's own fields and the acceptor's side, what no session keeps.
func handshakeSecrets(t *testing.T, v handshakeVector, s *Session) (ikm, sk []byte) {
	t.Helper()
	in, err := parseInitial(s.initial)
	if err != nil {
		t.Fatal(err)
	}
	private := func(b []byte) *Key { k := Key(b); return &k }
	kem := v.B.SPK
	secret := newSecret()
	secret.add(x25519(private(v.B.SPK.XPrivate), &in.Device.IdentityKey))
	secret.add(x25519(private(v.B.IKPrivate), &in.ek))
	secret.add(x25519(private(v.B.SPK.XPrivate), &in.ek))
	if v.B.OPK != nil {
		kem = v.B.OPK
		secret.add(x25519(private(v.B.OPK.XPrivate), &in.ek))
	}
	secret.add(decapsulate(kem.KEMSeed, in.ct[:]))
	if secret.err != nil {
		t.Fatal(secret.err)
	}
	ikm = bytes.Clone(secret.ikm)
	root, hka, nhkb := secret.derive(&s.ad)
	if !bytes.Equal(hka[:], v.HKa) || !bytes.Equal(nhkb[:], v.NHKb) {
		t.Error("the ends derive different keys")
	}
	return ikm, root[:]
}

type messageVector struct {
	From string `json:"from"`
	// Random: with a step X25519 key, ML-KEM seed (d || z), encapsulation (m); then always the two nonces, header first.
	Random  []hexed `json:"random"`
	Skip    uint32  `json:"skip_to,omitempty"`
	Chain   uint32  `json:"chain"`
	N       uint32  `json:"n"`
	Header  hexed   `json:"header_sha256"`
	Payload string  `json:"payload"`
	Item    hexed   `json:"item"`
	AckKey  hexed   `json:"ack_key"`
	Ack     hexed   `json:"ack"`
}

// TestRatchetVectors goes on from the first handshake vector.
func TestRatchetVectors(t *testing.T) {
	a, b := newPerson(t, "vector a"), newPerson(t, "vector b")
	alice := &end{must(Initiate(a.local, b.card, b.publicOneTime(), newStream("handshake vector")))(t), keyStore{}, newStream("ratchet vector a")}
	bob := &end{keys: keyStore{}, rand: newStream("ratchet vector b")}
	var vectors []messageVector
	for i, turn := range []struct {
		from string
		skip uint32
	}{{"a", 0}, {"a", 0}, {"b", 0}, {"a", 0}, {"a", 3}, {"b", 2}, {"a", 0}} {
		from, to := alice, bob
		if turn.from == "b" {
			from, to = bob, alice
		}
		from.rand.draws = nil
		if err := from.SkipTo(turn.skip); err != nil {
			t.Fatal(err)
		}
		v := messageVector{From: turn.from, Skip: turn.skip, Payload: fmt.Sprint("message ", i)}
		sent := from.say(t, v.Payload)
		v.Random, v.Chain, v.N, v.Item = hexedAll(from.rand.draws), sent.Chain, sent.N, sent.Item
		header := from.send.header
		put32(header[offN:], sent.N)
		plain := sum(header[:])
		ack := Ack(sent.AckKey, sent.Item)
		v.Header, v.AckKey, v.Ack = plain[:], sent.AckKey[:], ack[:]
		vectors = append(vectors, v)
		if i > 0 {
			to.mustHear(t, sent.Item, v.Payload)
			continue
		}
		it := must(ParseItem(sent.Item))(t)
		s, o, err := Accept(b.local, it, b.keys(it.Initial))
		if err != nil || string(o.Payload) != v.Payload {
			t.Fatal(err)
		}
		bob.Session = s
	}
	pinned(t, "ratchet.json", vectors)
}

type envelopeVector struct {
	Name       string  `json:"name"`
	SealID     uint32  `json:"seal_id"`
	SealSecret hexed   `json:"seal_secret"` // X-Wing seed
	Items      []hexed `json:"items"`
	Envelope   hexed   `json:"envelope"`
}

// TestEnvelopeVectors opens what is pinned: crypto/hpke does not take randomness from its caller, so what it seals is
// repeatable only for -update.
func TestEnvelopeVectors(t *testing.T) {
	path := filepath.Join("testdata", "envelope.json")
	if *update {
		writeEnvelopeVectors(t, path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []envelopeVector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	bob := newPerson(t, "vector b")
	for _, v := range vectors {
		items, err := OpenEnvelope([]*identity.SealSecret{bob.seal}, v.Envelope)
		if err != nil || len(items) != len(v.Items) {
			t.Fatalf("%s: %d items, %v", v.Name, len(items), err)
		}
		for i := range items {
			if !bytes.Equal(items[i], v.Items[i]) {
				t.Errorf("%s: item %d differs", v.Name, i)
			}
		}
	}
}

func writeEnvelopeVectors(t *testing.T, path string) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, 1)
	bob := newPerson(t, "vector b")
	seed := must(bob.seal.HPKE().Bytes())(t)
	var vectors []envelopeVector
	for _, c := range []struct {
		name  string
		items [][]byte
	}{
		{"one item", [][]byte{[]byte("\x02" + strings.Repeat("item ", 20))}},
		{"two items", [][]byte{[]byte("\x02one"), []byte("\x02two")}},
		{"8 KiB exactly full", [][]byte{bytes.Repeat([]byte{2}, EnvelopeSmall-EnvelopeOverhead-ItemFrame)}},
		{"one byte too much for 8 KiB", [][]byte{bytes.Repeat([]byte{2}, EnvelopeSmall-EnvelopeOverhead-ItemFrame+1)}},
	} {
		env := must(SealEnvelope(bob.seal.Public(), c.items))(t)
		vectors = append(vectors, envelopeVector{c.name, bob.seal.ID, seed, hexedAll(c.items), env})
	}
	b, err := json.MarshalIndent(vectors, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

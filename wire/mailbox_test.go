package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sotto/internal/canon"
)

func signature(first byte) (s [64]byte) { copy(s[:], fill(64, first)); return }

func sampleTerms() Terms {
	return Terms{
		Service: key(1), Issued: 1_795_000_000, Mode: ModeInvite, MaxBytes: 64 << 20, MaxCount: 4096, StartBytes: 1 << 20, StartCount: 32, KeepDays: 30,
		RegisterBits: 20, StrangerBits: 22, Flags: FlagRelay | FlagRepublishes, DrainUntil: 1_796_000_000, Note: "run by a friend", Exts: []canon.Extension{{ID: 9, Data: []byte("later")}},
		Signature: signature(7),
	}
}

func sampleCustody() Custody {
	return Custody{Box: key(1), Hash: key(2), Arrived: 1_795_010_400, HeldUntil: HeldUntil(1_795_010_400, 30), Exts: []canon.Extension{{ID: 9, Data: []byte("later")}}, Signature: signature(3)}
}

func sampleProof() Proof {
	return Proof{Present: true, Answer: key(3), Time: 1_795_000_000, Signature: signature(4)}
}

func samplePage() Page {
	return Page{More: true, Mail: []Mail{
		{ID: 7, Spent: short(1), Arrived: 1_795_010_400, Envelope: fill(8192, 1)},
		{ID: 9, Arrived: 1_795_014_000, Envelope: fill(8192, 2)},
	}}
}

func sampleStanding() Standing {
	return Standing{Bytes: 64 << 20, Count: 4096, UsedBytes: 16_384, UsedCount: 2, Unspent: 255, KeepDays: 30, Expires: 1_800_000_000}
}

func sampleRequests() map[string]MailboxRequest {
	return map[string]MailboxRequest{
		"terms":     &TermsRequest{},
		"auth":      &Auth{Key: key(1), Signature: signature(2)},
		"register":  &Admission{Voucher: fill(16, 1), Hour: 498_611, Nonce: 12_345, OldKey: key(2), OldSignature: signature(3)},
		"standing":  &StandingRequest{},
		"pool":      &PoolChange{Add: [][16]byte{short(1), short(2)}, Drop: [][16]byte{short(3)}},
		"fetch":     &Fetch{After: 7, Max: 20},
		"wait":      &Wait{After: 7, Max: 20, Seconds: 600},
		"ack":       &AckMail{IDs: []uint64{7, 9}},
		"republish": &RepublishList{List: []Republish{{Name: key(1), NotBefore: 1_795_000_000, Record: fill(30, 1)}, {Name: key(2), Record: []byte{}}}},
		"close":     &CloseBox{},
		"deposit":   &Deposit{Box: key(1), Token: short(2), NotBefore: 1_795_000_000, Envelope: fill(40, 3)},
		"stranger":  &StrangerDeposit{Box: key(1), Hour: 498_611, Nonce: 12_345, Envelope: fill(40, 3)},
		"prove":     &Prove{Box: key(1), Hash: key(2), Nonce: key(3)},
		"strangers": &Strangers{Open: true},
		"unknown":   &UnknownRequest{Code: 200, Fields: fill(5, 1)},
	}
}

// TestBytesOfTheMailboxProtocolStayAsPublished pins PROTOCOL 17 to testdata/mailbox.json. Pages are given by their hash.
func TestBytesOfTheMailboxProtocolStayAsPublished(t *testing.T) {
	page := sha256.Sum256(samplePage().Marshal())
	box, token := NewBoxID(key(1), key(2)), BoxToken(key(3), 7, key(4))
	pool, proof := PoolHash(short(5)), ProofAnswer(key(6), fill(8192, 7))
	got := map[string]string{
		"answer":             hex.EncodeToString(MailboxAnswer{Result: fill(5, 1)}.Append(nil)),
		"answer, overloaded": hex.EncodeToString(MailboxAnswer{Code: CodeOverloaded, RetryAfter: 300}.Append(nil)),
		"result: terms":      hex.EncodeToString(sampleTerms().Marshal()),
		"result: standing":   hex.EncodeToString(sampleStanding().Marshal()),
		"result: page, SHA":  hex.EncodeToString(page[:]),
		"result: no page":    hex.EncodeToString(Page{}.Marshal()),
		"result: receipt":    hex.EncodeToString(sampleCustody().Marshal()),
		"result: proof":      hex.EncodeToString(sampleProof().Marshal()),
		"signed: owner":      hex.EncodeToString(canon.SigInput(SigOwner, OwnerFields(key(1), key(2)))),
		"signed: successor":  hex.EncodeToString(canon.SigInput(SigSuccessor, SuccessorFields(key(1), key(2)))),
		"signed: terms":      hex.EncodeToString(canon.SigInput(SigTerms, sampleTerms().Fields())),
		"signed: receipt":    hex.EncodeToString(canon.SigInput(SigCustody, sampleCustody().Fields())),
		"signed: proof":      hex.EncodeToString(canon.SigInput(SigProof, sampleProof().Fields(Prove{Box: key(5), Hash: key(6), Nonce: key(7)}))),
		"box id":             hex.EncodeToString(box[:]),
		"token 7 of a seed":  hex.EncodeToString(token[:]),
		"hash of a token":    hex.EncodeToString(pool[:]),
		"answer of a proof":  hex.EncodeToString(proof[:]),
	}
	for name, q := range sampleRequests() {
		got["request: "+name] = hex.EncodeToString(AppendMailboxRequest(nil, q))
	}
	file := filepath.Join("testdata", "mailbox.json")
	if *update {
		b, _ := json.MarshalIndent(got, "", "  ")
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("bytes differ from the published vectors:\ngot  %v\nwant %v", got, want)
	}
}

// The nonces are the smallest that fit, so that a second implementation can find them by counting.
func TestWorkForAMailboxIsJudgedAsPublished(t *testing.T) {
	for _, c := range []struct {
		name string
		fits func(hour uint32, nonce uint64, bits uint8) bool
		want uint64
	}{
		{"register", func(h uint32, n uint64, b uint8) bool { return RegisterFits(key(1), key(2), h, n, b) }, 9553},
		{"stranger", func(h uint32, n uint64, b uint8) bool { return StrangerFits(key(1), key(2), h, key(3), n, b) }, 3308},
	} {
		nonce := uint64(0)
		for !c.fits(498_000, nonce, 12) {
			nonce++
		}
		if nonce != c.want {
			t.Errorf("%s: %d, published %d", c.name, nonce, c.want)
		}
		if c.fits(498_001, nonce, 12) || c.fits(498_000, nonce, 64) || !c.fits(498_000, nonce+1, 0) {
			t.Errorf("%s: work taken for another hour or for more bits than it has", c.name)
		}
	}
}

func TestEveryMailboxRequestReadsBack(t *testing.T) {
	for name, want := range sampleRequests() {
		body := AppendMailboxRequest(nil, want)[4:]
		got, err := ParseMailboxRequest(body)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if name == "unknown" {
			continue
		}
		if got.Op().String() != name {
			t.Errorf("%s is called %v", name, got.Op())
		}
		for n := range body {
			if q, err := ParseMailboxRequest(body[:n]); err == nil {
				t.Errorf("%s: %d of %d bytes are taken for %+v", name, n, len(body), q)
			}
		}
		if _, err := ParseMailboxRequest(append(bytes.Clone(body), 0)); err == nil {
			t.Errorf("%s: accepted a trailing byte", name)
		}
	}
}

func TestResultsOfAMailboxReadBackAndNothingElseDoes(t *testing.T) {
	for name, c := range map[string]struct {
		want  any
		raw   []byte
		parse func([]byte) (any, error)
	}{
		"terms":    {sampleTerms(), sampleTerms().Marshal(), func(b []byte) (any, error) { return ParseTerms(b) }},
		"standing": {sampleStanding(), sampleStanding().Marshal(), func(b []byte) (any, error) { return ParseStanding(b) }},
		"receipt":  {sampleCustody(), sampleCustody().Marshal(), func(b []byte) (any, error) { return ParseCustody(b) }},
		"proof":    {sampleProof(), sampleProof().Marshal(), func(b []byte) (any, error) { return ParseProof(b) }},
		"box id":   {key(1), fill(32, 1), func(b []byte) (any, error) { return ParseBoxID(b) }},
		"unspent":  {uint32(0x01020304), fill(4, 1), func(b []byte) (any, error) { return ParseUnspent(b) }},
		"count":    {uint16(0x0102), fill(2, 1), func(b []byte) (any, error) { return ParseCount(b) }},
		"bits":     {uint8(22), []byte{22}, func(b []byte) (any, error) { return ParseBits(b) }},
		"page":     {samplePage(), samplePage().Marshal(), func(b []byte) (any, error) { return ParsePage(b) }},
	} {
		got, err := c.parse(c.raw)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for n := 0; n < len(c.raw); n += 1 + n/200 {
			if _, err := c.parse(c.raw[:n]); err == nil {
				t.Errorf("%s: accepted %d of %d bytes", name, n, len(c.raw))
			}
		}
		if _, err := c.parse(append(bytes.Clone(c.raw), 0)); err == nil {
			t.Errorf("%s: accepted a trailing byte", name)
		}
	}
}

func TestMailboxObjectsAgainstTheFormatAreRefusedByName(t *testing.T) {
	terms := func(spoil func(*Terms)) error {
		v := sampleTerms()
		spoil(&v)
		_, err := ParseTerms(v.Marshal())
		return err
	}
	custody := func(spoil func(*Custody)) error {
		v := sampleCustody()
		spoil(&v)
		_, err := ParseCustody(v.Marshal())
		return err
	}
	page := func(spoil func(*Page)) error {
		v := samplePage()
		spoil(&v)
		_, err := ParsePage(v.Marshal())
		return err
	}
	request := func(q MailboxRequest) error {
		_, err := ParseMailboxRequest(AppendMailboxRequest(nil, q)[4:])
		return err
	}
	newer := sampleTerms().Marshal()
	newer[0] = 2
	_, newerErr := ParseTerms(newer)
	_, resultErr := ParseMailboxAnswer([]byte{1, 0, 0, 9})
	for _, c := range []struct {
		err  error
		want string
	}{
		{terms(func(v *Terms) { v.KeepDays = 0 }), "0 days"},
		{terms(func(v *Terms) { v.KeepDays = 31 }), "31 days"},
		{terms(func(v *Terms) { v.Note = "a\xff" }), "UTF-8"},
		{terms(func(v *Terms) { v.Note = strings.Repeat("x", 257) }), "too long"},
		{terms(func(v *Terms) { v.Issued = -1 }), "time"},
		{terms(func(v *Terms) { v.DrainUntil = 253_402_300_800 }), "time"},
		{terms(func(v *Terms) { v.Exts[0].ID = 0x8000 }), "newer"},
		{newerErr, "newer version: 2"},
		{custody(func(v *Custody) { v.Arrived++ }), "held from"},
		{custody(func(v *Custody) { v.HeldUntil++ }), "held from"},
		{custody(func(v *Custody) { v.HeldUntil = v.Arrived / 86_400 * 86_400 }), "held from"},
		{custody(func(v *Custody) { v.HeldUntil += 86_400 }), "held from"},
		{page(func(v *Page) { v.Mail[1].ID = 7 }), "id 7 after 7"},
		{page(func(v *Page) { v.Mail[1].ID = 6 }), "id 6 after 7"},
		{page(func(v *Page) { v.Mail[0].Envelope = v.Mail[0].Envelope[1:] }), "8191"},
		{page(func(v *Page) { v.Mail = make([]Mail, MaxPage+1) }), "too long"},
		{request(&PoolChange{Add: make([][16]byte, MaxPoolBatch+1)}), "too long"},
		{request(&AckMail{IDs: make([]uint64, MaxAckBatch+1)}), "too long"},
		{request(&RepublishList{List: make([]Republish, MaxRepublish+1)}), "too long"},
		{request(&RepublishList{List: []Republish{{Record: make([]byte, MaxRecord+1)}}}), "too long"},
		{request(&Admission{Voucher: make([]byte, MaxVoucher+1)}), "too long"},
		{request(&Deposit{Envelope: make([]byte, MaxEnvelope+1)}), "too long"},
		{request(&Deposit{NotBefore: -1}), "time"},
		{resultErr, "with a result"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%v, want %q", c.err, c.want)
		}
	}
	flags := sampleProof()
	raw := flags.Marshal()
	for _, v := range []byte{0, 2} { // absent with an answer; no flag at all
		raw[1] = v
		if _, err := ParseProof(raw); err == nil {
			t.Errorf("a proof with flag %d is taken", v)
		}
	}
}

func TestUnknownModesGiveNoBoxesAndStaySigned(t *testing.T) {
	want := sampleTerms()
	want.Mode, want.Flags = 77, 0xff
	got, err := ParseTerms(want.Marshal())
	if err != nil || got.Mode.Meaning() != ModeClosed || !bytes.Equal(got.Marshal(), want.Marshal()) {
		t.Errorf("mode %v, %v", got.Mode, err)
	}
}

func TestCountsOfARequestCostNoMemoryBeforeTheirBytesAreThere(t *testing.T) {
	for name, body := range map[string][]byte{
		"pool":      {byte(OpPool), 0x08, 0x00},
		"ack":       {byte(OpAck), 0x04, 0x00},
		"republish": {byte(OpRepublish), 128},
	} {
		if allocs := testing.AllocsPerRun(10, func() {
			if _, err := ParseMailboxRequest(body); err == nil {
				t.Errorf("%s is taken", name)
			}
		}); allocs > 8 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func TestPromisesLastToTheEndOfTheirDay(t *testing.T) {
	const day = 86_400
	for _, c := range []struct {
		arrived int64
		keep    uint16
		want    int64
	}{{0, 1, 2 * day}, {day - 1, 1, 2 * day}, {day, 1, 3 * day}, {day, 30, 32 * day}} {
		if got := HeldUntil(c.arrived, c.keep); got != c.want {
			t.Errorf("arrived %d, kept %d days: until %d, want %d", c.arrived, c.keep, got, c.want)
		}
	}
}

func FuzzParseMailboxRequest(f *testing.F) {
	for _, q := range sampleRequests() {
		f.Add(AppendMailboxRequest(nil, q)[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := ParseMailboxRequest(b); err == nil && !bytes.Equal(AppendMailboxRequest(nil, q)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseMailboxAnswer(f *testing.F) {
	f.Add(MailboxAnswer{Result: sampleTerms().Marshal()}.Append(nil)[4:])
	f.Add(MailboxAnswer{Code: CodeLater, RetryAfter: 5}.Append(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseMailboxAnswer(b); err == nil && !bytes.Equal(a.Append(nil)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseTerms(f *testing.F) {
	f.Add(sampleTerms().Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseTerms(b); err == nil && !bytes.Equal(v.Marshal(), b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseCustody(f *testing.F) {
	f.Add(sampleCustody().Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseCustody(b); err == nil && !bytes.Equal(v.Marshal(), b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParsePage(f *testing.F) {
	f.Add(samplePage().Marshal())
	f.Add(Page{}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParsePage(b); err == nil && !bytes.Equal(v.Marshal(), b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseSmallMailboxResults(f *testing.F) {
	f.Add(sampleStanding().Marshal())
	f.Add(sampleProof().Marshal())
	f.Add(fill(32, 1))
	f.Add(fill(4, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseStanding(b); err == nil && !bytes.Equal(v.Marshal(), b) {
			t.Error("standing is not canonical")
		}
		if v, err := ParseProof(b); err == nil && !bytes.Equal(v.Marshal(), b) {
			t.Error("proof is not canonical")
		}
		if v, err := ParseBoxID(b); err == nil && !bytes.Equal(v[:], b) {
			t.Error("box id is not canonical")
		}
		for size, parse := range map[int]func([]byte) error{
			4: func(b []byte) error { _, err := ParseUnspent(b); return err },
			2: func(b []byte) error { _, err := ParseCount(b); return err },
			1: func(b []byte) error { _, err := ParseBits(b); return err },
		} {
			if err := parse(b); (err == nil) != (len(b) == size) {
				t.Errorf("%d bytes: %v", len(b), err)
			}
		}
	})
}

package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"sotto/internal/canon"
)

var update = flag.Bool("update", false, "write the vectors anew")

// fill returns n bytes that count up from first, so that a vector shows which field is which.
func fill(n int, first byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func key(first byte) (k [32]byte)   { copy(k[:], fill(32, first)); return }
func short(first byte) (k [16]byte) { copy(k[:], fill(16, first)); return }

func sampleReach() Reach {
	return Reach{
		Seq: 1_795_000_000_000, InnerKey: key(1), FrontKey: key(101),
		Inner: [][]byte{fill(8, 10), fill(11, 20)}, Front: [][]byte{fill(8, 30)},
		Exts: []canon.Extension{{ID: 7, Data: []byte("later")}},
	}
}

func sampleContent() *Content {
	return &Content{
		ID: MsgID(short(1)), Device: short(17), N: 2, Prev: key(33), SentAt: 1_795_000_000_123, Clock: 99, Kind: KindText,
		ReplyTo: MsgID(short(65)), ExpireAfter: 60, NotBefore: 5, Text: "see chart", Target: MsgID(short(81)), Emoji: "👍",
		File:        &File{Hash: key(97), Key: key(98), Name: "chart.png", Size: 182311, MIME: "image/png"},
		ContactCard: []byte("card of a third"),
		Hello:       &Hello{Name: "Alice", Invite: short(3), RecordKeys: RecordKeys{Key: key(4), Discovery: key(5)}},
		Receipts:    []Receipt{{Device: short(6), UpTo: 9, Holes: [][2]uint64{{3, 4}}, Lost: [][16]byte{short(7)}}},
		ReadUpTo:    8, Card: []byte("card"), Reach: []byte("reach"), Group: []byte("group"),
		Voids:       []Void{{Session: short(8), Chain: 2, From: 5, To: 64}},
		RecordKeys:  &RecordKeys{Key: key(9), Discovery: key(10)},
		TokenGrants: []TokenGrant{{Seed: key(9), From: 3, Count: 256}},
		Acks:        []Ack{short(10)},
	}
}

// TestBytesOnTheWireStayAsPublished pins every format of this package to testdata/vectors.json.
func TestBytesOnTheWireStayAsPublished(t *testing.T) {
	content, err := sampleContent().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	put := &KnockPut{Name: key(1), Stamp: 77, Envelope: fill(40, 2)}
	got := map[string]string{
		"offer":        hex.EncodeToString(Offer{ID: 3, Item: fill(200, 9)}.Append(nil)),
		"answer":       hex.EncodeToString(Answer{ID: 3, Code: CodeLater, RetryAfter: 20, Ack: Ack(short(1))}.Append(nil)),
		"reach":        hex.EncodeToString(sampleReach().Marshal()),
		"knock get":    hex.EncodeToString((&KnockGet{Name: key(1)}).Append(nil)),
		"knock put":    hex.EncodeToString(put.Append(nil)),
		"knock answer": hex.EncodeToString(KnockAnswer{Code: CodeOK, RetryAfter: 1, Record: fill(12, 1), Acks: []Ack{Ack(short(2))}}.Append(nil)),
		"content":      hex.EncodeToString(content),
	}
	file := filepath.Join("testdata", "vectors.json")
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

func TestStampOfAKnockIsTheSmallestThatFits(t *testing.T) {
	front, env := key(1), fill(64, 3)
	stamp := StampKnock(front, 498_000, env)
	if want := uint64(1059); stamp != want {
		t.Errorf("stamp = %d, published %d", stamp, want)
	}
	for _, hour := range []uint32{497_999, 498_000, 498_001} {
		if !CheckKnock(front, hour, env, stamp) {
			t.Errorf("stamp refused in hour %d", hour)
		}
	}
	if CheckKnock(front, 498_002, env, stamp) || CheckKnock(key(2), 498_000, env, stamp) || CheckKnock(front, 498_000, env[1:], stamp) {
		t.Error("stamp taken for another hour, host or envelope")
	}
}

func TestFrameLengthIsJudgedBeforeMemoryIsTaken(t *testing.T) {
	for name, head := range map[string][]byte{
		"zero":               {0, 0, 0, 0},
		"one over the cap":   {0, 0, 0, 17},
		"four billion":       {0xff, 0xff, 0xff, 0xff},
		"top bit, like a -1": {0x80, 0, 0, 0},
	} {
		allocs := testing.AllocsPerRun(10, func() {
			if _, err := ReadFrame(bytes.NewReader(head), 16); !errors.Is(err, ErrFrameSize) {
				t.Errorf("%s: %v, want ErrFrameSize", name, err)
			}
		})
		if allocs > 8 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func TestFrameTruncatedAnywhereIsAnError(t *testing.T) {
	whole := AppendFrame(nil, fill(32, 1))
	for n := range whole {
		_, err := ReadFrame(bytes.NewReader(whole[:n]), 64)
		if want := io.ErrUnexpectedEOF; n > 0 && !errors.Is(err, want) || n == 0 && err != io.EOF {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	if body, err := ReadFrame(bytes.NewReader(append(whole, 9)), 64); err != nil || len(body) != 32 {
		t.Fatalf("whole frame: %d bytes, %v", len(body), err)
	}
}

func TestOfferRoundTripsAtEverySizeAndHidesItInSteps(t *testing.T) {
	for _, n := range []int{1, 499, 500, 501, 512, 2500, MaxItem} {
		frame := Offer{ID: 7, Item: fill(n, 1)}.Append(nil)
		if len(frame)%OfferPad != 0 || len(frame) > MaxOfferFrame {
			t.Errorf("item of %d bytes: frame of %d", n, len(frame))
		}
		got, err := ParseOffer(frame[4:])
		if err != nil || got.ID != 7 || !bytes.Equal(got.Item, fill(n, 1)) {
			t.Errorf("item of %d bytes: %v", n, err)
		}
	}
}

func TestOfferWithAnyOtherPaddingIsRefused(t *testing.T) {
	good := Offer{ID: 7, Item: fill(100, 1)}.Append(nil)[4:]
	bad := map[string][]byte{
		"no item":         Offer{ID: 1}.Append(nil)[4:],
		"short":           good[:len(good)-1],
		"a step too many": append(bytes.Clone(good), make([]byte, OfferPad)...),
		"padding not 0":   append(bytes.Clone(good[:len(good)-1]), 1),
		"item too long":   append([]byte{0, 0, 0, 1, 0, 2, 0, 0}, make([]byte, OfferPad-12)...),
	}
	for name, body := range bad {
		if _, err := ParseOffer(body); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFixedFormatsRefuseTruncationAndTrailingBytes(t *testing.T) {
	parse := map[string]struct {
		body []byte
		fn   func([]byte) error
	}{
		"answer":       {Answer{ID: 1}.Append(nil)[4:], func(b []byte) error { _, err := ParseAnswer(b); return err }},
		"reach":        {sampleReach().Marshal(), func(b []byte) error { _, err := ParseReach(b); return err }},
		"knock get":    {(&KnockGet{}).Append(nil)[4:], func(b []byte) error { _, err := ParseKnock(b); return err }},
		"knock put":    {(&KnockPut{Envelope: fill(20, 1)}).Append(nil)[4:], func(b []byte) error { _, err := ParseKnock(b); return err }},
		"knock answer": {KnockAnswer{Record: fill(9, 1), Acks: []Ack{{1}}}.Append(nil)[4:], func(b []byte) error { _, err := ParseKnockAnswer(b); return err }},
	}
	for name, p := range parse {
		if err := p.fn(p.body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for n := range p.body {
			if p.fn(p.body[:n]) == nil {
				t.Errorf("%s: accepted %d of %d bytes", name, n, len(p.body))
			}
		}
		if p.fn(append(bytes.Clone(p.body), 0)) == nil {
			t.Errorf("%s: accepted a trailing byte", name)
		}
	}
}

func TestReachLeavesOutAddressesThatDoNotFit(t *testing.T) {
	r := sampleReach()
	r.Inner, r.Front = nil, nil
	for i := range 12 {
		r.Inner = append(r.Inner, fill(100, byte(i)))
		r.Front = append(r.Front, fill(100, byte(100+i)))
	}
	r.Front = append(r.Front, fill(MaxAddr+1, 0))
	b := r.Marshal()
	got, err := ParseReach(b)
	if err != nil || len(b) > MaxReach {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if len(got.Front) != 1 || len(got.Inner) < 4 || !bytes.Equal(got.Inner[0], r.Inner[0]) {
		t.Errorf("kept %d inner and %d front addresses", len(got.Inner), len(got.Front))
	}
}

func TestContentRoundTrips(t *testing.T) {
	want := sampleContent()
	raw, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseContent(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestUnknownKindsAndFieldsSurviveARoundTrip(t *testing.T) {
	c := sampleContent()
	c.Kind = 4711
	raw, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	newer := protowire.AppendTag(bytes.Clone(raw), 900, protowire.BytesType)
	newer = protowire.AppendBytes(newer, []byte("a poll"))
	got, err := ParseContent(newer)
	if err != nil {
		t.Fatal(err)
	}
	if got.Kind.Known() || !bytes.Equal(got.Raw, newer) {
		t.Errorf("kind %d known %v, raw kept %v", got.Kind, got.Kind.Known(), bytes.Equal(got.Raw, newer))
	}
	again, err := got.Marshal()
	if err != nil || !bytes.Contains(again, []byte("a poll")) {
		t.Errorf("unknown field lost on writing again: %v", err)
	}
}

func TestContentThatBreaksTheFormatIsRefusedByName(t *testing.T) {
	for want, spoil := range map[string]func(*Content){
		"text of 65537 bytes":   func(c *Content) { c.Text = strings.Repeat("x", MaxText+1) },
		"text is not UTF-8":     func(c *Content) { c.Text = "a\xffb" },
		"no kind":               func(c *Content) { c.Kind = 0 },
		"previous hash":         func(c *Content) { c.Prev = [32]byte{} },
		"void from 9 to 3":      func(c *Content) { c.Voids = []Void{{From: 9, To: 3}} },
		"receipt hole":          func(c *Content) { c.Receipts[0].Holes = [][2]uint64{{5, 4}} },
		"name of 65 bytes":      func(c *Content) { c.Hello.Name = strings.Repeat("n", MaxName+1) },
		"emoji of 65 bytes":     func(c *Content) { c.Emoji = strings.Repeat("e", 65) },
		"file name of 256":      func(c *Content) { c.File.Name = strings.Repeat("f", 256) },
		"receipt with 257 hole": func(c *Content) { c.Receipts[0].Holes = make([][2]uint64, 257) },
	} {
		c := sampleContent()
		spoil(c)
		raw, err := c.Marshal()
		if err == nil {
			_, err = ParseContent(raw)
			if !errors.Is(err, ErrContent) {
				t.Errorf("%s: %v, want ErrContent", want, err)
				continue
			}
		}
		if !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if _, err := ParseContent(make([]byte, MaxContent+1)); !errors.Is(err, ErrContent) {
		t.Errorf("oversize: %v", err)
	}
}

func TestCodesAndErrorsPairBothWays(t *testing.T) {
	for c := CodeOK; c <= CodeNotFound; c++ {
		if got := CodeOf(c.Err()); got != c {
			t.Errorf("code %d comes back as %d", c, got)
		}
	}
	if !errors.Is(Code(200).Err(), ErrRefused) || CodeOf(io.EOF) != CodeLater {
		t.Error("unknown codes must refuse, unknown errors must be passing")
	}
}

func TestMessageIDReadsBack(t *testing.T) {
	id := MsgID(short(200))
	if got, err := ParseMsgID(id.String()); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "m12", "mzz", id.String() + "00"} {
		if _, err := ParseMsgID(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func FuzzParseOffer(f *testing.F) {
	f.Add(Offer{ID: 1, Item: fill(700, 1)}.Append(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := ParseOffer(b); err == nil && !bytes.Equal(o.Append(nil)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(Answer{ID: 1, Code: CodeLost}.Append(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAnswer(b); err == nil && !bytes.Equal(a.Append(nil)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseReach(f *testing.F) {
	f.Add(sampleReach().Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseReach(b); err == nil && !bytes.Equal(r.Marshal(), b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseKnock(f *testing.F) {
	f.Add((&KnockGet{Name: key(1)}).Append(nil)[4:])
	f.Add((&KnockPut{Name: key(1), Envelope: fill(50, 1)}).Append(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParseKnock(b); err == nil && !bytes.Equal(k.Append(nil)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseKnockAnswer(f *testing.F) {
	f.Add(KnockAnswer{Code: CodeOK, Record: fill(30, 1), Acks: []Ack{{1}, {2}}}.Append(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseKnockAnswer(b); err == nil && !bytes.Equal(a.Append(nil)[4:], b) {
			t.Error("not canonical")
		}
	})
}

func FuzzParseContent(f *testing.F) {
	raw, err := sampleContent().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseContent(b)
		if err != nil {
			return
		}
		if got := TextOf(b); got != c.Text {
			t.Errorf("text alone is %q, in all %q", got, c.Text)
		}
		again, err := c.Marshal()
		if err != nil {
			return // unknown fields may push a rewritten content over the limit
		}
		if _, err := ParseContent(again); err != nil {
			t.Errorf("own bytes refused: %v", err)
		}
	})
}

func FuzzParseTokenGrant(f *testing.F) {
	f.Add(TokenGrant{Seed: key(9), From: 3, Count: 256}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := ParseTokenGrant(b); err == nil && !bytes.Equal(g.Marshal(), b) {
			t.Errorf("%x reads as %+v", b, g)
		}
	})
}

func FuzzParseMsgID(f *testing.F) {
	for _, s := range []string{MsgID{1, 2}.String(), "m" + strings.Repeat("0", 32), strings.Repeat("F", 32), "mm" + strings.Repeat("0", 31), "m", "", "m\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseMsgID(s)
		if err != nil {
			if id != (MsgID{}) {
				t.Errorf("%q is refused with an id", s)
			}
			return
		}
		if again, err := ParseMsgID(id.String()); err != nil || again != id {
			t.Errorf("%q does not read back: %v", s, err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, fill(9, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := ReadFrame(bytes.NewReader(b), 1024)
		if err == nil && !bytes.HasPrefix(b, AppendFrame(nil, body)) {
			t.Error("frame differs from its bytes")
		}
	})
}

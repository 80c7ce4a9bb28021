package wire

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"sotto/wire/internal/pb"
)

//go:generate go tool -modfile=../tools/go.mod buf generate

// Kind says what a content is for. A reader shows a kind it does not know as "needs a newer version" and keeps its bytes.
type Kind uint32

// The kinds of the first version (PROTOCOL 9.2). Numbered kinds take a counter of the conversation, the others none.
const (
	KindText        Kind = 1 // numbered; with ReplyTo it is a reply
	KindEdit        Kind = 2 // numbered
	KindDelete      Kind = 3 // numbered
	KindReaction    Kind = 4 // numbered
	KindFile        Kind = 5 // numbered
	KindContactCard Kind = 6 // numbered
	KindControl     Kind = 7 // only riders: receipts, read marker, card, reach, voids
	KindHello       Kind = 8 // first content of a session that answers an invite
	KindGroup       Kind = 9 // group control
)

// Known reports whether this version understands the kind.
func (k Kind) Known() bool { return k >= KindText && k <= KindGroup }

// Limits of a content (PROTOCOL 9).
const (
	MaxText    = 64 << 10 // bytes of UTF-8
	MaxContent = 80 << 10
	MaxName    = 64 // bytes of a claimed name
	maxEmoji   = 64
	maxHoles   = 256
	MaxLost    = 256 // items that one receipt calls lost

	MaxContentAcks = 512 // acknowledgements in one content
)

// ErrContent is a content that breaks the format; it is refused for good.
var ErrContent = errors.New("malformed content")

// Content is what one message says. Raw holds the exact bytes it came as, so that what this version does not know survives.
type Content struct {
	ID          MsgID
	Device      [16]byte
	N           uint64   // this device's counter in the conversation, 0 for unnumbered kinds
	Prev        [32]byte // hash of content N-1, zero for N <= 1
	SentAt      int64    // milliseconds of Unix time, display only
	Clock       uint64   // hybrid logical clock
	Kind        Kind
	ReplyTo     MsgID
	ExpireAfter uint32 // seconds after being read
	NotBefore   int64  // milliseconds of Unix time
	Text        string
	Target      MsgID
	Emoji       string
	File        *File
	ContactCard []byte
	Hello       *Hello

	Receipts    []Receipt
	ReadUpTo    uint64
	Card        []byte
	Reach       []byte
	Group       []byte
	Voids       []Void
	RecordKeys  *RecordKeys
	TokenGrants []TokenGrant
	Acks        []Ack // of items that came by a mailbox

	Raw []byte
}

// File refers to an encrypted file that travels by itself.
type File struct {
	Hash [32]byte
	Key  [32]byte
	Name string
	Size uint64
	MIME string
}

// Hello introduces the one who answers an invite.
type Hello struct {
	Name       string
	Invite     [16]byte
	RecordKeys RecordKeys
}

// RecordKeys find and open a device's reach record: the record key A and the discovery secret S.
type RecordKeys struct {
	Key       [32]byte
	Discovery [32]byte
}

// Receipt says what its sender holds of a device's numbered contents: all up to UpTo but the holes.
type Receipt struct {
	Device [16]byte
	UpTo   uint64
	Holes  [][2]uint64
	Lost   [][16]byte // items that could not be opened: first half of their SHA-256
}

// Void names positions of a sending chain that will never come.
type Void struct {
	Session  [16]byte
	Chain    uint32
	From, To uint32
}

// AcksOnly reports whether a content is for nothing but to acknowledge: it is not acknowledged itself (PROTOCOL 9.7).
func (c *Content) AcksOnly() bool {
	return c.Kind == KindControl && c.ReadUpTo == 0 && len(c.Receipts) == 0 && len(c.Card)+len(c.Reach)+len(c.Group)+len(c.Voids)+len(c.TokenGrants) == 0 && c.RecordKeys == nil
}

// Hash is what the next content's Prev names.
func (c *Content) Hash() [32]byte { return sha256.Sum256(c.Raw) }

// Marshal fills Raw with the content's bytes, keeping whatever unknown fields an earlier Raw held, and returns it.
func (c *Content) Marshal() ([]byte, error) {
	m := &pb.Content{}
	if len(c.Raw) > 0 {
		old := &pb.Content{}
		if err := proto.Unmarshal(c.Raw, old); err == nil {
			m.ProtoReflect().SetUnknown(old.ProtoReflect().GetUnknown())
		}
	}
	c.fill(m)
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode content: %w", err)
	}
	if len(raw) > MaxContent {
		return nil, fmt.Errorf("content of %d bytes, at most %d: %w", len(raw), MaxContent, ErrTooLarge)
	}
	c.Raw = raw
	return raw, nil
}

func (c *Content) fill(m *pb.Content) {
	m.MsgId, m.Device, m.N = c.ID[:], c.Device[:], c.N
	m.Prev, m.ReplyTo, m.Target = unlessZero(c.Prev[:]), unlessZero(c.ReplyTo[:]), unlessZero(c.Target[:])
	m.SentAt, m.Clock, m.Kind = c.SentAt, c.Clock, uint32(c.Kind)
	m.ExpireAfter, m.NotBefore = c.ExpireAfter, c.NotBefore
	m.Text, m.Emoji, m.ContactCard = c.Text, c.Emoji, c.ContactCard
	m.ReadUpto, m.Card, m.Reach, m.Group = c.ReadUpTo, c.Card, c.Reach, c.Group
	if f := c.File; f != nil {
		m.File = &pb.File{Hash: f.Hash[:], Key: f.Key[:], Name: f.Name, Size: f.Size, Mime: f.MIME}
	}
	if h := c.Hello; h != nil {
		m.Hello = &pb.Hello{Name: h.Name, Invite: unlessZero(h.Invite[:]), RecordKeys: h.RecordKeys.proto()}
	}
	if c.RecordKeys != nil {
		m.RecordKeys = c.RecordKeys.proto()
	}
	for _, r := range c.Receipts {
		out := &pb.Receipt{Device: r.Device[:], Upto: r.UpTo}
		for _, h := range r.Holes {
			out.Holes = append(out.Holes, &pb.Range{From: h[0], To: h[1]})
		}
		for _, l := range r.Lost {
			out.Lost = append(out.Lost, l[:])
		}
		m.Receipts = append(m.Receipts, out)
	}
	for _, v := range c.Voids {
		m.Voids = append(m.Voids, &pb.Void{Session: v.Session[:], Chain: v.Chain, From: v.From, To: v.To})
	}
	for _, g := range c.TokenGrants {
		m.TokenGrants = append(m.TokenGrants, g.Marshal())
	}
	for _, a := range c.Acks {
		m.Acks = append(m.Acks, a[:])
	}
}

func (k RecordKeys) proto() *pb.RecordKeys {
	return &pb.RecordKeys{Key: k.Key[:], Discovery: k.Discovery[:]}
}

func unlessZero(b []byte) []byte {
	if allZero(b) {
		return nil
	}
	return b
}

// ParseContent reads a content that a session opened. Unknown kinds and fields pass; wrong lengths and sizes do not.
func ParseContent(raw []byte) (*Content, error) {
	if len(raw) > MaxContent {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrContent, len(raw), MaxContent)
	}
	m := &pb.Content{}
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("%w: not decodable", ErrContent)
	}
	p := &parser{}
	c := p.content(m)
	if p.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, p.err)
	}
	c.Raw = append([]byte(nil), raw...)
	return c, nil
}

// parser copies protobuf fields into plain ones and keeps the first complaint.
type parser struct{ err error }

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// fixed copies a field of exactly len(dst) bytes; an absent one is allowed only when optional.
func (p *parser) fixed(dst, src []byte, name string, optional bool) {
	if len(src) == 0 && optional {
		return
	}
	if len(src) != len(dst) {
		p.fail("%s of %d bytes, want %d", name, len(src), len(dst))
		return
	}
	copy(dst, src)
}

func (p *parser) text(s, name string, max int) string {
	if len(s) > max {
		p.fail("%s of %d bytes, at most %d", name, len(s), max)
	}
	if !utf8.ValidString(s) {
		p.fail("%s is not UTF-8", name)
	}
	return s
}

func (p *parser) content(m *pb.Content) *Content {
	c := &Content{
		N: m.N, SentAt: m.SentAt, Clock: m.Clock, Kind: Kind(m.Kind), ExpireAfter: m.ExpireAfter, NotBefore: m.NotBefore,
		Text: p.text(m.Text, "text", MaxText), Emoji: p.text(m.Emoji, "emoji", maxEmoji), ContactCard: m.ContactCard,
		ReadUpTo: m.ReadUpto, Card: m.Card, Reach: m.Reach, Group: m.Group,
	}
	p.fixed(c.ID[:], m.MsgId, "message id", false)
	p.fixed(c.Device[:], m.Device, "device", false)
	p.fixed(c.Prev[:], m.Prev, "previous hash", c.N <= 1)
	p.fixed(c.ReplyTo[:], m.ReplyTo, "reply id", true)
	p.fixed(c.Target[:], m.Target, "target id", true)
	if c.Kind == 0 {
		p.fail("no kind")
	}
	if m.File != nil {
		c.File = p.file(m.File)
	}
	if m.Hello != nil {
		c.Hello = p.hello(m.Hello)
	}
	if m.RecordKeys != nil {
		keys := p.recordKeys(m.RecordKeys)
		c.RecordKeys = &keys
	}
	for _, r := range m.Receipts {
		c.Receipts = append(c.Receipts, p.receipt(r))
	}
	for _, v := range m.Voids {
		out := Void{Chain: v.Chain, From: v.From, To: v.To}
		p.fixed(out.Session[:], v.Session, "void session", false)
		if v.To < v.From {
			p.fail("void from %d to %d", v.From, v.To)
		}
		c.Voids = append(c.Voids, out)
	}
	for _, g := range m.TokenGrants {
		if grant, err := ParseTokenGrant(g); err == nil { // another version's grant is none
			c.TokenGrants = append(c.TokenGrants, grant)
		}
	}
	if len(m.Acks) > MaxContentAcks {
		p.fail("%d acknowledgements", len(m.Acks))
		return c
	}
	for _, a := range m.Acks {
		var ack Ack
		p.fixed(ack[:], a, "acknowledgement", false)
		c.Acks = append(c.Acks, ack)
	}
	return c
}

func (p *parser) file(m *pb.File) *File {
	f := &File{Name: p.text(m.Name, "file name", 255), Size: m.Size, MIME: p.text(m.Mime, "file type", 127)}
	p.fixed(f.Hash[:], m.Hash, "file hash", false)
	p.fixed(f.Key[:], m.Key, "file key", false)
	return f
}

func (p *parser) hello(m *pb.Hello) *Hello {
	h := &Hello{Name: p.text(m.Name, "name", MaxName)}
	p.fixed(h.Invite[:], m.Invite, "invite id", true)
	if m.RecordKeys == nil {
		p.fail("hello without record keys")
		return h
	}
	h.RecordKeys = p.recordKeys(m.RecordKeys)
	return h
}

func (p *parser) recordKeys(m *pb.RecordKeys) RecordKeys {
	var k RecordKeys
	p.fixed(k.Key[:], m.Key, "record key", false)
	p.fixed(k.Discovery[:], m.Discovery, "discovery secret", false)
	return k
}

func (p *parser) receipt(m *pb.Receipt) Receipt {
	r := Receipt{UpTo: m.Upto}
	p.fixed(r.Device[:], m.Device, "receipt device", false)
	if len(m.Holes) > maxHoles || len(m.Lost) > MaxLost {
		p.fail("receipt with %d holes and %d lost items", len(m.Holes), len(m.Lost))
		return r
	}
	for _, h := range m.Holes {
		if h.To < h.From || h.To > m.Upto {
			p.fail("receipt hole from %d to %d", h.From, h.To)
		}
		r.Holes = append(r.Holes, [2]uint64{h.From, h.To})
	}
	for _, l := range m.Lost {
		var id [16]byte
		p.fixed(id[:], l, "lost item", false)
		r.Lost = append(r.Lost, id)
	}
	return r
}

// contentText is the number of the text's field in the schema.
const contentText = 16

// TextOf reads only the text out of a content that ParseContent took before.
func TextOf(raw []byte) string {
	text := ""
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return text
		}
		raw = raw[n:]
		if num == contentText && typ == protowire.BytesType {
			b, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return text
			}
			text, raw = string(b), raw[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
			return text
		}
		raw = raw[n:]
	}
	return text
}

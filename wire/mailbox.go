package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf8"

	"sotto/internal/canon"
)

// Limits of the mailbox protocol (PROTOCOL 17).
const (
	MaxMailboxRequest = 131_200   // body of a request's frame
	MaxMailboxAnswer  = 1_048_576 // body of an answer's frame
	MaxVoucher        = 64
	MaxTermsNote      = 256
	MaxTerms          = 2048 // of a mailbox, extensions included
	MaxKeepDays       = 30
	MaxPool           = 16_384 // unspent tokens of a box
	MaxPoolBatch      = 2048   // added, and as many dropped, by one POOL
	MaxAckBatch       = 1024
	MaxPage           = 512
	MaxPageBytes      = 768 << 10 // envelopes in a page, unless it holds but one
	MaxWaitSeconds    = 900
	MaxRepublish      = 128 // records of a box; a request holds what its frame does
	MaxStrangers      = 64  // strangers' envelopes that wait in a box
	StrangerEnvelope  = 8192
	MinStrangerBits   = 22
	maxMailboxTime    = 253_402_300_799 // seconds, the end of year 9999 (PROTOCOL 1); later ones are refused
)

// What the signatures of a mailbox are about (PROTOCOL 2.4).
const (
	SigTerms     = "mailbox terms"     // by the service key
	SigOwner     = "mailbox owner"     // by a box's key, over OwnerFields
	SigSuccessor = "mailbox successor" // by a box's old key, over SuccessorFields
	SigCustody   = "custody"           // by the service key
	SigProof     = "mailbox proof"     // by the service key
)

// BoxID names a box at one mailbox.
type BoxID = [32]byte

// NewBoxID is the id of the box with key bk at the mailbox with that service key (PROTOCOL 17.3).
func NewBoxID(service, bk [32]byte) BoxID {
	return sha256.Sum256(append(append([]byte("sotto/v1 box"), service[:]...), bk[:]...))
}

// BoxToken is token i of the contact with that seed, for one box; other boxes' tokens tell nothing of it (PROTOCOL 17.4).
func BoxToken(seed [32]byte, i uint32, box BoxID) (token [16]byte) {
	mac := hmac.New(sha256.New, seed[:])
	mac.Write(binary.BigEndian.AppendUint32(nil, i))
	mac.Write(box[:])
	copy(token[:], mac.Sum(nil))
	return token
}

// PoolHash is what a mailbox knows of a token before it is spent (PROTOCOL 17.4).
func PoolHash(token [16]byte) (hash [16]byte) {
	sum := sha256.Sum256(append([]byte("sotto/v1 pool"), token[:]...))
	copy(hash[:], sum[:])
	return hash
}

// OwnerFields is what a box's key signs to prove on a connection that it is there (PROTOCOL 17.3).
func OwnerFields(service, front [32]byte) []byte {
	return append(append(make([]byte, 0, 64), service[:]...), front[:]...)
}

// SuccessorFields is what a box's old key signs for the new one (PROTOCOL 17.3).
func SuccessorFields(service, newKey [32]byte) []byte { return OwnerFields(service, newKey) }

// RegisterFits judges the work for a new box (PROTOCOL 17.3).
func RegisterFits(service, bk [32]byte, hour uint32, nonce uint64, zeros uint8) bool {
	in := append(append([]byte("sotto/v1 register"), service[:]...), bk[:]...)
	in = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(in, hour), nonce)
	return zeroBits(sha256.Sum256(in), zeros)
}

// StrangerFits judges the work for a stranger's envelope of that hash (PROTOCOL 17.4).
func StrangerFits(service [32]byte, box BoxID, hour uint32, hash [32]byte, nonce uint64, zeros uint8) bool {
	in := append(append([]byte("sotto/v1 stranger"), service[:]...), box[:]...)
	in = append(binary.BigEndian.AppendUint32(in, hour), hash[:]...)
	return zeroBits(sha256.Sum256(binary.BigEndian.AppendUint64(in, nonce)), zeros)
}

func zeroBits(sum [32]byte, zeros uint8) bool {
	return bits.LeadingZeros64(binary.BigEndian.Uint64(sum[:8])) >= min(int(zeros), 64)
}

// ProofAnswer is what only someone who holds the envelope can say to the nonce (PROTOCOL 17.6).
func ProofAnswer(nonce [32]byte, envelope []byte) (answer [32]byte) {
	h := sha256.New()
	h.Write([]byte("sotto/v1 prove"))
	h.Write(nonce[:])
	h.Write(envelope)
	h.Sum(answer[:0])
	return answer
}

// HeldUntil is the end of the day keepDays after a deposit (PROTOCOL 17.4).
func HeldUntil(arrived int64, keepDays uint16) int64 {
	const day = 86_400
	return (arrived/day + int64(keepDays) + 1) * day
}

// EnvelopeSize reports whether n is one of the three lengths that an envelope may have (PROTOCOL 10.2).
func EnvelopeSize(n int) bool { return n == 8192 || n == 32_768 || n == MaxEnvelope }

// Op says what a request to a mailbox asks for.
type Op uint8

// The ops (PROTOCOL 17.1). 2 to 10 and 19 are the owner's.
const (
	OpTerms     Op = 1
	OpAuth      Op = 2
	OpRegister  Op = 3
	OpStanding  Op = 4
	OpPool      Op = 5
	OpFetch     Op = 6
	OpWait      Op = 7
	OpAck       Op = 8
	OpRepublish Op = 9
	OpClose     Op = 10
	OpDeposit   Op = 16
	OpStranger  Op = 17
	OpProve     Op = 18
	OpStrangers Op = 19
)

var opNames = map[Op]string{
	OpTerms: "terms", OpAuth: "auth", OpRegister: "register", OpStanding: "standing", OpPool: "pool", OpFetch: "fetch", OpWait: "wait",
	OpAck: "ack", OpRepublish: "republish", OpClose: "close", OpDeposit: "deposit", OpStranger: "stranger", OpProve: "prove", OpStrangers: "strangers",
}

// String names the op in traces and errors.
func (o Op) String() string {
	if name := opNames[o]; name != "" {
		return name
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// ForOwner reports whether the op needs AUTH before it on its stream.
func (o Op) ForOwner() bool { return o >= OpRegister && o <= OpClose || o == OpStrangers }

// MailboxRequest is one request: a pointer to one of the types below, whose fields are those of its op.
type MailboxRequest interface {
	Op() Op
	write(w *canon.Writer)
	read(r *canon.Reader)
}

// AppendMailboxRequest appends the request's whole frame.
func AppendMailboxRequest(dst []byte, q MailboxRequest) []byte {
	var w canon.Writer
	q.write(w.U8(uint8(q.Op())))
	return AppendFrame(dst, w.Bytes())
}

// ParseMailboxRequest reads a request from a frame's body, which its slices alias. An op of a later version is no error:
// it comes as *UnknownRequest.
func ParseMailboxRequest(body []byte) (MailboxRequest, error) {
	r := canon.NewReader(body)
	op := Op(r.U8())
	q := newRequest(op)
	q.read(r)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%v request: %w", op, err)
	}
	return q, nil
}

func newRequest(op Op) MailboxRequest {
	switch op {
	case OpTerms:
		return &TermsRequest{}
	case OpAuth:
		return &Auth{}
	case OpRegister:
		return &Admission{}
	case OpStanding:
		return &StandingRequest{}
	case OpPool:
		return &PoolChange{}
	case OpFetch:
		return &Fetch{}
	case OpWait:
		return &Wait{}
	case OpAck:
		return &AckMail{}
	case OpRepublish:
		return &RepublishList{}
	case OpClose:
		return &CloseBox{}
	case OpDeposit:
		return &Deposit{}
	case OpStranger:
		return &StrangerDeposit{}
	case OpProve:
		return &Prove{}
	case OpStrangers:
		return &Strangers{}
	}
	return &UnknownRequest{Code: op}
}

// TermsRequest asks for the mailbox's Terms.
type TermsRequest struct{}

// Op is OpTerms.
func (*TermsRequest) Op() Op              { return OpTerms }
func (*TermsRequest) write(*canon.Writer) {}
func (*TermsRequest) read(*canon.Reader)  {}

// Auth names the stream's box and proves that its owner opened the connection; the answer is the BoxID.
type Auth struct {
	Key       [32]byte
	Signature [64]byte // SigOwner over OwnerFields
}

// Op is OpAuth.
func (*Auth) Op() Op                  { return OpAuth }
func (q *Auth) write(w *canon.Writer) { w.Raw(q.Key[:]).Raw(q.Signature[:]) }
func (q *Auth) read(r *canon.Reader)  { r.Copy(q.Key[:]); r.Copy(q.Signature[:]) }

// Admission is a REGISTER: by voucher, by work, by an old box's key, or by being on a list; the answer is the Standing.
type Admission struct {
	Voucher      []byte
	Hour         uint32 // Unix time / 3600
	Nonce        uint64 // RegisterFits
	OldKey       [32]byte
	OldSignature [64]byte // SigSuccessor over SuccessorFields
}

// Op is OpRegister.
func (*Admission) Op() Op { return OpRegister }
func (q *Admission) write(w *canon.Writer) {
	w.LP(q.Voucher).U32(q.Hour).U64(q.Nonce).Raw(q.OldKey[:]).Raw(q.OldSignature[:])
}
func (q *Admission) read(r *canon.Reader) {
	q.Voucher, q.Hour, q.Nonce = r.LP(MaxVoucher), r.U32(), r.U64()
	r.Copy(q.OldKey[:])
	r.Copy(q.OldSignature[:])
}

// Succeeds reports whether an old key is named.
func (q *Admission) Succeeds() bool { return !allZero(q.OldKey[:]) || !allZero(q.OldSignature[:]) }

// StandingRequest asks for the box's Standing.
type StandingRequest struct{}

// Op is OpStanding.
func (*StandingRequest) Op() Op              { return OpStanding }
func (*StandingRequest) write(*canon.Writer) {}
func (*StandingRequest) read(*canon.Reader)  {}

// PoolChange adds and drops hashes of tokens that may be spent; the answer is how many are unspent then.
type PoolChange struct{ Add, Drop [][16]byte }

// Op is OpPool.
func (*PoolChange) Op() Op { return OpPool }
func (q *PoolChange) write(w *canon.Writer) {
	for _, list := range [][][16]byte{q.Add, q.Drop} {
		w.U16(uint16(len(list)))
		for _, h := range list {
			w.Raw(h[:])
		}
	}
}
func (q *PoolChange) read(r *canon.Reader) {
	for _, list := range []*[][16]byte{&q.Add, &q.Drop} {
		n := count(r, int(r.U16()), MaxPoolBatch, 16)
		for range n {
			var h [16]byte
			r.Copy(h[:])
			*list = append(*list, h)
		}
	}
}

// count judges the length of a list before it is read: over its cap, or more than the bytes left could hold, it is 0 and the reader fails.
func count(r *canon.Reader, n, most, size int) int {
	switch {
	case r.Err() != nil:
		return 0
	case n > most:
		r.Fail(canon.ErrTooLong)
		return 0
	case n*size > r.Len():
		r.Fail(canon.ErrShort)
		return 0
	}
	return n
}

// Fetch asks for a Page of the mail above After.
type Fetch struct {
	After uint64
	Max   uint16 // 0 and above MaxPage: MaxPage
}

// Op is OpFetch.
func (*Fetch) Op() Op                  { return OpFetch }
func (q *Fetch) write(w *canon.Writer) { w.U64(q.After).U16(q.Max) }
func (q *Fetch) read(r *canon.Reader)  { q.After, q.Max = r.U64(), r.U16() }

// Wait asks for a Page as soon as there is mail above After, or an empty one when the time is over.
type Wait struct {
	After   uint64
	Max     uint16
	Seconds uint16 // at most MaxWaitSeconds
}

// Op is OpWait.
func (*Wait) Op() Op                  { return OpWait }
func (q *Wait) write(w *canon.Writer) { w.U64(q.After).U16(q.Max).U16(q.Seconds) }
func (q *Wait) read(r *canon.Reader)  { q.After, q.Max, q.Seconds = r.U64(), r.U16(), r.U16() }

// AckMail lets mail go for good; the answer is how many of the ids were there.
type AckMail struct{ IDs []uint64 }

// Op is OpAck.
func (*AckMail) Op() Op { return OpAck }
func (q *AckMail) write(w *canon.Writer) {
	w.U16(uint16(len(q.IDs)))
	for _, id := range q.IDs {
		w.U64(id)
	}
}
func (q *AckMail) read(r *canon.Reader) {
	n := count(r, int(r.U16()), MaxAckBatch, 8)
	for range n {
		q.IDs = append(q.IDs, r.U64())
	}
}

// Republish is a DHT record that the mailbox is to put for the owner.
type Republish struct {
	Name      [32]byte
	NotBefore int64  // Unix seconds, 0 now
	Record    []byte // empty: forget the name
}

// RepublishList hands over records; the answer is how many of them are kept.
type RepublishList struct{ List []Republish }

// Op is OpRepublish.
func (*RepublishList) Op() Op { return OpRepublish }
func (q *RepublishList) write(w *canon.Writer) {
	w.U8(uint8(len(q.List)))
	for _, p := range q.List {
		w.Raw(p.Name[:]).U64(uint64(p.NotBefore)).LP(p.Record)
	}
}
func (q *RepublishList) read(r *canon.Reader) {
	n := count(r, int(r.U8()), MaxRepublish, 32+8+4)
	for range n {
		var p Republish
		r.Copy(p.Name[:])
		p.NotBefore, p.Record = seconds(r), r.LP(MaxRecord)
		q.List = append(q.List, p)
	}
}

// seconds takes a time that some clock could show.
func seconds(r *canon.Reader) int64 {
	v := r.U64()
	if v > maxMailboxTime {
		r.Fail(fmt.Errorf("time %d is out of bounds", v))
		return 0
	}
	return int64(v)
}

// CloseBox removes the box and all in it.
type CloseBox struct{}

// Op is OpClose.
func (*CloseBox) Op() Op              { return OpClose }
func (*CloseBox) write(*canon.Writer) {}
func (*CloseBox) read(*canon.Reader)  {}

// Deposit spends a token on an envelope; the answer is the Custody.
type Deposit struct {
	Box       BoxID
	Token     [16]byte
	NotBefore int64 // Unix seconds, 0 none: when the owner may have it
	Envelope  []byte
}

// Op is OpDeposit.
func (*Deposit) Op() Op { return OpDeposit }
func (q *Deposit) write(w *canon.Writer) {
	w.Raw(q.Box[:]).Raw(q.Token[:]).U64(uint64(q.NotBefore)).LP(q.Envelope)
}
func (q *Deposit) read(r *canon.Reader) {
	r.Copy(q.Box[:])
	r.Copy(q.Token[:])
	q.NotBefore, q.Envelope = seconds(r), r.LP(MaxEnvelope)
}

// StrangerDeposit leaves an envelope without a token, for work; the answer is the Custody.
type StrangerDeposit struct {
	Box      BoxID
	Hour     uint32
	Nonce    uint64 // StrangerFits
	Envelope []byte
}

// Op is OpStranger.
func (*StrangerDeposit) Op() Op { return OpStranger }
func (q *StrangerDeposit) write(w *canon.Writer) {
	w.Raw(q.Box[:]).U32(q.Hour).U64(q.Nonce).LP(q.Envelope)
}
func (q *StrangerDeposit) read(r *canon.Reader) {
	r.Copy(q.Box[:])
	q.Hour, q.Nonce, q.Envelope = r.U32(), r.U64(), r.LP(MaxEnvelope)
}

// Prove asks whether an envelope is still there; the answer is the Proof.
type Prove struct {
	Box   BoxID
	Hash  [32]byte // SHA-256 of the envelope
	Nonce [32]byte
}

// Op is OpProve.
func (*Prove) Op() Op                  { return OpProve }
func (q *Prove) write(w *canon.Writer) { w.Raw(q.Box[:]).Raw(q.Hash[:]).Raw(q.Nonce[:]) }
func (q *Prove) read(r *canon.Reader)  { r.Copy(q.Box[:]); r.Copy(q.Hash[:]); r.Copy(q.Nonce[:]) }

// Strangers opens or shuts the box to strangers; the answer is the zero bits that their work must have.
type Strangers struct{ Open bool }

// Op is OpStrangers.
func (*Strangers) Op() Op                  { return OpStrangers }
func (q *Strangers) write(w *canon.Writer) { w.U8(bit(q.Open)) }
func (q *Strangers) read(r *canon.Reader)  { q.Open = bool1(r) }

func bit(v bool) uint8 {
	if v {
		return 1
	}
	return 0
}

// bool1 takes a byte that is 0 or 1.
func bool1(r *canon.Reader) bool {
	v := r.U8()
	if v > 1 {
		r.Fail(fmt.Errorf("flag is %d", v))
	}
	return v == 1
}

// UnknownRequest is of an op that this version does not know: it is refused, and the stream goes on.
type UnknownRequest struct {
	Code   Op
	Fields []byte
}

// Op is the unknown op.
func (q *UnknownRequest) Op() Op                { return q.Code }
func (q *UnknownRequest) write(w *canon.Writer) { w.Raw(q.Fields) }
func (q *UnknownRequest) read(r *canon.Reader)  { q.Fields = r.Raw(r.Len()) }

// MailboxAnswer answers the oldest request of a stream that has none yet.
type MailboxAnswer struct {
	Code       Code
	RetryAfter uint16 // seconds, with CodeLater and CodeOverloaded
	Result     []byte // empty unless Code is CodeOK
}

// Append appends the answer's whole frame.
func (a MailboxAnswer) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(3+len(a.Result)))
	dst = append(dst, byte(a.Code))
	dst = binary.BigEndian.AppendUint16(dst, a.RetryAfter)
	return append(dst, a.Result...)
}

// ParseMailboxAnswer reads an answer from a frame's body, which Result aliases.
func ParseMailboxAnswer(body []byte) (MailboxAnswer, error) {
	if len(body) > MaxMailboxAnswer {
		return MailboxAnswer{}, fmt.Errorf("mailbox answer: %w: %d bytes", canon.ErrTooLong, len(body))
	}
	r := canon.NewReader(body)
	a := MailboxAnswer{Code: Code(r.U8()), RetryAfter: r.U16()}
	a.Result = r.Raw(r.Len())
	if a.Code != CodeOK && len(a.Result) > 0 {
		r.Fail(fmt.Errorf("%v with a result of %d bytes", a.Code, len(a.Result)))
	}
	if err := r.Close(); err != nil {
		return MailboxAnswer{}, fmt.Errorf("mailbox answer: %w", err)
	}
	return a, nil
}

// Mode says whom a mailbox gives boxes to.
type Mode uint8

// The modes; every other value means ModeClosed.
const (
	ModeOpen      Mode = 0 // whoever does the work
	ModeInvite    Mode = 1 // whoever has a voucher
	ModeAllowlist Mode = 2 // whoever the operator named
	ModeClosed    Mode = 3 // nobody new
)

// Meaning is the mode that a reader acts on.
func (m Mode) Meaning() Mode { return min(m, ModeClosed) }

// String names the mode as config and status do.
func (m Mode) String() string {
	return [...]string{"open", "invite", "allowlist", "closed"}[m.Meaning()]
}

// Flags in Terms; others are passed over.
const (
	FlagRelay       = 1 // the service host relays, too
	FlagRepublishes = 2 // REPUBLISH is served
)

const mailboxVersion = 1

// Terms is what a mailbox promises, signed by its service key (PROTOCOL 17.2).
type Terms struct {
	Service      [32]byte
	Issued       int64 // Unix seconds
	Mode         Mode
	MaxBytes     uint64 // of a box that stood the test
	MaxCount     uint32
	StartBytes   uint64 // of a fresh one in mode open
	StartCount   uint32
	KeepDays     uint16 // 1 to MaxKeepDays
	RegisterBits uint8
	StrangerBits uint8
	Flags        uint8
	DrainUntil   int64  // Unix seconds; 0: not draining
	Note         string // for people, at most MaxTermsNote bytes of UTF-8
	Exts         []canon.Extension
	Signature    [64]byte
}

// Fields is what the service key signs as SigTerms.
func (t Terms) Fields() []byte {
	var w canon.Writer
	w.U8(mailboxVersion).Raw(t.Service[:]).U64(uint64(t.Issued)).U8(uint8(t.Mode)).U64(t.MaxBytes).U32(t.MaxCount).U64(t.StartBytes).U32(t.StartCount)
	w.U16(t.KeepDays).U8(t.RegisterBits).U8(t.StrangerBits).U8(t.Flags).U64(uint64(t.DrainUntil)).LP([]byte(t.Note))
	return w.Extensions(t.Exts).Bytes()
}

// Marshal is the canonical encoding, signature included.
func (t Terms) Marshal() []byte { return append(t.Fields(), t.Signature[:]...) }

// ParseTerms reads what Marshal wrote; the signature is not judged here.
func ParseTerms(b []byte) (Terms, error) {
	r, err := signedReader(b, MaxTerms)
	if err != nil {
		return Terms{}, fmt.Errorf("terms: %w", err)
	}
	var t Terms
	r.Copy(t.Service[:])
	t.Issued, t.Mode = seconds(r), Mode(r.U8())
	t.MaxBytes, t.MaxCount, t.StartBytes, t.StartCount = r.U64(), r.U32(), r.U64(), r.U32()
	t.KeepDays, t.RegisterBits, t.StrangerBits, t.Flags = r.U16(), r.U8(), r.U8(), r.U8()
	t.DrainUntil, t.Note = seconds(r), string(r.LP(MaxTermsNote))
	t.Exts = r.Extensions()
	r.Copy(t.Signature[:])
	switch {
	case r.Err() != nil:
	case t.KeepDays < 1 || t.KeepDays > MaxKeepDays:
		r.Fail(fmt.Errorf("keeps for %d days", t.KeepDays))
	case !utf8.ValidString(t.Note):
		r.Fail(fmt.Errorf("note is not UTF-8"))
	}
	if err := r.Close(); err != nil {
		return Terms{}, fmt.Errorf("terms: %w", err)
	}
	return t, nil
}

// signedReader judges length and version of an object.
func signedReader(b []byte, most int) (*canon.Reader, error) {
	if len(b) > most {
		return nil, fmt.Errorf("%w: %d bytes", canon.ErrTooLong, len(b))
	}
	r := canon.NewReader(b)
	if v := r.U8(); r.Err() == nil && v != mailboxVersion {
		return nil, fmt.Errorf("needs a newer version: %d", v)
	}
	return r, nil
}

// Standing is what a box may hold, holds, and how long it lives (PROTOCOL 17.3).
type Standing struct {
	Bytes     uint64
	Count     uint32
	UsedBytes uint64
	UsedCount uint32
	Unspent   uint32 // tokens
	KeepDays  uint16
	Expires   int64 // Unix seconds: when it goes if nobody fetches
}

// Marshal is the canonical encoding.
func (s Standing) Marshal() []byte {
	var w canon.Writer
	return w.U64(s.Bytes).U32(s.Count).U64(s.UsedBytes).U32(s.UsedCount).U32(s.Unspent).U16(s.KeepDays).U64(uint64(s.Expires)).Bytes()
}

// ParseStanding reads what Marshal wrote.
func ParseStanding(b []byte) (Standing, error) {
	r := canon.NewReader(b)
	s := Standing{Bytes: r.U64(), Count: r.U32(), UsedBytes: r.U64(), UsedCount: r.U32(), Unspent: r.U32(), KeepDays: r.U16(), Expires: seconds(r)}
	if err := r.Close(); err != nil {
		return Standing{}, fmt.Errorf("standing: %w", err)
	}
	return s, nil
}

// Custody is a receipt: a mailbox's word that it keeps an envelope, signed by its service key (PROTOCOL 17.4).
type Custody struct {
	Box       BoxID
	Hash      [32]byte // SHA-256 of the envelope
	Arrived   int64    // Unix seconds, a whole hour
	HeldUntil int64    // Unix seconds, a whole day
	Exts      []canon.Extension
	Signature [64]byte
}

const maxCustody = 2048

// Fields is what the service key signs as SigCustody.
func (p Custody) Fields() []byte {
	var w canon.Writer
	return w.U8(mailboxVersion).Raw(p.Box[:]).Raw(p.Hash[:]).U64(uint64(p.Arrived)).U64(uint64(p.HeldUntil)).Extensions(p.Exts).Bytes()
}

// Marshal is the canonical encoding, signature included.
func (p Custody) Marshal() []byte { return append(p.Fields(), p.Signature[:]...) }

// ParseCustody reads what Marshal wrote; the signature is not judged here.
func ParseCustody(b []byte) (Custody, error) {
	r, err := signedReader(b, maxCustody)
	if err != nil {
		return Custody{}, fmt.Errorf("custody receipt: %w", err)
	}
	var p Custody
	r.Copy(p.Box[:])
	r.Copy(p.Hash[:])
	p.Arrived, p.HeldUntil, p.Exts = seconds(r), seconds(r), r.Extensions()
	r.Copy(p.Signature[:])
	if r.Err() == nil && (p.Arrived%3600 != 0 || p.HeldUntil%86_400 != 0 || p.HeldUntil <= p.Arrived || p.HeldUntil > HeldUntil(p.Arrived, MaxKeepDays)) {
		r.Fail(fmt.Errorf("held from %d until %d", p.Arrived, p.HeldUntil))
	}
	if err := r.Close(); err != nil {
		return Custody{}, fmt.Errorf("custody receipt: %w", err)
	}
	return p, nil
}

// Mail is one envelope of a Page.
type Mail struct {
	ID       uint64   // rises within the box
	Spent    [16]byte // PoolHash of the token that paid, zeros for a stranger's
	Arrived  int64    // Unix seconds
	Envelope []byte
}

// Page is some of a box's mail, ids rising (PROTOCOL 17.5).
type Page struct {
	More bool
	Mail []Mail
}

const mailHead = 8 + 16 + 8 + 4

// Marshal is the canonical encoding.
func (p Page) Marshal() []byte {
	size := 3
	for _, m := range p.Mail {
		size += mailHead + len(m.Envelope)
	}
	b := append(make([]byte, 0, size), bit(p.More))
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Mail)))
	for _, m := range p.Mail {
		b = binary.BigEndian.AppendUint64(b, m.ID)
		b = append(b, m.Spent[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(m.Arrived))
		b = canon.AppendLP(b, m.Envelope)
	}
	return b
}

// ParsePage reads what Marshal wrote; the envelopes alias it.
func ParsePage(b []byte) (Page, error) {
	r := canon.NewReader(b)
	p := Page{More: bool1(r)}
	n := count(r, int(r.U16()), MaxPage, mailHead)
	for i := range n {
		m := Mail{ID: r.U64()}
		r.Copy(m.Spent[:])
		m.Arrived, m.Envelope = seconds(r), r.LP(MaxEnvelope)
		switch {
		case r.Err() != nil:
		case i > 0 && m.ID <= p.Mail[i-1].ID:
			r.Fail(fmt.Errorf("id %d after %d", m.ID, p.Mail[i-1].ID))
		case !EnvelopeSize(len(m.Envelope)):
			r.Fail(fmt.Errorf("envelope of %d bytes", len(m.Envelope)))
		}
		if r.Err() != nil {
			break
		}
		p.Mail = append(p.Mail, m)
	}
	if err := r.Close(); err != nil {
		return Page{}, fmt.Errorf("page: %w", err)
	}
	return p, nil
}

// Proof is a mailbox's signed word whether it has an envelope (PROTOCOL 17.6).
type Proof struct {
	Present   bool
	Answer    [32]byte // ProofAnswer when present, zeros when not
	Time      int64    // Unix seconds
	Signature [64]byte
}

const proofBody = 1 + 1 + 32 + 8

// Fields is what the service key signs as SigProof: the question and the answer.
func (p Proof) Fields(q Prove) []byte {
	var w canon.Writer
	return w.Raw(q.Box[:]).Raw(q.Hash[:]).Raw(q.Nonce[:]).Raw(p.Marshal()[:proofBody]).Bytes()
}

// Marshal is the canonical encoding, signature included.
func (p Proof) Marshal() []byte {
	var w canon.Writer
	return w.U8(mailboxVersion).U8(bit(p.Present)).Raw(p.Answer[:]).U64(uint64(p.Time)).Raw(p.Signature[:]).Bytes()
}

// ParseProof reads what Marshal wrote; the signature is not judged here.
func ParseProof(b []byte) (Proof, error) {
	r, err := signedReader(b, proofBody+64)
	if err != nil {
		return Proof{}, fmt.Errorf("proof: %w", err)
	}
	p := Proof{Present: bool1(r)}
	r.Copy(p.Answer[:])
	p.Time = seconds(r)
	r.Copy(p.Signature[:])
	if r.Err() == nil && !p.Present && !allZero(p.Answer[:]) {
		r.Fail(fmt.Errorf("an answer for an absent envelope"))
	}
	if err := r.Close(); err != nil {
		return Proof{}, fmt.Errorf("proof: %w", err)
	}
	return p, nil
}

// ParseBoxID reads the result of AUTH.
func ParseBoxID(b []byte) (box BoxID, err error) {
	r := canon.NewReader(b)
	r.Copy(box[:])
	if err := r.Close(); err != nil {
		return BoxID{}, fmt.Errorf("box id: %w", err)
	}
	return box, nil
}

// ParseUnspent reads the result of POOL, which is a u32.
func ParseUnspent(b []byte) (uint32, error) {
	r := canon.NewReader(b)
	v := r.U32()
	if err := r.Close(); err != nil {
		return 0, fmt.Errorf("tokens unspent: %w", err)
	}
	return v, nil
}

// ParseCount reads the result of ACK and REPUBLISH, which is a u16.
func ParseCount(b []byte) (uint16, error) {
	r := canon.NewReader(b)
	v := r.U16()
	if err := r.Close(); err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return v, nil
}

// ParseBits reads the result of STRANGERS, which is a u8.
func ParseBits(b []byte) (uint8, error) {
	r := canon.NewReader(b)
	v := r.U8()
	if err := r.Close(); err != nil {
		return 0, fmt.Errorf("bits of work: %w", err)
	}
	return v, nil
}

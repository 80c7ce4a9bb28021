package messenger

import (
	"crypto/ed25519"
	"time"

	"sotto/store"
	"sotto/wire"
)

// NodeKey is the private key of the inner host.
type NodeKey = ed25519.PrivateKey

// States of an outgoing message; they only move forward, except that expired, failed and cancelled may
// still become delivered (PROTOCOL 16.3).
const (
	StateQueued    = "queued"
	StateHeld      = "held"
	StateDelivered = "delivered"
	StateRead      = "read"
	StateExpired   = "expired"
	StateFailed    = "failed"
	StateCancelled = "cancelled"
)

// States of a contact (PROTOCOL 16).
const (
	ContactPending     = "pending"     // we follow their invite, which was not found yet
	ContactInvited     = "invited"     // our first message is on its way
	ContactRequested   = "requested"   // a stranger who wrote; nothing is answered before they are accepted
	ContactEstablished = "established" // both hold each other's keys
	ContactBlocked     = "blocked"
)

// Verification states of a contact.
const (
	VerifiedNo      = "no"
	VerifiedYes     = "yes"
	VerifiedChanged = "changed"
)

// States of an invite.
const (
	InviteOpen    = "open"
	InviteUsed    = "used"
	InviteExpired = "expired"
	InviteRevoked = "revoked"
)

// Kinds of event.
const (
	EventMessage = "message" // a message is new or was filled in
	EventReceipt = "receipt" // a message's state moved
	EventContact = "contact" // a contact is new or changed
	EventInvite  = "invite"  // an invite was made, used, revoked, or used by a second person
	EventSetting = "setting"
)

// Ref names a conversation.
type Ref struct {
	Kind string // "contact"
	Name string
	ID   wire.ConvID
}

// Author is who wrote a message.
type Author struct {
	Name     string
	Verified bool
	Me       bool
}

// Message is one message as the store has it. SentAt is the author's clock, At ours.
type Message struct {
	ID      wire.MsgID
	Seq     uint64 // the event that announced it
	Conv    Ref
	From    Author
	SentAt  time.Time
	At      time.Time
	Kind    wire.Kind
	Text    string
	ReplyTo wire.MsgID
	Edited  bool
	State   string
	Why     string
	Held    store.Holding // with StateHeld
	Missing uint64        // messages of the author missing right before this one
}

// Contact is one person.
type Contact struct {
	Account  string
	Name     string
	Claimed  string
	State    string
	Verified string
	Conv     wire.ConvID
	Created  time.Time
	LastSeen time.Time
	Queued   int
	Intro    string // what a stranger wrote
	Warning  string
}

// Conversation is one line of the inbox.
type Conversation struct {
	Ref     Ref
	Removed bool // whom it is with was removed; what was said stays
	Unread  int
	Last    *Message
}

// Mailbox is a box of ours at a volunteer's mailbox.
type Mailbox struct {
	ID      string // the first digits of the box's id
	Key     string // SHA-256 of the box's key in hex: what an operator with a list of allowed keys puts there
	Addr    string
	State   string
	Ready   bool // contacts are told of it
	Chosen  bool // by the program
	Since   time.Time
	Seen    time.Time
	Failing time.Time // since when it does not answer; zero while it does
	Why     string
	Quota   uint64 // bytes
	Used    uint64
	Days    int // how long it keeps mail
}

// Invite is an invitation this device made.
type Invite struct {
	ID        string
	Link      string // empty when it can no longer be used
	QR        string
	State     string
	Created   time.Time
	Expires   time.Time
	Uses      int
	MaxUses   int // 0 = any number
	Reusable  bool
	Published bool
}

// Step is one thing that happened to a message.
type Step struct {
	At     time.Time
	What   string
	Detail string
	Times  int       // how often it was tried in a row, when more than once
	Last   time.Time // when it was tried last, if Times is set
}

// Trace is a message's life on this node.
type Trace struct {
	Message Message
	Steps   []Step
}

// Verification is what two people compare.
type Verification struct {
	Name   string
	Digits string
	Emoji  [6]string
	State  string
}

// IdentityInfo is what this node says about itself.
type IdentityInfo struct {
	Name      string
	Account   string
	Device    string
	Created   time.Time
	CardUntil time.Time
}

// Event is one entry of the numbered log, resolved when it is read; exactly the field its kind names is set.
type Event struct {
	Seq     uint64
	At      time.Time
	Kind    string
	Message *Message
	Contact *Contact
	Invite  *Invite
}

// Status is the messenger at a glance.
type Status struct {
	Name        string
	Account     string
	Queued      int
	Unread      int
	Requests    int
	Seq         uint64
	ClockOffset time.Duration
	Counters    Counters
}

// SendRequest asks for a message to be accepted.
type SendRequest struct {
	To              string // name, or a unique beginning of it
	Text            string
	ReplyTo         string
	Expire          time.Duration // 0 = Limits.OutboxAge
	Key             string        // idempotency key
	RequireVerified bool
}

// InviteRequest asks for an invitation.
type InviteRequest struct {
	Reusable bool
	Uses     int // 0 = one
	Expires  time.Duration
	Hints    []string // multiaddrs for the link form
}

// AddRequest follows an invitation.
type AddRequest struct {
	Link   string
	Name   string
	Within time.Duration // how long to look for the inviter before answering; 0 = until the attempt ends by itself
}

// AddResult is what came of it: the contact's state is pending while the other side was not found.
type AddResult struct {
	Contact Contact
	State   string
}

// MessagesQuery asks for the newest messages of a conversation, oldest first.
type MessagesQuery struct {
	Limit int // 0 = 20
	Since time.Time
	Peek  bool // leave them unread
}

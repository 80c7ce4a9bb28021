// Package control is the local API: JSON-RPC 2.0 and a numbered event stream over a Unix socket, and its client.
// Begin with the types and the method table in this file; server.go is the door, client.go the other side of it.
package control

import (
	"context"
	"time"
)

// APIVersion is the major version of this API. Within one, methods and fields are only added.
const APIVersion = 1

// Limits of one request. A text of 64 KiB may grow six times when JSON escapes it.
const (
	MaxText    = 64 << 10
	MaxBody    = 1 << 20
	MaxBatch   = 64
	MaxAnswer  = 32 << 20 // all answers of a batch: what comes after is not run
	MaxStreams = 64
	MaxConns   = 256
	MaxWait    = 24 * time.Hour
	MinInvite  = 60 // seconds
)

// States of a message, in the order in which they can follow one another. There are no others.
const (
	StateQueued    = "queued"
	StateHeld      = "held"
	StateDelivered = "delivered"
	StateRead      = "read"
	StateExpired   = "expired"
	StateFailed    = "failed"
	StateCancelled = "cancelled"
)

// Ref names a conversation.
type Ref struct {
	Kind string `json:"kind" jsonschema:"contact"`
	Name string `json:"name" jsonschema:"the name you gave it"`
	ID   string `json:"id"`
}

// Author is who wrote a message.
type Author struct {
	Name     string `json:"name"`
	Verified bool   `json:"verified" jsonschema:"you compared the safety number and it has not changed since"`
	Me       bool   `json:"me" jsonschema:"written on this identity"`
}

// Message is one message as the store has it.
type Message struct {
	V       int       `json:"v"`
	ID      string    `json:"id"`
	Seq     uint64    `json:"seq,omitempty" jsonschema:"position in the event log, when it came from there"`
	Conv    Ref       `json:"conv"`
	From    Author    `json:"from"`
	SentAt  time.Time `json:"sent_at" jsonschema:"the author's clock"`
	At      time.Time `json:"at" jsonschema:"when this node stored it"`
	Kind    string    `json:"kind" jsonschema:"text, or unknown for a kind that needs a newer version"`
	Text    string    `json:"text"`
	ReplyTo *string   `json:"reply_to"`
	Edited  bool      `json:"edited"`
	State   string    `json:"state" jsonschema:"queued, held, delivered, read, expired, failed or cancelled"`
	Held    *Held     `json:"held,omitempty" jsonschema:"with state held: who keeps a sealed copy"`
	Why     string    `json:"why,omitempty" jsonschema:"why it failed or expired"`
	Missing uint64    `json:"missing,omitempty" jsonschema:"how many of the author's messages before this one have not arrived"`
}

// Held tells how many of the recipient's mailboxes signed that they keep a sealed copy.
type Held struct {
	By    int       `json:"by"`
	Of    int       `json:"of" jsonschema:"mailboxes the recipient has"`
	Until time.Time `json:"until" jsonschema:"so long do all of those keep it; it is renewed before"`
}

// Mailbox is a place where others leave mail for this person while no node of theirs runs.
type Mailbox struct {
	V       int       `json:"v"`
	ID      string    `json:"id"`
	Addr    string    `json:"addr"`
	Key     string    `json:"key" jsonschema:"what the operator of a mailbox with a list of allowed keys puts there"`
	State   string    `json:"state" jsonschema:"new: not registered yet; open; leaving: dropped, read until mail to it must have come"`
	Ready   bool      `json:"ready" jsonschema:"contacts are told of it"`
	Chosen  bool      `json:"chosen" jsonschema:"by the program, because you named none or too few"`
	Since   time.Time `json:"since"`
	Seen    time.Time `json:"seen,omitzero" jsonschema:"when it last answered"`
	Failing time.Time `json:"failing_since,omitzero"`
	Why     string    `json:"why,omitempty" jsonschema:"why it does not serve"`
	Quota   uint64    `json:"quota_bytes"`
	Used    uint64    `json:"used_bytes"`
	Days    int       `json:"keeps_days"`
	RTT     float64   `json:"rtt_ms,omitempty" jsonschema:"of mailbox.test"`
}

// Contact is one person as this node knows them.
type Contact struct {
	V        int       `json:"v"`
	Name     string    `json:"name" jsonschema:"the name you gave"`
	Claimed  string    `json:"claimed,omitempty" jsonschema:"the name they gave themselves"`
	ID       string    `json:"id" jsonschema:"their account key"`
	State    string    `json:"state" jsonschema:"pending, invited, requested, established, blocked or removed"`
	Verified string    `json:"verified" jsonschema:"no, yes, changed (a key did) or differs (you compared, and it was not the same)"`
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"last_seen,omitzero"`
	Queued   int       `json:"queued" jsonschema:"messages waiting for them"`
	Intro    string    `json:"intro,omitempty" jsonschema:"what a stranger wrote with the request"`
	Warning  string    `json:"warning,omitempty" jsonschema:"for example a name that looks like another contact's"`
}

// Conversation is one line of the inbox.
type Conversation struct {
	V       int      `json:"v"`
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Removed bool     `json:"removed,omitempty" jsonschema:"the contact was removed; what was said stays"`
	Unread  int      `json:"unread"`
	Last    *Message `json:"last"`
}

// Invite is an invitation. Link is a secret: whoever has it can become a contact until it is used, expires or is revoked.
type Invite struct {
	V         int       `json:"v"`
	ID        string    `json:"id"`
	Link      string    `json:"link,omitempty"`
	QR        string    `json:"qr,omitempty" jsonschema:"the short upper-case form for a QR code"`
	State     string    `json:"state" jsonschema:"open, used, expired or revoked"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Uses      int       `json:"uses"`
	MaxUses   int       `json:"max_uses" jsonschema:"0 means any number"`
	Reusable  bool      `json:"reusable"`
	Published bool      `json:"published" jsonschema:"stored where others can find it; until then it works only through addresses in the link and on the local network"`
}

// Added is what came of following an invite.
type Added struct {
	V       int     `json:"v"`
	Contact Contact `json:"contact"`
	State   string  `json:"state" jsonschema:"the contact's state: pending while the invite was not found, invited while their answer is awaited"`
}

// Verification is what two people compare.
type Verification struct {
	V      int       `json:"v"`
	Name   string    `json:"name"`
	Digits string    `json:"digits"`
	Emoji  [6]string `json:"emoji"`
	State  string    `json:"state" jsonschema:"no, yes, changed (a key did) or differs (you compared, and it was not the same)"`
}

// Step is one thing that happened to a message.
type Step struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
	Times  int       `json:"times,omitempty" jsonschema:"how often it was tried in a row, when more than once"`
	Last   time.Time `json:"last_at,omitzero" jsonschema:"when it was tried last, with times"`
}

// Trace is a message's life on this node.
type Trace struct {
	V       int     `json:"v"`
	Message Message `json:"message"`
	Steps   []Step  `json:"steps"`
}

// Identity is what this node says about itself; no secrets.
type Identity struct {
	V       int       `json:"v"`
	Name    string    `json:"name"`
	Account string    `json:"account"`
	Device  string    `json:"device"`
	Created time.Time `json:"created"`
}

// Settings is what the program keeps for its person, beside config.toml, which is the person's own file.
type Settings struct {
	V         int  `json:"v"`
	ReadMarks bool `json:"read_marks" jsonschema:"contacts are told what you have read"`
}

// Setting is one wish.
type Setting struct {
	Key   string `json:"key" jsonschema:"read-marks"`
	Value string `json:"value" jsonschema:"on or off"`
}

// Peer is one connection of the node.
type Peer struct {
	V      int     `json:"v"`
	Role   string  `json:"role" jsonschema:"contact, dht, lan, relay or other"`
	Name   string  `json:"name,omitempty" jsonschema:"the contact's name"`
	Key    string  `json:"key"`
	Addr   string  `json:"addr"`
	Direct bool    `json:"direct"`
	RTT    float64 `json:"rtt_ms,omitempty"`
}

// Ping is a measured round trip to a contact.
type Ping struct {
	V    int     `json:"v"`
	Name string  `json:"name"`
	RTT  float64 `json:"rtt_ms"`
}

// NetStatus is how the node is reached and what it reaches.
type NetStatus struct {
	Reachability string   `json:"reachability" jsonschema:"public, relay or unknown: how contacts elsewhere reach this node"`
	Addrs        []string `json:"addrs"`
	Peers        int      `json:"peers"`
	Contacts     int      `json:"contacts"`
	DHT          int      `json:"dht"`
	LAN          int      `json:"lan"`
	Relays       int      `json:"relays"`
	Online       bool     `json:"online" jsonschema:"at least one DHT server answers"`
	Named        int      `json:"named" jsonschema:"volunteers in network.bootstrap of config.toml"`
}

// StoreStatus is the state of the database.
type StoreStatus struct {
	State string `json:"state" jsonschema:"ok, full, read-only or damaged"`
	Bytes int64  `json:"bytes,omitempty" jsonschema:"of the database's tables, once there are any"`
	Free  int64  `json:"free_bytes"`
}

// Warning is something the person should know, with what to do about it.
type Warning struct {
	Text string `json:"text"`
	Fix  string `json:"fix"`
}

// Status is the node at a glance.
type Status struct {
	V        int         `json:"v"`
	Version  string      `json:"version"`
	API      int         `json:"api"`
	Profile  string      `json:"profile"`
	PID      int         `json:"pid"`
	Name     string      `json:"name"`
	Account  string      `json:"account"`
	Network  bool        `json:"networking" jsonschema:"false when only the store is open"`
	Started  time.Time   `json:"started"`
	Net      NetStatus   `json:"net"`
	Store    StoreStatus `json:"store"`
	Queued   int         `json:"queued" jsonschema:"messages not delivered yet"`
	Boxes    int         `json:"mailboxes" jsonschema:"mailboxes that keep mail for this person now"`
	Unread   int         `json:"unread"`
	Requests int         `json:"requests"`
	Seq      uint64      `json:"seq" jsonschema:"last event"`
	Clock    float64     `json:"clock_offset_s" jsonschema:"how far this clock is from what others report"`
	Warnings []Warning   `json:"warnings"`
}

// Event is one entry of the numbered log. Exactly the field that its kind names is set.
type Event struct {
	V       int       `json:"v"`
	Seq     uint64    `json:"seq"`
	At      time.Time `json:"at"`
	Kind    string    `json:"kind" jsonschema:"message, receipt, contact, invite, setting, reset when the log no longer reaches back to where you were, or stopped as the last one when the node was told to stop"`
	Message *Message  `json:"message,omitempty" jsonschema:"of message (new) and receipt (its state moved)"`
	Contact *Contact  `json:"contact,omitempty"`
	Invite  *Invite   `json:"invite,omitempty"`
}

// Event kinds.
const (
	EventMessage = "message"
	EventReceipt = "receipt"
	EventContact = "contact"
	EventInvite  = "invite"
	EventSetting = "setting"
	EventReset   = "reset"
	EventStopped = "stopped"
)

// Parameters of the methods.
type (
	// SendParams asks for a message to be sent.
	SendParams struct {
		To              string `json:"to" jsonschema:"a contact's name, or a unique beginning of it"`
		Text            string `json:"text" jsonschema:"UTF-8, 1 byte to 64 KiB"`
		ReplyTo         string `json:"reply_to,omitempty" jsonschema:"id of the message answered"`
		ExpireSeconds   int64  `json:"expire_s,omitempty" jsonschema:"give up and say so after this long"`
		Key             string `json:"idempotency_key,omitempty" jsonschema:"the same key never sends twice"`
		RequireVerified bool   `json:"require_verified,omitempty"`
	}
	// WaitParams asks to be answered once a message has reached a state.
	WaitParams struct {
		ID        string `json:"id"`
		State     string `json:"state" jsonschema:"queued, held, delivered or read"`
		TimeoutMS int64  `json:"timeout_ms,omitempty"`
	}
	// ListParams asks for a conversation's messages, oldest first.
	ListParams struct {
		Conv  string    `json:"conv" jsonschema:"a contact's name, or that of somebody who was removed"`
		Limit int       `json:"limit,omitempty" jsonschema:"the newest so many; 20, or as many as are unread, unless given; at most 1000, or 4 MiB of text"`
		Since time.Time `json:"since,omitzero"`
		Peek  bool      `json:"peek,omitempty" jsonschema:"leave them unread, as they stay when not all unread ones are in the page"`
	}
	// IDParams names one object by its id or a unique beginning of it.
	IDParams struct {
		ID string `json:"id"`
	}
	// NameParams names a contact.
	NameParams struct {
		Name string `json:"name"`
	}
	// InviteParams asks for an invitation.
	InviteParams struct {
		Reusable       bool  `json:"reusable,omitempty" jsonschema:"any number of people may use it"`
		Uses           int   `json:"uses,omitempty" jsonschema:"so many people may use it; 1 unless given"`
		ExpiresSeconds int64 `json:"expires_s,omitempty" jsonschema:"24 hours unless given; at least 60"`
	}
	// AddParams follows an invitation.
	AddParams struct {
		Link string `json:"link"`
		Name string `json:"name,omitempty" jsonschema:"what you call them; their own name unless given"`
		// TimeoutMS bounds the first look, not the tries that follow while the node runs.
		TimeoutMS int64 `json:"timeout_ms,omitempty" jsonschema:"answer after this long even if they were not found yet; 20 s unless given"`
	}
	// RenameParams gives a contact another name.
	RenameParams struct {
		Name string `json:"name"`
		To   string `json:"to"`
	}
	// AcceptParams lets a stranger in.
	AcceptParams struct {
		Name string `json:"name" jsonschema:"as request.list shows it"`
		As   string `json:"as,omitempty"`
	}
	// RejectParams turns a stranger away.
	RejectParams struct {
		Name  string `json:"name"`
		Block bool   `json:"block,omitempty"`
	}
	// VerifiedParams records the result of comparing safety numbers.
	VerifiedParams struct {
		Name     string `json:"name"`
		Verified bool   `json:"verified"`
	}
	// AddrParams is a multiaddress to connect to.
	AddrParams struct {
		Addr string `json:"addr"`
	}
	// MailboxParams names a mailbox to begin with.
	MailboxParams struct {
		Addr    string `json:"addr" jsonschema:"multiaddress that ends in /p2p/ and its peer id"`
		Voucher string `json:"voucher,omitempty" jsonschema:"what its operator gave, if it asks for one"`
	}
	// CursorParams names a reader's place in the event log.
	CursorParams struct {
		Cursor string `json:"cursor"`
	}
	// AckParams moves a reader's place: everything up to seq is done.
	AckParams struct {
		Cursor string `json:"cursor"`
		Seq    uint64 `json:"seq"`
	}
	// None is no parameters, or no result.
	None struct{}
)

// Lists, so that every result is an object and can grow.
type (
	// MessageList is a page of a conversation.
	MessageList struct {
		Messages []Message `json:"messages"`
	}
	// ConversationList is the inbox.
	ConversationList struct {
		Conversations []Conversation `json:"conversations"`
	}
	// ContactList is some contacts.
	ContactList struct {
		Contacts []Contact `json:"contacts"`
	}
	// InviteList is the invitations this node made.
	InviteList struct {
		Invites []Invite `json:"invites"`
	}
	// PeerList is the node's connections.
	PeerList struct {
		Peers []Peer `json:"peers"`
	}
	// MailboxList is the places where mail for this person waits.
	MailboxList struct {
		Mailboxes []Mailbox `json:"mailboxes"`
	}
	// Cursor is a reader's place in the event log.
	Cursor struct {
		Cursor string `json:"cursor"`
		Seq    uint64 `json:"seq"`
		New    bool   `json:"new" jsonschema:"it did not exist before this call and starts at the end of the log"`
	}
)

// methods is the whole table: what the server answers, what the schema lists.
func (s *Server) methods() []method {
	c := s.core
	return []method{
		call("message.send", "Queue a message; answered when it is on disk.", s.send),
		call("message.get", "One message.", func(ctx context.Context, p IDParams) (Message, error) { return c.Message(ctx, p.ID) }),
		call("message.wait", "Wait until a message has reached a state.", s.wait),
		call("message.list", "A conversation's messages.", s.list),
		call("message.trace", "Everything that happened to a message.", func(ctx context.Context, p IDParams) (Trace, error) { return c.Trace(ctx, p.ID) }),
		call("inbox.list", "All conversations, unread first.", func(ctx context.Context, _ None) (ConversationList, error) {
			list, err := c.Inbox(ctx)
			return ConversationList{orEmpty(list)}, err
		}),

		long("invite.create", "Make an invitation.", c.Invite),
		call("invite.list", "The invitations this node made.", func(ctx context.Context, _ None) (InviteList, error) {
			list, err := c.Invites(ctx)
			return InviteList{orEmpty(list)}, err
		}),
		call("invite.revoke", "Make an invitation worthless.", func(ctx context.Context, p IDParams) (None, error) { return None{}, c.RevokeInvite(ctx, p.ID) }),
		long("contact.add", "Follow an invitation.", c.Add),
		call("contact.list", "All contacts.", s.contacts),
		call("contact.show", "One contact.", func(ctx context.Context, p NameParams) (Contact, error) { return c.Contact(ctx, p.Name) }),
		call("contact.rename", "Give a contact another name.", func(ctx context.Context, p RenameParams) (Contact, error) { return c.Rename(ctx, p.Name, p.To) }),
		call("contact.remove", "Forget a contact.", func(ctx context.Context, p NameParams) (None, error) { return None{}, c.Remove(ctx, p.Name) }),
		call("contact.block", "Nothing more from or to this contact.", func(ctx context.Context, p NameParams) (None, error) { return None{}, c.Block(ctx, p.Name) }),
		call("contact.unblock", "Undo contact.block.", func(ctx context.Context, p NameParams) (None, error) { return None{}, c.Unblock(ctx, p.Name) }),
		call("contact.verify", "What to compare with a contact.", func(ctx context.Context, p NameParams) (Verification, error) { return c.Verify(ctx, p.Name) }),
		call("contact.set_verified", "Record that you compared.", func(ctx context.Context, p VerifiedParams) (Verification, error) {
			return c.SetVerified(ctx, p.Name, p.Verified)
		}),
		call("request.list", "Strangers who ask to be let in.", s.requests),
		call("request.accept", "Let a stranger in.", func(ctx context.Context, p AcceptParams) (Contact, error) { return c.Accept(ctx, p.Name, p.As) }),
		call("request.reject", "Turn a stranger away.", func(ctx context.Context, p RejectParams) (None, error) {
			return None{}, c.Reject(ctx, p.Name, p.Block)
		}),

		call("identity.show", "Who this node is.", func(ctx context.Context, _ None) (Identity, error) { return c.Identity(ctx) }),
		call("setting.list", "What the program keeps for you.", func(ctx context.Context, _ None) (Settings, error) { return c.Settings(ctx) }),
		call("setting.set", "Change a setting.", func(ctx context.Context, p Setting) (Settings, error) { return c.Set(ctx, p) }),
		call("node.status", "The node at a glance.", s.status),
		call("node.stop", "End the node, after answering.", s.stopNode),
		call("peers.list", "The node's connections.", s.peers),
		long("peers.ping", "Measure the way to a contact.", s.ping),
		long("peers.connect", "Connect to an address.", s.connect),

		call("mailbox.list", "The mailboxes that keep mail for this person.", func(ctx context.Context, _ None) (MailboxList, error) {
			list, err := c.Mailboxes(ctx)
			return MailboxList{orEmpty(list)}, err
		}),
		call("mailbox.add", "Have mail kept at a mailbox.", func(ctx context.Context, p MailboxParams) (Mailbox, error) { return c.AddMailbox(ctx, p) }),
		call("mailbox.drop", "Have no more mail left at a mailbox.", func(ctx context.Context, p IDParams) (Mailbox, error) { return c.DropMailbox(ctx, p.ID) }),
		long("mailbox.test", "Ask a mailbox how our box stands.", func(ctx context.Context, p IDParams) (Mailbox, error) { return c.TestMailbox(ctx, p.ID) }),

		call("events.cursor", "A reader's place in the event log; made at its end if new.", s.cursor),
		call("events.ack", "Everything up to a place is done.", s.ack),
	}
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

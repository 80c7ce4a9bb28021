package control

import "context"

// The server needs a core that speaks its own types; Messenger in backend.go is the real one.
type (
	// Messages sends and shows messages.
	Messages interface {
		Send(ctx context.Context, p SendParams) (Message, error)
		Message(ctx context.Context, id string) (Message, error)
		Messages(ctx context.Context, p ListParams) ([]Message, error)
		Inbox(ctx context.Context) ([]Conversation, error)
		Trace(ctx context.Context, id string) (Trace, error)
	}
	// People makes and keeps contacts.
	People interface {
		Invite(ctx context.Context, p InviteParams) (Invite, error)
		Invites(ctx context.Context) ([]Invite, error)
		RevokeInvite(ctx context.Context, id string) error
		Add(ctx context.Context, p AddParams) (Added, error)
		Contacts(ctx context.Context) ([]Contact, error)
		Contact(ctx context.Context, name string) (Contact, error)
		Rename(ctx context.Context, name, to string) (Contact, error)
		Remove(ctx context.Context, name string) error
		Block(ctx context.Context, name string) error
		Unblock(ctx context.Context, name string) error
		Accept(ctx context.Context, name, as string) (Contact, error)
		Reject(ctx context.Context, name string, block bool) error
		Verify(ctx context.Context, name string) (Verification, error)
		SetVerified(ctx context.Context, name string, verified bool) (Verification, error)
		Mailboxes(ctx context.Context) ([]Mailbox, error)
		AddMailbox(ctx context.Context, p MailboxParams) (Mailbox, error)
		DropMailbox(ctx context.Context, id string) (Mailbox, error)
		TestMailbox(ctx context.Context, id string) (Mailbox, error)
	}
	// Self tells who this node is and how it does; Status leaves Net and the process's own fields empty.
	Self interface {
		Identity(ctx context.Context) (Identity, error)
		Settings(ctx context.Context) (Settings, error)
		Set(ctx context.Context, p Setting) (Settings, error)
		Status(ctx context.Context) (Status, error)
	}
	// Feed is the numbered event log.
	Feed interface {
		// Events returns up to limit events after the given one; it waits for the first, or for the context's end.
		Events(ctx context.Context, after uint64, limit int) ([]Event, error)
		// Range returns the oldest and the newest event kept; both are 0 in an empty log.
		Range(ctx context.Context) (first, last uint64, err error)
		// Cursor returns a reader's place, 0 when it has none yet.
		Cursor(ctx context.Context, name string) (seq uint64, ok bool, err error)
		AckCursor(ctx context.Context, name string, seq uint64) error
	}
	// Core is what the node does for its person.
	Core interface {
		Messages
		People
		Self
		Feed
	}
	// Net is the network side, absent when only the store is open.
	Net interface {
		NetStatus() NetStatus
		Warnings() []Warning
		Peers() []Peer
		Ping(ctx context.Context, name string) (Ping, error)
		Connect(ctx context.Context, addr string) error
	}
)

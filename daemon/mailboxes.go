package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"sotto/mailbox"
	"sotto/messenger"
	"sotto/node"
	"sotto/wire"
)

// mailboxes is the messenger's port to volunteers' mailboxes, over the node's front host.
type mailboxes struct {
	node   *node.Node
	client *mailbox.Client
}

func newMailboxes(n *node.Node, cfg Config, opt Options) mailboxes {
	return mailboxes{n, mailbox.NewClient(n.Front(), cfg.Network.Name, mailbox.ClientConfig{Clock: opt.Clock, Dialable: n.Dialable})}
}

// ParseAddr reads a multiaddr that ends in a peer id.
func (b mailboxes) ParseAddr(text string) ([]byte, [32]byte, error) {
	a, err := ma.NewMultiaddr(text)
	if err != nil {
		return nil, [32]byte{}, fmt.Errorf("%q is no address: %w", text, err)
	}
	service, err := mailbox.ServiceKey(a)
	if err != nil {
		return nil, service, fmt.Errorf("%q: %w", text, err)
	}
	return a.Bytes(), service, nil
}

// FormatAddr is the text of a binary multiaddr, "" of something else.
func (b mailboxes) FormatAddr(addr []byte) string {
	a, err := ma.NewMultiaddrBytes(addr)
	if err != nil {
		return ""
	}
	return a.String()
}

// Terms asks a mailbox what it promises.
func (b mailboxes) Terms(ctx context.Context, addr []byte) (wire.Terms, error) {
	return b.client.Terms(ctx, b.FormatAddr(addr))
}

// Deposit leaves an envelope.
func (b mailboxes) Deposit(ctx context.Context, addr []byte, d wire.Deposit) (wire.Custody, error) {
	return b.client.Deposit(ctx, b.FormatAddr(addr), d)
}

// Open opens a box of ours.
func (b mailboxes) Open(ctx context.Context, addr []byte, key ed25519.PrivateKey) (messenger.BoxStream, error) {
	box, err := b.client.Open(ctx, b.FormatAddr(addr), key)
	if err != nil {
		return nil, err
	}
	return boxStream{box}, nil
}

// Known lists the volunteers that the node knows.
func (b mailboxes) Known() [][]byte {
	var out [][]byte
	for _, text := range b.node.Mailboxes() {
		if a, err := ma.NewMultiaddr(text); err == nil {
			out = append(out, a.Bytes())
		}
	}
	return out
}

// boxStream is a mailbox.Box as the messenger wants it.
type boxStream struct{ *mailbox.Box }

func (b boxStream) Pool(ctx context.Context, add, drop [][16]byte) error {
	_, err := b.Box.Pool(ctx, add, drop)
	return err
}

func (b boxStream) Wait(ctx context.Context, after uint64, most int, within time.Duration) (wire.Page, error) {
	return b.Box.Wait(ctx, after, most, within)
}

func (b boxStream) Ack(ctx context.Context, ids []uint64) error {
	_, err := b.Box.Ack(ctx, ids)
	return err
}

func (b boxStream) Republish(ctx context.Context, list []wire.Republish) error {
	kept, err := b.Box.Republish(ctx, list)
	if err == nil && kept < len(list) {
		err = fmt.Errorf("%d of %d records are republished: %w", kept, len(list), wire.ErrRefused)
	}
	return err
}

package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/internal/clock"
	"sotto/mailbox"
	"sotto/messenger"
	"sotto/node"
	"sotto/wire"
)

// Mailboxes is the messenger's port to volunteers' mailboxes, over the node's front host.
type Mailboxes struct {
	node   *node.Node
	client *mailbox.Client
}

// NewMailboxes makes the port for a node of that network; "" is the public one.
func NewMailboxes(n *node.Node, network string, c clock.Clock) Mailboxes {
	return Mailboxes{n, mailbox.NewClient(n.Front(), network, mailbox.ClientConfig{Clock: c, Dialable: n.Dialable})}
}

// Close ends all streams to mailboxes.
func (b Mailboxes) Close() error { return b.client.Close() }

// ParseAddr reads a multiaddr that ends in a peer id.
func (b Mailboxes) ParseAddr(text string) ([]byte, [32]byte, error) {
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
func (b Mailboxes) FormatAddr(addr []byte) string {
	a, err := ma.NewMultiaddrBytes(addr)
	if err != nil {
		return ""
	}
	return a.String()
}

// Terms asks a mailbox what it promises.
func (b Mailboxes) Terms(ctx context.Context, addr []byte) (wire.Terms, error) {
	return b.client.Terms(ctx, b.FormatAddr(addr))
}

// Deposit leaves an envelope.
func (b Mailboxes) Deposit(ctx context.Context, addr []byte, d wire.Deposit) (wire.Custody, error) {
	return b.client.Deposit(ctx, b.FormatAddr(addr), d)
}

// Open opens a box of ours.
func (b Mailboxes) Open(ctx context.Context, addr []byte, key ed25519.PrivateKey) (messenger.BoxStream, error) {
	box, err := b.client.Open(ctx, b.FormatAddr(addr), key)
	if err != nil {
		return nil, err
	}
	return boxStream{box}, nil
}

// Known lists the volunteers that the node knows.
func (b Mailboxes) Known() []messenger.KnownMailbox {
	var out []messenger.KnownMailbox
	for _, text := range b.node.Mailboxes() {
		if a, err := ma.NewMultiaddr(text); err == nil {
			out = append(out, messenger.KnownMailbox{Addr: a.Bytes(), Net: netOf(a)})
		}
	}
	return out
}

// netOf names the part of the Internet an address is in: the first half of an IPv4 address, the first quarter of an IPv6 one.
func netOf(a ma.Multiaddr) string {
	ip, err := manet.ToIP(a)
	if err != nil {
		return "" // a name
	}
	addr, _ := netip.AddrFromSlice(ip)
	bits := 32
	if addr = addr.Unmap(); addr.Is4() {
		bits = 16
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
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

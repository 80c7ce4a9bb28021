package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"golang.org/x/sync/errgroup"

	"sotto/mailbox"
	"sotto/wire"
)

// office is a mailbox on the loopback: a queue on disk and its server, with room for whatever a row needs.
type office struct {
	dir   string
	queue *mailbox.Queue
	host  host.Host
	key   [32]byte
	addr  string
	stop  context.CancelFunc
	done  errgroup.Group
}

func newOffice(ctx context.Context) (*office, error) {
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return nil, err
	}
	o := &office{dir: dir}
	o.queue, err = mailbox.OpenQueue(mailbox.QueueConfig{Dir: filepath.Join(dir, "queue"), Limits: mailbox.Limits{
		Ceiling: 100 << 30, MaxBytes: 50 << 30, MaxCount: boxCount, Reserve: -1, Slow: -1, Pending: 256 << 20,
	}})
	if err != nil {
		return nil, err
	}
	if o.host, err = newHost(); err != nil {
		return nil, err
	}
	sk, ok := o.host.Peerstore().PrivKey(o.host.ID()).(*crypto.Ed25519PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the host's key is a %T", sk)
	}
	raw, err := sk.Raw()
	if err != nil {
		return nil, err
	}
	key := ed25519.PrivateKey(raw)
	o.key = [32]byte(key.Public().(ed25519.PublicKey))
	o.addr = o.host.Addrs()[0].String() + "/p2p/" + o.host.ID().String()
	server, err := mailbox.NewServer(o.queue, o.host, "", mailbox.ServerConfig{Key: key})
	if err != nil {
		return nil, err
	}
	ctx, o.stop = context.WithCancel(ctx)
	o.done.Go(func() error { return mailbox.Run(ctx, o.queue, server) })
	return o, nil
}

func (o *office) close() {
	o.stop()
	_ = o.done.Wait()
	_ = o.queue.Close()
	_ = o.host.Close()
	_ = os.RemoveAll(o.dir)
}

// owner is a registered box with tokens of one seed.
type owner struct {
	key  ed25519.PrivateKey
	box  wire.BoxID
	seed [32]byte
}

// newOwner registers a box that knows so many tokens.
func (o *office) newOwner(tokens uint32) (*owner, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	w := &owner{key: key, box: wire.NewBoxID(o.key, [32]byte(key.Public().(ed25519.PublicKey)))}
	if _, err := rand.Read(w.seed[:]); err != nil {
		return nil, err
	}
	if _, err := o.queue.Register(w.box, mailbox.Admit{Vouched: true}); err != nil {
		return nil, err
	}
	return w, o.show(w, 0, tokens)
}

// show has the mailbox know more tokens of a box.
func (o *office) show(w *owner, from, to uint32) error {
	for ; from < to; from += wire.MaxPoolBatch {
		var add [][16]byte
		for i := from; i < min(to, from+wire.MaxPoolBatch); i++ {
			add = append(add, wire.PoolHash(wire.BoxToken(w.seed, i, w.box)))
		}
		if _, err := o.queue.Pool(w.box, add, nil); err != nil {
			return err
		}
	}
	return nil
}

// letter is the i-th envelope, of the smallest size.
func letter(i uint64) []byte {
	b := make([]byte, wire.StrangerEnvelope)
	for at := 0; at < len(b); at += sha256.Size { // nothing that a disk could make smaller
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, i), uint64(at)))
		copy(b[at:], sum[:])
	}
	return b
}

const senders = 64

// boxCount is what a box holds at most.
const boxCount = 8192

// deposits is how fast 64 senders, each with a connection of its own, leave envelopes of 8 KiB, every one with a receipt that was signed after its
// sync; against the engine alone with 64 of them in each synced transaction.
func deposits(ctx context.Context, o options) (figure, error) {
	limit, err := bareDeposits(o.letters)
	if err != nil {
		return figure{}, err
	}
	of, err := newOffice(ctx)
	if err != nil {
		return figure{}, err
	}
	defer of.close()
	each := (o.letters + senders - 1) / senders
	var clients []*mailbox.Client
	var boxes []*owner
	for range senders {
		h, err := newHost()
		if err != nil {
			return figure{}, err
		}
		defer func() { _ = h.Close() }()
		c := mailbox.NewClient(h, "", mailbox.ClientConfig{})
		defer func() { _ = c.Close() }()
		w, err := of.newOwner(uint32(each))
		if err != nil {
			return figure{}, err
		}
		if _, err := c.Terms(ctx, of.addr); err != nil {
			return figure{}, err
		}
		clients, boxes = append(clients, c), append(boxes, w)
	}
	begun := time.Now()
	var g errgroup.Group
	for n := range senders {
		g.Go(func() error {
			for i := range each {
				d := wire.Deposit{Box: boxes[n].box, Token: wire.BoxToken(boxes[n].seed, uint32(i), boxes[n].box), Envelope: letter(uint64(n*each + i))}
				if _, err := clients[n].Deposit(ctx, of.addr, d); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return figure{}, err
	}
	rate, best := float64(each*senders)/time.Since(begun).Seconds(), float64(o.letters)/limit.Seconds()
	return figure{
		got:  fmt.Sprintf("%.2f × the engine: %.0f/s, engine %.0f/s", rate/best, rate, best),
		beat: rate >= 0.5*best,
		note: fmt.Sprintf("%d envelopes, %d senders in this process too", each*senders, senders),
	}, nil
}

// bareDeposits is the engine alone.
func bareDeposits(count int) (time.Duration, error) {
	b, err := newBare()
	if err != nil {
		return 0, err
	}
	defer b.close()
	begun := time.Now()
	for i := 0; i < count; i += senders {
		err := b.db.Update(func(tx *badger.Txn) error {
			for j := i; j < min(count, i+senders); j++ {
				if err := tx.Set(binary.BigEndian.AppendUint64(nil, uint64(j)), letter(uint64(j))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return time.Since(begun), nil
}

// drain is how fast one owner takes what waits, acknowledgements included; against the engine alone that reads and deletes the same pages.
func drain(ctx context.Context, o options) (figure, error) {
	of, err := newOffice(ctx)
	if err != nil {
		return figure{}, err
	}
	defer of.close()
	w, err := of.newOwner(0)
	if err != nil {
		return figure{}, err
	}
	h, err := newHost()
	if err != nil {
		return figure{}, err
	}
	defer func() { _ = h.Close() }()
	c := mailbox.NewClient(h, "", mailbox.ClientConfig{})
	defer func() { _ = c.Close() }()
	box, err := c.Open(ctx, of.addr, w.key)
	if err != nil {
		return figure{}, err
	}
	var took time.Duration
	page := 0
	for from := 0; from < o.letters; from += boxCount {
		to := min(o.letters, from+boxCount)
		if err := of.fill(ctx, w, from, to); err != nil {
			return figure{}, err
		}
		begun := time.Now()
		n, err := takeAll(ctx, box, to-from)
		if err != nil {
			return figure{}, err
		}
		took, page = took+time.Since(begun), max(page, n)
	}
	rate := float64(o.letters) / took.Seconds()
	limit, err := bareDrain(o.letters, page)
	if err != nil {
		return figure{}, err
	}
	best := float64(o.letters) / limit.Seconds()
	return figure{
		got:  fmt.Sprintf("%.2f × the engine: %.0f/s, engine %.0f/s", rate/best, rate, best),
		beat: rate >= 0.35*best,
		note: fmt.Sprintf("%d envelopes of 8 KiB in pages of %d, at most %d waiting at a time", o.letters, page, boxCount),
	}, nil
}

// takeAll fetches and acknowledges what waits; it returns the size of the largest page.
func takeAll(ctx context.Context, box *mailbox.Box, left int) (page int, err error) {
	for after := uint64(0); left > 0; {
		got, err := box.Fetch(ctx, after, 0)
		if err != nil {
			return page, err
		}
		if len(got.Mail) == 0 {
			return page, fmt.Errorf("%d envelopes are missing", left)
		}
		ids := make([]uint64, len(got.Mail))
		for i, m := range got.Mail {
			ids[i] = m.ID
		}
		if _, err := box.Ack(ctx, ids); err != nil {
			return page, err
		}
		after, left, page = ids[len(ids)-1], left-len(ids), max(page, len(ids))
	}
	return page, nil
}

// fill leaves envelopes in a box without a network.
func (o *office) fill(ctx context.Context, w *owner, from, count int) error {
	for ; from < count; from += wire.MaxPool / 2 {
		to := min(count, from+wire.MaxPool/2)
		if err := o.show(w, uint32(from), uint32(to)); err != nil {
			return err
		}
		var g errgroup.Group
		var next atomic.Int64
		next.Store(int64(from))
		for range senders {
			g.Go(func() error {
				for i := int(next.Add(1)) - 1; i < to; i = int(next.Add(1)) - 1 {
					d := wire.Deposit{Box: w.box, Token: wire.BoxToken(w.seed, uint32(i), w.box), Envelope: letter(uint64(i))}
					if _, _, err := o.queue.Deposit(ctx, d, netip.Prefix{}); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// bareDrain is the engine alone: it reads a page and deletes it in a synced transaction.
func bareDrain(count, page int) (time.Duration, error) {
	b, err := newBare()
	if err != nil {
		return 0, err
	}
	defer b.close()
	wb := b.db.NewWriteBatch()
	defer wb.Cancel()
	for i := range count {
		if err := wb.Set(binary.BigEndian.AppendUint64(nil, uint64(i)), letter(uint64(i))); err != nil {
			return 0, err
		}
	}
	if err := wb.Flush(); err != nil {
		return 0, err
	}
	begun := time.Now()
	read := 0
	for from := 0; from < count; from += page {
		err := b.db.Update(func(tx *badger.Txn) error {
			for i := from; i < min(count, from+page); i++ {
				k := binary.BigEndian.AppendUint64(nil, uint64(i))
				item, err := tx.Get(k)
				if err != nil {
					return err
				}
				v, err := item.ValueCopy(nil)
				if err != nil {
					return err
				}
				read += len(v)
				if err := tx.Delete(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if read != count*wire.StrangerEnvelope {
		return 0, fmt.Errorf("the engine read %d bytes", read)
	}
	return time.Since(begun), nil
}

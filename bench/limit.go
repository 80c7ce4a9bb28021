package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// limitProtocol carries the yardstick's messages.
const limitProtocol = "/sotto-bench/limit/1"

// size is the bytes of a message's text.
const size = 200

// bare is one end of the yardstick S: a libp2p host and a Badger database, and nothing else.
type bare struct {
	host host.Host
	db   *badger.DB
	dir  string
}

func newBare() (*bare, error) {
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return nil, err
	}
	opt := badger.DefaultOptions(dir).WithSyncWrites(true).WithLogger(nil).WithMemTableSize(8 << 20).WithNumMemtables(2).
		WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20).WithBlockCacheSize(8 << 20).WithIndexCacheSize(8 << 20).WithCompression(0)
	db, err := badger.Open(opt)
	if err != nil {
		return nil, err
	}
	h, err := newHost()
	if err != nil {
		return nil, err
	}
	return &bare{host: h, db: db, dir: dir}, nil
}

// newHost is a host with the transports that sotto uses.
func newHost() (host.Host, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	sk, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return libp2p.New(libp2p.Identity(sk), libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(quic.NewTransport),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
}

func (b *bare) close() {
	_ = b.host.Close()
	_ = b.db.Close()
	_ = os.RemoveAll(b.dir)
}

// commit puts values in one synced transaction, as little as can be called storing.
func (b *bare) commit(ids []uint64, text []byte) error {
	return b.db.Update(func(tx *badger.Txn) error {
		for _, id := range ids {
			if err := tx.Set(binary.BigEndian.AppendUint64(nil, id), text); err != nil {
				return err
			}
		}
		return nil
	})
}

// yardstick is S: a stream between two bare ends, each message committed and synced at both, then acknowledged.
type yardstick struct {
	from, to *bare
	stream   network.Stream
	connect  time.Duration
}

func newYardstick(ctx context.Context) (*yardstick, error) {
	from, err := newBare()
	if err != nil {
		return nil, err
	}
	to, err := newBare()
	if err != nil {
		return nil, err
	}
	to.host.SetStreamHandler(limitProtocol, func(s network.Stream) { serveLimit(to, s) })
	begun := time.Now()
	if err := from.host.Connect(ctx, peer.AddrInfo{ID: to.host.ID(), Addrs: to.host.Addrs()}); err != nil {
		return nil, err
	}
	connect := time.Since(begun)
	stream, err := from.host.NewStream(ctx, to.host.ID(), limitProtocol)
	return &yardstick{from: from, to: to, stream: stream, connect: connect}, err
}

func (y *yardstick) close() {
	_ = y.stream.Reset()
	y.from.close()
	y.to.close()
}

// serveLimit commits what has come, all that is there at once, and answers with the last id.
func serveLimit(b *bare, s network.Stream) {
	r := bufio.NewReaderSize(s, 1<<20)
	msg := make([]byte, 8+size)
	for {
		var ids []uint64
		for len(ids) == 0 || r.Buffered() >= len(msg) {
			if _, err := io.ReadFull(r, msg); err != nil {
				_ = s.Reset()
				return
			}
			ids = append(ids, binary.BigEndian.Uint64(msg))
		}
		if b.commit(ids, msg[8:]) != nil {
			_ = s.Reset()
			return
		}
		if _, err := s.Write(binary.BigEndian.AppendUint64(nil, ids[len(ids)-1])); err != nil {
			return
		}
	}
}

// one sends a single message and waits for its acknowledgement.
func (y *yardstick) one(id uint64) (time.Duration, error) {
	begun := time.Now()
	msg := append(binary.BigEndian.AppendUint64(nil, id), make([]byte, size)...)
	if err := y.from.commit([]uint64{id}, msg[8:]); err != nil {
		return 0, err
	}
	if _, err := y.stream.Write(msg); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(y.stream, msg[:8]); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}

// many sends count messages with at most window unacknowledged ones, the sender's commits shared as well.
func (y *yardstick) many(first uint64, count, window int) (time.Duration, error) {
	begun := time.Now()
	acked, failed := make(chan uint64, window), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 8)
		for last := first + uint64(count) - 1; ; {
			if _, err := io.ReadFull(y.stream, buf); err != nil {
				failed <- err
				return
			}
			id := binary.BigEndian.Uint64(buf)
			acked <- id
			if id == last {
				return
			}
		}
	})
	next, done, end := first, first, first+uint64(count)
	for next < end {
		batch := make([]uint64, 0, window)
		for next < end && next-done < uint64(window) {
			batch = append(batch, next)
			next++
		}
		if len(batch) > 0 {
			if err := y.offer(batch); err != nil {
				return 0, err
			}
		}
		select {
		case id := <-acked:
			done = id + 1
		case err := <-failed:
			return 0, fmt.Errorf("yardstick: %w", err)
		}
	}
	for done < end {
		done = <-acked + 1
	}
	wg.Wait()
	return time.Since(begun), nil
}

func (y *yardstick) offer(ids []uint64) error {
	text := make([]byte, size)
	if err := y.from.commit(ids, text); err != nil {
		return err
	}
	var out []byte
	for _, id := range ids {
		out = append(binary.BigEndian.AppendUint64(out, id), text...)
	}
	_, err := y.stream.Write(out)
	return err
}

package node

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"sotto/wire"
)

// BenchmarkSendOne is one item and its answer; BenchmarkRawEcho beside it is the limit: as many bytes over a bare stream.
func BenchmarkSendOne(b *testing.B) {
	p, q := start(b, nil), start(b, nil)
	friends(p, q)
	item := make([]byte, 400)
	to := q.Reach()
	send := func() {
		if err := p.Send(context.Background(), to, [][]byte{item}, func(int, wire.Answer) {}); err != nil {
			b.Fatal(err)
		}
	}
	send()
	b.ResetTimer()
	for b.Loop() {
		send()
	}
}

// BenchmarkSendMany is the same pipelined.
func BenchmarkSendMany(b *testing.B) {
	p, q := start(b, nil), start(b, nil)
	friends(p, q)
	items := make([][]byte, 1000)
	for i := range items {
		items[i] = make([]byte, 400)
	}
	to := q.Reach()
	for b.Loop() {
		q.mu.Lock()
		q.items = nil
		q.mu.Unlock()
		if err := p.Send(context.Background(), to, items, func(int, wire.Answer) {}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(items)*b.N)/b.Elapsed().Seconds(), "items/s")
}

// BenchmarkRawEcho writes 512 bytes on a bare libp2p stream and reads 27 back.
func BenchmarkRawEcho(b *testing.B) {
	h1, err := libp2p.New(libp2p.ListenAddrStrings(loopback[0]))
	if err != nil {
		b.Fatal(err)
	}
	defer h1.Close()
	h2, err := libp2p.New(libp2p.ListenAddrStrings(loopback[0]))
	if err != nil {
		b.Fatal(err)
	}
	defer h2.Close()
	h2.SetStreamHandler("/echo", func(s network.Stream) {
		buf := make([]byte, 512)
		for {
			if _, err := io.ReadFull(s, buf); err != nil {
				_ = s.Reset()
				return
			}
			if _, err := s.Write(buf[:27]); err != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h1.Connect(ctx, peer.AddrInfo{ID: h2.ID(), Addrs: h2.Addrs()}); err != nil {
		b.Fatal(err)
	}
	s, err := h1.NewStream(ctx, h2.ID(), "/echo")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 512)
	for b.Loop() {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf[:27]); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Reset()
}

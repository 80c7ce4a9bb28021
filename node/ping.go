package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multistream"

	"sotto/wire"
)

// pingSize is the body of a ping and of its answer, which are the same bytes (PROTOCOL 13.5).
const pingSize = 16

// pingDeadline bounds how long a ping may take to arrive.
const pingDeadline = 10 * time.Second

// servePing echoes one ping.
func servePing(s network.Stream, counts *counters) {
	_ = s.SetDeadline(time.Now().Add(pingDeadline))
	body, err := wire.ReadFrame(s, pingSize)
	if err == nil && (len(body) != pingSize || !ended(s)) {
		err = wire.ErrFrameSize
	}
	if err == nil {
		err = wire.WriteFrame(s, body)
	}
	if err != nil {
		counts.add(refusedPing)
		_ = s.Reset()
		return
	}
	_ = s.Close()
}

// ping makes a round trip on this very connection. A peer that answers without knowing the protocol is alive.
func ping(ctx context.Context, c network.Conn, id protocolID) (time.Duration, error) {
	start := time.Now()
	s, err := c.NewStream(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Reset() }()
	if err := s.SetProtocol(id); err != nil {
		return 0, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(d)
	}
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	err = echo(multistream.NewMSSelect(s, id), s.CloseWrite)
	var unknown multistream.ErrNotSupported[protocolID]
	if err != nil && !errors.As(err, &unknown) && !strings.Contains(err.Error(), "protocols not supported") {
		return 0, err
	}
	_ = s.Close()
	return time.Since(start), nil
}

// pingPeer makes a round trip on whichever connection carries streams to the peer.
func pingPeer(ctx context.Context, h host.Host, p peer.ID, id protocolID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pingDeadline)
	defer cancel()
	s, err := h.NewStream(network.WithAllowLimitedConn(ctx, "ping"), p, id)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	defer func() { _ = s.Reset() }()
	if d, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(d)
	}
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	start := time.Now()
	if err := echo(s, s.CloseWrite); err != nil {
		return 0, fmt.Errorf("ping %s: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	rtt := time.Since(start)
	_ = s.Close()
	return rtt, nil
}

func echo(rw interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
}, end func() error) error {
	body := make([]byte, pingSize)
	if _, err := rand.Read(body); err != nil {
		return err
	}
	if err := wire.WriteFrame(rw, body); err != nil {
		return err
	}
	_ = end()
	back, err := wire.ReadFrame(rw, pingSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, body) {
		return errors.New("echo differs")
	}
	return nil
}

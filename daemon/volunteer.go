package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sync/errgroup"

	"sotto/internal/clock"
	"sotto/mailbox"
	"sotto/node"
)

// RunVolunteer runs a volunteer on this machine's loopback until the context ends, with keys that are forgotten: for the
// demo and for trying things out. It keeps mail in dir, "" keeps none. ready gets the addresses to put into network.bootstrap and
// network.relays.
func RunVolunteer(ctx context.Context, dir string, c clock.Clock, log *slog.Logger, ready func(bootstrap, relays []string)) error {
	var keys [2]ed25519.PrivateKey
	for i := range keys {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return fmt.Errorf("make a volunteer's key: %w", err)
		}
		keys[i] = key
	}
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	v, err := node.NewVolunteer(node.VolunteerConfig{
		ServiceKey: keys[0], DHTKey: keys[1], ServicePort: ports[0], DHTPort: ports[1],
		Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"}, AllowPrivate: true, Clock: c, Log: log,
	})
	if err != nil {
		return err
	}
	ready(v.Addrs(), v.ServiceAddrs())
	if dir == "" {
		return v.Run(ctx)
	}
	return errors.Join(serveMail(ctx, dir, keys[0], v, c, log), v.Close())
}

// serveMail runs a volunteer with a mailbox beside it.
func serveMail(ctx context.Context, dir string, key ed25519.PrivateKey, v *node.Volunteer, c clock.Clock, log *slog.Logger) error {
	queue, err := mailbox.OpenQueue(mailbox.QueueConfig{Dir: dir, Clock: c, Log: log, Offset: v.ClockOffset, Inspect: mailbox.InspectRecord, Limits: mailbox.Limits{Reserve: 32 << 20}})
	if err != nil {
		return err
	}
	sc := mailbox.ServerConfig{Key: key, Put: v.PutRecord, Clock: c, Log: log}
	sc.Terms.RegisterBits = 12 // for trying out: nobody should wait
	server, err := mailbox.NewServer(queue, v.Service(), "", sc)
	if err != nil {
		return errors.Join(err, queue.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return v.Run(ctx) })
	g.Go(func() error { return mailbox.Run(ctx, queue, server) })
	return errors.Join(g.Wait(), queue.Close())
}

// freePorts finds UDP ports that nobody uses on the loopback.
func freePorts(n int) ([]int, error) {
	var ports []int
	var held []net.PacketConn
	var errs []error
	for range n {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			errs = append(errs, fmt.Errorf("find a free port: %w", err))
			break
		}
		held = append(held, c)
		ports = append(ports, c.LocalAddr().(*net.UDPAddr).Port)
	}
	for _, c := range held {
		errs = append(errs, c.Close())
	}
	return ports, errors.Join(errs...)
}

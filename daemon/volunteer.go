package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"sotto/internal/clock"
	"sotto/node"
)

// RunVolunteer runs a volunteer on this machine's loopback until the context ends, with keys that are forgotten: for the
// demo and for trying things out. ready gets the addresses to put into network.bootstrap and network.relays.
func RunVolunteer(ctx context.Context, c clock.Clock, log *slog.Logger, ready func(bootstrap, relays []string)) error {
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
	return v.Run(ctx)
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

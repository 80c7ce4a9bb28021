package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sotto/identity"
	"sotto/messenger"
	"sotto/store"
)

// bareFlag makes this program the yardstick of coldStart: a process that starts one host and says so.
const bareFlag = "bare-host"

// coldStart is `sotto up` on a home with many messages until it listens, against a process with one bare libp2p host.
func coldStart(ctx context.Context, o options) (figure, error) {
	h, err := newHome("127.0.0.1", nil, "")
	if err != nil {
		return figure{}, err
	}
	defer h.close()
	if err := fillHome(ctx, h.dir, o.rows); err != nil {
		return figure{}, fmt.Errorf("fill the store: %w", err)
	}
	var took, bare []time.Duration
	for range 7 {
		d, err := bareStart(ctx)
		if err != nil {
			return figure{}, err
		}
		bare = append(bare, d)
		if d, err = h.start(ctx); err != nil {
			return figure{}, err
		}
		h.stop()
		took = append(took, d)
	}
	m := median(took)
	return figure{
		got:  fmt.Sprintf("median %v = %.1f × a bare host", m.Round(time.Millisecond), ratio(m, median(bare))),
		beat: m <= 700*time.Millisecond,
		note: fmt.Sprintf("%d messages; slowest %v; a bare host %v", o.rows, quantile(took, 1).Round(time.Millisecond), median(bare).Round(time.Millisecond)),
	}, nil
}

// fillHome makes an identity with an open key file and a conversation of many messages.
func fillHome(ctx context.Context, dir string, rows int) error {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	seed, err := identity.NewSeed(rand.Reader)
	if err != nil {
		return err
	}
	keys, err := identity.CreateKeyFile(filepath.Join(data, "identity.key"), seed, identity.Unencrypted())
	if err != nil {
		return err
	}
	st, err := store.Open(ctx, store.Config{Dir: filepath.Join(data, "store"), Root: keys.Root(), Reserve: 32 << 20, Ballast: 32 << 20})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := messenger.Init(st, seed.Account(), "alice", messenger.Config{}); err != nil {
		return err
	}
	c := store.Contact{Account: [32]byte{1}, Name: "bob", State: messenger.ContactPending, Conv: [16]byte{2}, Created: time.Now()}
	if err := st.Update(func(tx *store.Tx) error { return tx.PutContact(c) }); err != nil {
		return err
	}
	for first := 0; first < rows; first += 100 {
		err := st.Update(func(tx *store.Tx) error {
			for i := first; i < min(first+100, rows); i++ {
				if err := putRow(tx, c, i); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func putRow(tx *store.Tx, c store.Contact, i int) error {
	row := store.Message{Conv: c.Conv, Order: uint64(i + 1), From: c.Account, N: uint64(i + 1), At: time.Now(), SentAt: time.Now(), Kind: 1, State: messenger.StateDelivered,
		Text: fmt.Sprintf("message %d of a long conversation, with the sort of length that a text usually has", i)}
	binary.BigEndian.PutUint64(row.ID[:], uint64(i+1))
	if err := tx.PutMessage(&row); err != nil {
		return err
	}
	_, err := tx.AppendEvent(messenger.EventMessage, []byte{0xa0})
	return err
}

// bareStart runs this program as a bare host and returns how long it took until that listened.
func bareStart(ctx context.Context) (time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	out, err := exec.CommandContext(ctx, self, "-"+bareFlag).Output()
	if err != nil {
		return 0, fmt.Errorf("bare host: %w: %s", err, out)
	}
	return time.Since(begun), nil
}

// bareHost is what bareStart runs.
func bareHost() error {
	h, err := newHost()
	if err != nil {
		return err
	}
	_, err = fmt.Println(h.Addrs())
	return err
}

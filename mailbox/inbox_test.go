package mailbox

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"sotto/internal/disk"
	"sotto/wire"
)

func prefix(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)
}

func TestABatchTakesNoMoreThanAQuarterFromOnePrefixWhileOthersWait(t *testing.T) {
	in := newInbox()
	put := func(from netip.Prefix, bytes int) {
		t.Helper()
		if err := in.put(&op{from: from, bytes: bytes, rows: opRows}, 1<<40); err != nil {
			t.Fatal(err)
		}
	}
	for range 500 {
		put(prefix(1), small+opBytes)
	}
	if n := size(in.take(), prefix(1)); n < batchBytes*9/10 || n > batchBytes {
		t.Fatalf("alone it has %d bytes", n)
	}
	put(prefix(2), small+opBytes)
	put(prefix(3), wire.MaxEnvelope+opBytes)
	batch := in.take()
	if n := size(batch, prefix(1)); n > batchBytes/4 || n < batchBytes/5 {
		t.Fatalf("%d bytes of the prefix that has most", n)
	}
	if size(batch, prefix(2)) == 0 || size(batch, prefix(3)) == 0 {
		t.Fatal("somebody did not have a turn")
	}
	for n := 10; n < 30; n++ {
		for range 50 {
			put(prefix(n), small+opBytes)
		}
	}
	batch = in.take()
	for n := 10; n < 30; n++ {
		if got := size(batch, prefix(n)); got == 0 || got > batchBytes/15 {
			t.Fatalf("prefix %d has %d bytes", n, got)
		}
	}
	left := in.waiting()
	for left > 0 {
		batch := in.take()
		if len(batch) == 0 {
			t.Fatalf("%d ops are never taken", left)
		}
		left -= len(batch)
	}
	if in.bytes != 0 || len(in.lines) != 0 || len(in.turn) != 0 {
		t.Fatalf("%d bytes, %d lines, %d turns are left", in.bytes, len(in.lines), len(in.turn))
	}
}

func size(batch []*op, from netip.Prefix) (n int) {
	for _, o := range batch {
		if o.from == from {
			n += o.bytes
		}
	}
	return n
}

func TestOwnersComeFirstAndLeaveHalfToDeposits(t *testing.T) {
	in := newInbox()
	for range 100 {
		if err := errors.Join(in.put(&op{bytes: 100_000, rows: 1000}, 0), in.put(&op{from: prefix(1), bytes: small + opBytes, rows: opRows}, 1<<40)); err != nil {
			t.Fatal(err)
		}
	}
	drop := &op{alone: func() error { return nil }}
	if err := in.put(drop, 0); err != nil {
		t.Fatal(err)
	}
	batch := in.take()
	owners := 0
	for _, o := range batch {
		if !o.from.IsValid() {
			owners++
		}
	}
	if owners < 4 || owners > 7 || len(batch)-owners < 30 {
		t.Fatalf("%d owners and %d deposits", owners, len(batch)-owners)
	}
	for {
		batch = in.take()
		if len(batch) == 0 {
			t.Fatal("the drop was never taken")
		}
		for _, o := range batch {
			if o == drop && len(batch) > 1 {
				t.Fatal("the drop was not alone")
			}
		}
		if batch[0] == drop {
			break
		}
	}
	if err := in.put(&op{from: prefix(1), bytes: 2 << 20}, 1<<20); !errors.Is(err, wire.ErrOverloaded) {
		t.Fatal("an inbox without end: ", err)
	}
}

func TestBelowTheReserveOwnersAreServedAndNothingNewIsTaken(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 9)
	s.mustPut(t, id, 0)
	s.stop()
	free, err := disk.Free(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Limits.Reserve = free * 2 // a quarter of that is free
	s = open(t, cfg)
	wantErr(t, s.put(id, 1), wire.ErrOverloaded)
	_, err = s.Register(boxID(2), Admit{})
	wantErr(t, err, wire.ErrOverloaded)
	_, err = s.Pool(id, [][16]byte{{1}}, nil)
	wantErr(t, err, wire.ErrOverloaded)
	if !s.Stats().Full {
		t.Fatal("status does not tell")
	}
	if n := s.ack(t, id, s.all(t, id)[0].ID); n != 1 {
		t.Fatal(n)
	}
	s.stop()
	cfg.Limits.Reserve = 1 << 60
	q, err := OpenQueue(cfg)
	if err != nil { // less than a start needs, on this disk
		return
	}
	s = serve(t, q)
	_, err = s.Ack(context.Background(), id, []uint64{1})
	wantErr(t, err, wire.ErrOverloaded)
}

func TestAFullDiskLosesNothingAndIsLeftAgain(t *testing.T) {
	const reserve = 96 << 20
	dir := t.TempDir()
	if !mountTmpfs(t, dir, 288<<20) {
		t.Skip("needs a file system of its own")
	}
	cfg, _ := testConfig(t)
	cfg.Dir, cfg.Limits.Reserve = filepath.Join(dir, "queue"), reserve
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	free, err := disk.Free(dir)
	if err == nil {
		err = errors.Join(disk.WriteZeros(filler, max(0, free-reserve-(16<<20))), filler.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s.grant(t, id, 0, 400)
	put, kept := 0, 0
	fill := func() {
		t.Helper()
		for err = nil; err == nil && put < 390; put++ {
			if err = s.putFrom(id, put, wire.MaxEnvelope, netip.Prefix{}); err == nil {
				kept++
			}
		}
		wantErr(t, err, wire.ErrOverloaded)
	}
	fill()
	if n := len(s.all(t, id)); n != kept {
		t.Fatalf("%d of %d", n, kept)
	}
	kept -= s.ack(t, id, 1)
	s.stop()
	s = open(t, cfg)
	fill() // the engine made some room when it closed
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if err := s.putFrom(id, 399, wire.MaxEnvelope, netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	if n := len(s.all(t, id)); n != kept+1 {
		t.Fatalf("%d of %d", n, kept+1)
	}
	s.wantSound(t)
}

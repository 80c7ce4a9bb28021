//go:build unix

package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
)

func TestADirectoryStaysLockedWhileAGuardChildOutlivesItsParent(t *testing.T) {
	cfg := killedStore(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORE_TEST_CHILD=guard")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	parent := cfg
	parent.Probe = func(_ context.Context, _ string, lock *os.File) error {
		child.ExtraFiles = []*os.File{lock}
		forking.Lock()
		defer forking.Unlock()
		return errors.Join(child.Start(), lock.Close(), errors.New("died")) // closed without unlocking, as by a death
	}
	_, _ = Open(context.Background(), parent)
	_, err = Open(context.Background(), cfg)
	wantErr(t, err, ErrLocked)
	if err := errors.Join(in.Close(), child.Wait()); err != nil {
		t.Fatal(err)
	}
	if d := open(t, cfg).Damage(); len(d) > 0 {
		t.Fatal(d)
	}
}

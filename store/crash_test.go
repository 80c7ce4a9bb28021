package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sotto/internal/fault"
)

// TestMain turns the test binary into the process that a crash test kills.
func TestMain(m *testing.M) {
	switch os.Getenv("STORE_TEST_CHILD") {
	case "workload":
		n, _ := strconv.Atoi(os.Getenv("STORE_TEST_PASS"))
		if err := workload(os.Getenv("STORE_TEST_DIR"), fault.New(os.Getenv("STORE_TEST_POINT"), n), os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "open":
		_, err := Open(context.Background(), Config{Dir: os.Getenv("STORE_TEST_DIR"), Root: testRoot, Reserve: -1, Ballast: -1})
		fmt.Println(err)
		os.Exit(0)
	case "guard":
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fastDir is a directory in memory where there is one: what a killed process wrote is there either way.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func crashConfig(dir string, points *fault.Points) Config {
	return Config{Dir: dir, Root: testRoot, Fault: points, Reserve: 1 << 20, Ballast: 1 << 20}
}

const workloadSteps = 30

// workload opens, writes, changes epochs, closes and opens again, and says after each durable write that it is.
func workload(dir string, points *fault.Points, out *os.File) error {
	for round := range 2 {
		s, err := Open(context.Background(), crashConfig(dir, points))
		if err != nil {
			return err
		}
		for i := round*workloadSteps + 1; i <= (round+1)*workloadSteps; i++ {
			if err := s.Update(func(tx *Tx) error { return workStep(tx, i) }); err != nil {
				return err
			}
			fmt.Fprintln(out, "ack", i)
			if i%20 == 10 {
				if err := s.NewEpoch(); err != nil {
					return err
				}
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "done")
	return nil
}

func workStep(tx *Tx, i int) error {
	_, err := tx.AppendEvent("message", []byte{byte(i)})
	return errors.Join(err,
		tx.PutMessage(testMessage(id16(1), i)),
		tx.PutSession(Session{ID: id16(2), Account: id32(1), State: []byte(strconv.Itoa(i))}),
		tx.Reserve(id16(2), 0, uint32(i)),
		tx.PutOutgoing(&Outgoing{Account: id32(1), MsgID: id16(i), Item: []byte{1}}),
		tx.PutSecret(SecretRow{Name: "latest", Value: []byte(strconv.Itoa(i))}))
}

func TestTheListOfCrashPointsIsWhatAStorePasses(t *testing.T) {
	points := fault.New("", 0)
	dev, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	if err := workload(fastDir(t)+"/store", points, dev); err != nil {
		t.Fatal(err)
	}
	passed, listed := slices.Sorted(maps.Keys(points.Passed())), CrashPoints()
	slices.Sort(listed)
	if !slices.Equal(passed, listed) {
		t.Errorf("passed %q\nlisted %q", passed, listed)
	}
}

// diskActs are calls that change what is on disk; they belong into the functions that have crash points.
var diskActs = regexp.MustCompile(`\.(Sync|Commit|WriteAt)\(|os\.(Rename|WriteFile)\(`)

func TestEverySyncCommitAndRenameHasACrashPoint(t *testing.T) {
	allowed := map[string]int{
		"files.go":   2, // writeAt: write and sync
		"ballast.go": 1, // between its points
		"commit.go":  0, // txn.Commit is passed to around as a value
		"open.go":    1, // the head file at a clean close: nothing depends on it
		"check.go":   1, // moving older copies, on which nothing depends
		"salvage.go": 1, // a scratch file
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "disk_") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found, want := diskActs.FindAll(b, -1), allowed[name]; len(found) != want {
			t.Errorf("%s changes the disk in %d places, %d have a point: %q", name, len(found), want, found)
		}
	}
}

func TestAKillAtEveryPointLosesNothing(t *testing.T) {
	for _, point := range CrashPoints() {
		for _, pass := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", point, pass), func(t *testing.T) {
				t.Parallel()
				dir := fastDir(t) + "/store"
				acked, done := killAt(t, dir, point, pass)
				if done && pass == 1 {
					t.Fatal("the point was not reached")
				}
				checkAfterKill(t, dir, acked)
			})
		}
	}
}

// killAt runs the workload until it dies at a point and returns the last write it was told is durable.
func killAt(t *testing.T, dir, point string, pass int) (acked int, done bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=workload", "STORE_TEST_DIR="+dir, "STORE_TEST_POINT="+point, "STORE_TEST_PASS="+strconv.Itoa(pass))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	forking.Lock()
	err := cmd.Start()
	forking.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "ack "); ok {
			acked, _ = strconv.Atoi(n)
		}
		done = lines.Text() == "done"
	}
	if stderr.Len() > 0 || (err == nil) != done {
		t.Fatalf("the child ended by itself: %v\n%s", err, stderr.String())
	}
	return acked, done
}

func checkAfterKill(t *testing.T, dir string, acked int) {
	t.Helper()
	s := open(t, crashConfig(dir, nil))
	if d := s.Damage(); len(d) > 0 {
		t.Fatal("a kill looks like damage: ", d)
	}
	last := 0
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(id16(1), MessagesQuery{})
		last = len(list)
		if last < acked || last > acked+1 {
			t.Fatalf("%d messages, %d acknowledged", last, acked)
		}
		if last == 0 {
			return err
		}
		session, err2 := tx.Session(id16(2))
		secret, err3 := tx.GetSecret("latest")
		n, err4 := tx.CountAllOutgoing()
		events, err5 := tx.EventsAfter(0, 0)
		want := strconv.Itoa(last)
		if string(session.State) != want || string(secret.Value) != want || n != last || len(events) != last {
			t.Fatalf("%d messages, session %s, secret %s, %d outgoing, %d events", last, session.State, secret.Value, n, len(events))
		}
		return errors.Join(err, err2, err3, err4, err5)
	})
	if _, next, ok := s.Floor(id16(2)); acked > 0 && (!ok || int(next) <= acked) {
		t.Fatalf("the floor is %d, %d was acknowledged", next, acked)
	}
	if report, err := s.Deep(context.Background()); err != nil || len(report.Damage) > 0 {
		t.Fatal(report, err)
	}
	_, floor, _ := s.Floor(id16(2))
	update(t, s, func(tx *Tx) error { return tx.Reserve(id16(2), 0, max(floor, uint32(last+1))) })
	if last > 0 {
		wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(id16(2), 0, uint32(last)) }), ErrRolledBack)
	}
	if err := errors.Join(s.NewEpoch(), s.Close()); err != nil {
		t.Fatal(err)
	}
	again := open(t, crashConfig(dir, nil))
	if d := again.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
}

func TestASecondProcessIsToldThatTheDirectoryIsInUse(t *testing.T) {
	cfg := testConfig(t)
	open(t, cfg)
	_, err := Open(context.Background(), cfg)
	wantErr(t, err, ErrLocked)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=open", "STORE_TEST_DIR="+cfg.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), ErrLocked.Error()) {
		t.Fatalf("the other process got %q, %v", out, err)
	}
}

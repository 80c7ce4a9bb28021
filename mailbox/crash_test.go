package mailbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sotto/internal/fault"
	"sotto/wire"
)

// TestMain turns the test binary into the process that a crash test kills.
func TestMain(m *testing.M) {
	number := func(name string) int {
		n, _ := strconv.Atoi(os.Getenv("MAILBOX_TEST_" + name))
		return n
	}
	dir := os.Getenv("MAILBOX_TEST_DIR")
	var err error
	switch os.Getenv("MAILBOX_TEST_CHILD") {
	case "steps":
		err = steps(dir, fault.New(os.Getenv("MAILBOX_TEST_POINT"), number("PASS")), os.Stdout)
	case "load":
		err = load(dir, number("ROUND"), os.Stdout)
	case "million":
		err = million(dir, os.Stdout)
	case "open":
		_, err = OpenQueue(QueueConfig{Dir: dir, Limits: Limits{Reserve: -1}})
		fmt.Println(err)
		err = nil
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const crashBoxes = 3

// steps opens, deposits, acknowledges, lets days go, closes and opens again, and says after each durable write that it is.
func steps(dir string, points *fault.Points, out io.Writer) error {
	h := newHands()
	cfg := QueueConfig{Dir: dir, Clock: h, Uptime: h.Uptime, Fault: points, Limits: Limits{Reserve: 1, KeepDays: 1, LotBytes: 64 << 10}}
	n := 0
	for range 2 {
		q, err := OpenQueue(cfg)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		for range 3 {
			if err := someSteps(q, h, &n, out); err != nil {
				cancel()
				return err
			}
		}
		cancel()
		if err := errors.Join(<-done, q.Close()); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "done")
	return nil
}

func someSteps(q *Queue, h *hands, n *int, out io.Writer) error {
	ctx := context.Background()
	for i := range 20 {
		box := boxID(i % crashBoxes)
		if _, err := q.Register(box, Admit{}); err != nil {
			return err
		}
		if _, err := q.Pool(box, [][16]byte{wire.PoolHash(token(*n))}, nil); err != nil {
			return err
		}
		if _, _, err := q.Deposit(ctx, wire.Deposit{Box: box, Token: token(*n), Envelope: envelope(*n, small)}, netip.Prefix{}); err != nil {
			return err
		}
		fmt.Fprintln(out, "put", i%crashBoxes, *n, wire.HeldUntil(h.Now().Unix(), 1)/daySeconds)
		if *n%2 == 0 {
			if err := ackOne(q, box, i%crashBoxes, *n, out); err != nil {
				return err
			}
		}
		*n++
	}
	if err := q.freeLotsOf(ctx); err != nil {
		return err
	}
	h.pass(25 * time.Hour)
	return dropOldest(q, out)
}

func ackOne(q *Queue, box wire.BoxID, name, n int, out io.Writer) error {
	page, err := q.Fetch(box, 0, 0)
	if err != nil {
		return err
	}
	for _, m := range page.Mail {
		if m.Spent != wire.PoolHash(token(n)) {
			continue
		}
		fmt.Fprintln(out, "ack", name, n)
		if _, err := q.Ack(context.Background(), box, []uint64{m.ID}); err != nil {
			return err
		}
		fmt.Fprintln(out, "acked", name, n)
	}
	return nil
}

// dropOldest lets the oldest day go if it is over, and says so before and after.
func dropOldest(q *Queue, out io.Writer) error {
	q.mu.Lock()
	days := slices.Sorted(maps.Keys(q.days))
	q.mu.Unlock()
	if len(days) == 0 || q.now().Unix() < int64(days[0])*daySeconds {
		return nil
	}
	fmt.Fprintln(out, "drop", days[0])
	if err := q.expireDay(context.Background()); err != nil {
		return err
	}
	q.mu.Lock()
	_, still := q.days[days[0]]
	q.mu.Unlock()
	if !still {
		fmt.Fprintln(out, "dropped", days[0])
	}
	return nil
}

// load does the same by many goroutines, for ever.
func load(dir string, round int, out io.Writer) error {
	h := newHands()
	h.pass(time.Duration(round) * 30 * time.Hour)
	q, err := OpenQueue(QueueConfig{
		Dir: dir, Clock: h, Uptime: h.Uptime, Limits: Limits{Reserve: -1, KeepDays: 1, LotBytes: 256 << 10, Slow: -1},
		Offset: func() (time.Duration, bool) { return 0, true }, // days pass between two rounds
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	errs := make(chan error, 32)
	go func() { errs <- q.Run(ctx) }()
	for i := range crashBoxes {
		if _, err := q.Register(boxID(i), Admit{Vouched: true}); err != nil {
			return err
		}
	}
	var n atomic.Int64
	n.Store(int64(round) * 1_000_000)
	clocks := make(chan struct{}, 1)
	for w := range 12 {
		go func() { errs <- loadWriter(q, h, w%crashBoxes, &n, clocks, out) }()
	}
	for b := range crashBoxes {
		go func() { errs <- loadOwner(q, b, out) }()
	}
	go func() {
		for range clocks {
			h.pass(25 * time.Hour)
			for range 3 {
				h.move(0, time.Hour)
				if err := dropOldest(q, out); err != nil {
					errs <- err
				}
			}
			if err := q.freeLotsOf(ctx); err != nil {
				errs <- err
			}
		}
	}()
	return <-errs
}

func loadWriter(q *Queue, h *hands, name int, next *atomic.Int64, clocks chan struct{}, out io.Writer) error {
	for {
		var add, left [][16]byte
		first := int(next.Add(8)) - 8
		for i := range 8 {
			add = append(add, wire.PoolHash(token(first+i)))
		}
		if _, err := q.Pool(boxID(name), add, nil); err != nil {
			return err
		}
		for i := range 8 {
			// The day is taken before: if the clock moves meanwhile the promise is a longer one.
			until := wire.HeldUntil(h.Now().Unix(), 1) / daySeconds
			d := wire.Deposit{Box: boxID(name), Token: token(first + i), Envelope: envelope(first+i, small)}
			if _, _, err := q.Deposit(context.Background(), d, netip.Prefix{}); err != nil && !errors.Is(err, wire.ErrRefused) { // full until its owner comes
				return err
			} else if err != nil {
				left = append(left, add[i])
			} else {
				fmt.Fprintln(out, "put", name, first+i, until)
			}
		}
		if _, err := q.Pool(boxID(name), nil, left); err != nil {
			return err
		}
		if first/8%64 == 0 {
			select {
			case clocks <- struct{}{}:
			default:
			}
		}
	}
}

func loadOwner(q *Queue, name int, out io.Writer) error {
	news, stop := q.Watch(boxID(name))
	defer stop()
	after := uint64(0)
	for {
		page, err := q.Fetch(boxID(name), after, 20)
		if err != nil {
			return err
		}
		if len(page.Mail) == 0 {
			<-news
			continue
		}
		var ids []uint64
		var said bytes.Buffer
		for _, m := range page.Mail {
			after = m.ID
			if n := be.Uint64(m.Envelope); n%3 != 0 {
				ids = append(ids, m.ID)
				fmt.Fprintln(&said, name, n)
			}
		}
		for _, when := range []string{"ack", "acked"} {
			if when == "acked" {
				if _, err := q.Ack(context.Background(), boxID(name), ids); err != nil {
					return err
				}
			}
			for l := range strings.Lines(said.String()) {
				fmt.Fprint(out, when, " ", l)
			}
		}
	}
}

// known is what the outside knows of a queue from what children said.
type known struct {
	put           map[[2]int]uint16 // box and number: until which day
	ack, acked    map[[2]int]bool
	drop, dropped uint16 // the newest day
}

func newKnown() *known {
	return &known{put: map[[2]int]uint16{}, ack: map[[2]int]bool{}, acked: map[[2]int]bool{}}
}

// hear reads one line and reports whether it was the last of a child that ended by itself.
func (k *known) hear(t *testing.T, line string) (done bool) {
	var what string
	var a, b, c int
	fields, _ := fmt.Sscan(line, &what, &a, &b, &c)
	switch {
	case what == "put" && fields == 4:
		k.put[[2]int{a, b}] = uint16(c)
	case what == "ack" && fields == 3:
		k.ack[[2]int{a, b}] = true
	case what == "acked" && fields == 3:
		k.acked[[2]int{a, b}] = true
	case what == "drop" && fields == 2:
		k.drop = max(k.drop, uint16(a))
	case what == "dropped" && fields == 2:
		k.dropped = max(k.dropped, uint16(a))
	case what == "done":
		return true
	default:
		t.Fatalf("a child said %q", line)
	}
	return false
}

// check compares what a queue holds with what was heard.
func (k *known) check(t *testing.T, cfg QueueConfig) {
	t.Helper()
	s := open(t, cfg)
	defer s.stop()
	s.wantSound(t)
	there := map[[2]int]bool{}
	for box := range crashBoxes {
		if _, err := s.Standing(boxID(box)); errors.Is(err, wire.ErrNotFound) {
			continue
		}
		for _, m := range s.all(t, boxID(box)) {
			n := int(be.Uint64(m.Envelope))
			id := [2]int{box, n}
			switch {
			case there[id]:
				t.Errorf("%v is there twice", id)
			case !bytes.Equal(m.Envelope, envelope(n, small)):
				t.Errorf("%v has other bytes", id)
			case k.acked[id]:
				t.Errorf("%v is handed out after its ack", id)
			}
			there[id] = true
		}
	}
	retries := 0
	for id, until := range k.put {
		switch {
		case k.ack[id] || until <= k.drop:
		case !there[id]:
			t.Errorf("%v, held until day %d, is lost", id, until)
		}
		if until <= k.drop || retries >= 20 {
			continue
		}
		retries++
		before := s.Stats().Waiting
		if err := s.put(boxID(id[0]), id[1]); err != nil || s.Stats().Waiting != before {
			t.Errorf("%v once more: %v", id, err)
		}
	}
	s.wantSound(t)
	s.stop()
	if r, err := VerifyQueue(cfg.Dir); err != nil || len(r.Faults) > 0 {
		t.Fatal(r, err)
	}
}

func child(t *testing.T, what, dir string, env ...string) (cmd *exec.Cmd, out *bufio.Scanner, stderr *bytes.Buffer) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MAILBOX_TEST_CHILD="+what, "MAILBOX_TEST_DIR="+dir)
	cmd.Env = append(cmd.Env, env...)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(pipe), stderr
}

func TestTheListOfCrashPointsIsWhatAQueuePasses(t *testing.T) {
	points := fault.New("", 0)
	if err := steps(fastDir(t)+"/queue", points, io.Discard); err != nil {
		t.Fatal(err)
	}
	passed, listed := slices.Sorted(maps.Keys(points.Passed())), CrashPoints()
	slices.Sort(listed)
	if !slices.Equal(passed, listed) {
		t.Errorf("passed %q\nlisted %q", passed, listed)
	}
}

// diskActs are calls that change what is on disk; they belong into what has crash points.
var diskActs = regexp.MustCompile(`\.(Sync|Commit|WriteAt|DropPrefix)\(|os\.(Rename|WriteFile)\(`)

func TestEveryCommitAndRenameHasACrashPoint(t *testing.T) {
	allowed := map[string]int{
		"engine.go":    2, // the head, and moving older copies of MANIFEST on which nothing depends
		"retention.go": 1, // the drop
		"operate.go":   2, // a backup, which is looked through as a whole before it counts
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := diskActs.FindAll(b, -1); len(found) != allowed[name] {
			t.Errorf("%s changes the disk in %d places, %d have a point: %q", name, len(found), allowed[name], found)
		}
	}
}

func TestAKillAtEveryPointLosesNoPromise(t *testing.T) {
	for _, point := range CrashPoints() {
		for _, pass := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", point, pass), func(t *testing.T) {
				t.Parallel()
				dir := fastDir(t) + "/queue"
				cmd, out, stderr := child(t, "steps", dir, "MAILBOX_TEST_POINT="+point, "MAILBOX_TEST_PASS="+strconv.Itoa(pass))
				k, done := newKnown(), false
				for out.Scan() {
					done = k.hear(t, out.Text())
				}
				if err := cmd.Wait(); stderr.Len() > 0 || (err == nil) != done {
					t.Fatalf("the child ended by itself: %v\n%s", err, stderr.String())
				}
				if done && pass == 1 {
					t.Fatal("the point was not reached")
				}
				h := newHands()
				h.pass(20 * aDay)
				k.check(t, QueueConfig{Dir: dir, Clock: h, Uptime: h.Uptime, Limits: Limits{Reserve: -1, KeepDays: 30}})
			})
		}
	}
}

// A campaign sets MAILBOX_TEST_KILLS.
func TestKillsAtRandomUnderLoadLoseNoPromise(t *testing.T) {
	kills := 40
	if n, err := strconv.Atoi(os.Getenv("MAILBOX_TEST_KILLS")); err == nil {
		kills = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	dir := fastDir(t) + "/queue"
	k := newKnown()
	for round := range kills {
		cmd, out, stderr := child(t, "load", dir, "MAILBOX_TEST_ROUND="+strconv.Itoa(round+1))
		lines := 1 + random.IntN(300)
		if random.IntN(8) == 0 {
			lines = 1 + random.IntN(2000)
		}
		var once sync.Once
		for n := 0; out.Scan(); n++ {
			if n == lines {
				once.Do(func() { _ = cmd.Process.Kill() })
			}
			k.hear(t, out.Text())
		}
		if _ = cmd.Wait(); stderr.Len() > 0 {
			t.Fatalf("the child ended by itself:\n%s", stderr.String())
		}
		if round%8 == 7 || round == kills-1 {
			h := newHands()
			h.pass(time.Duration(round+1)*30*time.Hour + time.Hour)
			k.check(t, QueueConfig{Dir: dir, Clock: h, Uptime: h.Uptime, Limits: Limits{Reserve: -1, KeepDays: 30}})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d kills, %d deposits, %d acknowledged, days gone until %s", kills, len(k.put), len(k.acked), dateOf(k.dropped))
}

func TestASecondProcessIsToldThatTheDirectoryIsInUse(t *testing.T) {
	cfg, _ := testConfig(t)
	open(t, cfg)
	_, err := OpenQueue(cfg)
	wantErr(t, err, ErrLocked)
	cmd, out, _ := child(t, "open", cfg.Dir)
	if !out.Scan() || !strings.Contains(out.Text(), ErrLocked.Error()) {
		t.Fatalf("the other process got %q", out.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

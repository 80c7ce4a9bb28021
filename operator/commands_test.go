package operator

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sotto/mailbox"
	"sotto/wire"
)

// does runs a command that must succeed and returns its stdout.
func does(t *testing.T, args ...string) string {
	t.Helper()
	code, o, e := run(t, context.Background(), args...)
	if code != 0 {
		t.Fatalf("%s: %d, %s%s", strings.Join(args, " "), code, o, e)
	}
	return o
}

// refuses runs a command that must end with the code and say something.
func refuses(t *testing.T, want int, says string, args ...string) {
	t.Helper()
	code, o, e := run(t, context.Background(), args...)
	if code != want || !strings.Contains(o+e, says) {
		t.Errorf("%s: %d (want %d), %s%s (want %q)", strings.Join(args, " "), code, want, o, e, says)
	}
}

func object(t *testing.T, text string) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return m
}

func TestQuickstartChecksWritesAndSaysWhatToDoNext(t *testing.T) {
	home := homeDir(t)
	port, dht := freePort(t), freePort(t)
	said := does(t, "quickstart", "--home", home, "--port", port, "--dht-port", dht, "--announce", "volunteer.example.org", "--quota", "100MiB", "--policy", "invite")
	for _, want := range []string{
		"✓ ports " + port, "clock", "disk: ", "wrote " + filepath.Join(home, configName), "keep a copy", "You cannot see", "100 MiB",
		"next: sotto-mailbox serve --home " + home, "share: /dns/volunteer.example.org/udp/" + dht + "/quic-v1/p2p/12D3", "sotto mailboxes add /dns/volunteer.example.org/udp/" + port, "--voucher CODE",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in:\n%s", want, said)
		}
	}
	c, err := loadConfig(home)
	if err != nil {
		t.Fatal(err)
	}
	if c.Mailbox.Quota != 100 || c.Mailbox.Mode != "invite" || len(c.Announce) != 1 || !c.Services.Relay || !c.Services.DHT || !c.Services.AutoNAT {
		t.Errorf("it wrote %+v", c)
	}
	before, _ := os.ReadFile(filepath.Join(home, configName))
	got := object(t, does(t, "quickstart", "--home", home, "--json"))
	if got["wrote"] != false || len(got["checks"].([]any)) != 4 || len(got["bootstrap"].([]any)) == 0 {
		t.Errorf("a second time: %v", got)
	}
	refuses(t, exitRefused, "--quota would do nothing", "quickstart", "--home", home, "--quota", "1GB")
	if after, _ := os.ReadFile(filepath.Join(home, configName)); string(after) != string(before) {
		t.Error("it changed a configuration that was there")
	}
	does(t, "config", "check", "--home", home)
}

func TestQuickstartNamesATakenPortAndASizeThatIsNone(t *testing.T) {
	_, _, _ = serve(t, homeDir(t), "--port", "0")
	port := freePort(t)
	_, _, _ = serve(t, homeDir(t), "--port", port)
	home := homeDir(t)
	refuses(t, exitFailed, "port "+port+" cannot be had", "quickstart", "--home", home, "--port", port, "--dht-port", freePort(t))
	for _, bad := range []string{"x", "-3GB", "0", "1XB", "", "1e99GB"} {
		refuses(t, exitUsage, "", "quickstart", "--home", homeDir(t), "--quota", bad)
	}
	refuses(t, exitUsage, "mailbox.quota = 1", "quickstart", "--home", homeDir(t), "--quota", "1MiB")
	refuses(t, exitUsage, "everybody", "quickstart", "--home", homeDir(t), "--policy", "everybody")
}

// guest registers a box at a volunteer.
func guest(t *testing.T, addr string, how func(key ed25519.PrivateKey) wire.Admission) (*mailbox.Client, *mailbox.Box, error) {
	t.Helper()
	h, key := front(t)
	c := mailbox.NewClient(h, "test", mailbox.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	box, err := c.Open(ctx, addr, key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = box.Register(ctx, how(key))
	return c, box, err
}

func with(voucher string) func(ed25519.PrivateKey) wire.Admission {
	return func(ed25519.PrivateKey) wire.Admission { return wire.Admission{Voucher: []byte(voucher)} }
}

// leave deposits one envelope.
func leave(t *testing.T, c *mailbox.Client, box *mailbox.Box, addr string, seed byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	token := wire.BoxToken([32]byte{seed}, 1, box.ID())
	if _, err := box.Pool(ctx, [][16]byte{wire.PoolHash(token)}, nil); err != nil {
		t.Fatal(err)
	}
	envelope := make([]byte, 8192)
	envelope[0] = seed
	if _, err := c.Deposit(ctx, addr, wire.Deposit{Box: box.ID(), Token: token, Envelope: envelope}); err != nil {
		t.Fatal(err)
	}
}

func TestVouchersAreHandedOutUsedOnceAndTakenBack(t *testing.T) {
	home := homeDir(t)
	s, _, stop := serve(t, home, "--network", "test", "--mailbox-mode", "invite")
	got := object(t, does(t, "clients", "invite", "--home", home, "-n", "3", "--json"))
	codes := got["vouchers"].([]any)
	if len(codes) != 3 || got["mailbox"] != bestFirst(s.Service)[0] || got["until"] == nil {
		t.Fatalf("%v", got)
	}
	line := does(t, "clients", "invite", "--home", home, "--days", "0")
	if !strings.HasPrefix(line, "sotto mailboxes add "+bestFirst(s.Service)[0]+" --voucher ") {
		t.Errorf("%s", line)
	}
	if _, _, err := guest(t, s.Service[0], with("made up")); err == nil {
		t.Error("a voucher that never was is honoured")
	}
	if _, _, err := guest(t, s.Service[0], with(codes[0].(string))); err != nil {
		t.Errorf("a voucher is not honoured: %v", err)
	}
	if _, _, err := guest(t, s.Service[0], with(codes[0].(string))); err == nil {
		t.Error("a voucher is honoured twice")
	}
	does(t, "clients", "deny", "--home", home, strings.ToLower(codes[1].(string)))
	if _, _, err := guest(t, s.Service[0], with(codes[1].(string))); err == nil {
		t.Error("a voucher that was taken back is honoured")
	}
	refuses(t, exitFailed, "no voucher that is honoured", "clients", "deny", "--home", home, "XXXX-XXXX")
	if got := object(t, does(t, "clients", "list", "--home", home, "--json")); got["vouchers"] != 2.0 || got["vouched"].(map[string]any)["boxes"] != 1.0 || got["mode"] != "invite" {
		t.Errorf("%v", got)
	}
	stop()
	if got := does(t, "clients", "list", "--home", home); !strings.Contains(got, "2 vouchers not yet used") {
		t.Errorf("offline: %s", got)
	}
	if err := os.WriteFile(filepath.Join(home, configName), []byte("[mailbox]\nmode = \"closed\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, exitRefused, "honours no vouchers", "clients", "invite", "--home", home)
}

func TestKeysOnTheListGetABoxAndOthersDoNot(t *testing.T) {
	home := homeDir(t)
	s, _, _ := serve(t, home, "--network", "test", "--mailbox-mode", "allowlist")
	var hash string
	allow := func(key ed25519.PrivateKey) wire.Admission {
		sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
		hash = hex.EncodeToString(sum[:])
		does(t, "clients", "allow", "--home", home, hash)
		return wire.Admission{}
	}
	if _, _, err := guest(t, s.Service[0], with("")); err == nil {
		t.Error("somebody who is not on the list got a box")
	}
	if _, _, err := guest(t, s.Service[0], allow); err != nil {
		t.Errorf("somebody on the list got none: %v", err)
	}
	if got := does(t, "clients", "list", "--home", home); !strings.Contains(got, "allowed "+hash) {
		t.Errorf("%s", got)
	}
	if got := object(t, does(t, "clients", "deny", "--home", home, "--json", hash)); got["denied"] != 1.0 {
		t.Errorf("%v", got)
	}
	refuses(t, exitUsage, "64 hex digits", "clients", "allow", "--home", home, "abc")
	refuses(t, exitRefused, "honours no vouchers", "clients", "invite", "--home", home)
}

func TestQuotaHoldsAtOnceAndAfterARestartAndChangesOneLine(t *testing.T) {
	home := homeDir(t)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	text := "# mine\nmax_users = 7\n[mailbox]\nnote = \"x # y\"\nquota = 100   # so much\n[services]\nrelay = false\n"
	if err := os.WriteFile(filepath.Join(home, configName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, stop := serve(t, home)
	if got := object(t, does(t, "quota", "set", "200MiB", "--home", home, "--json")); got["quota"] != float64(200<<20) {
		t.Errorf("%v", got)
	}
	if got := does(t, "quota", "show", "--home", home); !strings.Contains(got, "quota 200 MiB") {
		t.Errorf("%s", got)
	}
	b, err := os.ReadFile(filepath.Join(home, configName))
	if want := strings.Replace(text, "quota = 100   # so much", "quota = 200                 # so much", 1); err != nil || string(b) != want {
		t.Errorf("%v: it wrote %s", err, b)
	}
	stop()
	if got := does(t, "quota", "show", "--home", home); !strings.Contains(got, "quota 200 MiB") {
		t.Errorf("after a restart: %s", got)
	}
	does(t, "quota", "set", "150", "--home", home)
	refuses(t, exitUsage, "mailbox.quota = 1", "quota", "set", "1MiB", "--home", home)
	refuses(t, exitUsage, "want a number", "quota", "set", "much", "--home", home)
	if err := os.WriteFile(filepath.Join(home, configName), []byte("mailbox.quota = 100\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, exitFailed, "by hand", "quota", "set", "150", "--home", home)
	for name, text := range map[string]string{"no file": "", "no section": "max_users = 3\n", "no line": "[mailbox]\nmode = \"open\"\n[metrics]\nlisten = \"\"", "a comment": "[mailbox] # here\nquota=5000#x"} {
		want, err := parseConfig(text)
		if err != nil {
			t.Fatal(err)
		}
		want.Mailbox.Quota = 77
		if now, err := withQuota(text, want); err != nil || !strings.Contains(now, "quota = 77") {
			t.Errorf("%s: %v, %s", name, err, now)
		}
	}
}

func TestDrainTakesNothingNewHandsOutWhatIsThereAndCanBeStopped(t *testing.T) {
	home := homeDir(t)
	s, _, stop := serve(t, home, "--network", "test", "--mailbox-mode", "invite")
	codes := object(t, does(t, "clients", "invite", "--home", home, "-n", "2", "--json"))["vouchers"].([]any)
	c, box, err := guest(t, s.Service[0], with(codes[0].(string)))
	if err != nil {
		t.Fatal(err)
	}
	leave(t, c, box, s.Service[0], 1)
	code, said, warned := run(t, context.Background(), "drain", "--until", "2d", "--home", home)
	if code != 0 || !strings.Contains(said, "1 message in 1 box still to be fetched") || !strings.Contains(warned, "loses it") {
		t.Errorf("%d, %s%s", code, said, warned)
	}
	if _, _, err := guest(t, s.Service[0], with(codes[1].(string))); err == nil {
		t.Error("a draining mailbox took a box")
	}
	page, err := box.Fetch(t.Context(), 0, 0)
	if err != nil || len(page.Mail) != 1 {
		t.Errorf("a draining mailbox handed out %d, %v", len(page.Mail), err)
	}
	if got := does(t, "status", "--home", home); !strings.Contains(got, "! draining") || !strings.Contains(got, "drain --stop") {
		t.Errorf("%s", got)
	}
	if got := does(t, "health", "--home", home); !strings.HasPrefix(got, "ok\n  ! draining") {
		t.Errorf("%s", got)
	}
	refuses(t, exitFailed, "draining", "health", "--strict", "--home", home)
	stop()
	if got := object(t, does(t, "drain", "--home", home, "--json")); got["drain_until"] == nil {
		t.Errorf("offline: %v", got)
	}
	if got := object(t, does(t, "drain", "--stop", "--home", home, "--json")); got["drain_until"] != nil {
		t.Errorf("stopped: %v", got)
	}
	for _, bad := range []string{"yesterday", "2020-01-01", "0d", "-3d", "xd", "2026-13-01"} {
		refuses(t, exitUsage, "--until", "drain", "--until", bad, "--home", home)
	}
}

func TestABackupMadeWhileServingIsWholeAndCanServe(t *testing.T) {
	home := homeDir(t)
	s, _, stop := serve(t, home, "--network", "test", "--mailbox-mode", "invite")
	code := object(t, does(t, "clients", "invite", "--home", home, "--json"))["vouchers"].([]any)[0].(string)
	c, box, err := guest(t, s.Service[0], with(code))
	if err != nil {
		t.Fatal(err)
	}
	leave(t, c, box, s.Service[0], 1)
	dir := filepath.Join(t.TempDir(), "copy")
	if got := object(t, does(t, "backup", dir, "--home", home, "--json")); got["boxes"] != 1.0 || got["envelopes"] != 1.0 {
		t.Errorf("%v", got)
	}
	leave(t, c, box, s.Service[0], 2)
	refuses(t, exitUsage, "exists", "backup", dir, "--home", home)
	refuses(t, exitFailed, "must exist", "backup", filepath.Join(dir, "no", "where"), "--home", home)
	refuses(t, exitRefused, "verify a backup", "verify", "--home", home)
	if got := object(t, does(t, "verify", dir, "--json")); got["ok"] != true || got["envelopes"] != 1.0 || got["boxes"] != 1.0 {
		t.Errorf("%v", got)
	}
	stop()
	offline := filepath.Join(t.TempDir(), "offline")
	if got := does(t, "backup", offline, "--home", home); !strings.Contains(got, "2 messages") || !strings.Contains(got, "verified") {
		t.Errorf("%s", got)
	}
	if got := does(t, "verify", "--home", home); !strings.HasPrefix(got, "✓") || !strings.Contains(got, "2 messages") {
		t.Errorf("%s", got)
	}
	link := filepath.Join(filepath.Dir(home), "restored") // a short path, for the socket
	if err := os.Rename(dir, link); err != nil {
		t.Fatal(err)
	}
	again, _, _ := serve(t, link, "--network", "test")
	if peerID(again.Service[0]) != peerID(s.Service[0]) {
		t.Error("the restored volunteer is somebody else")
	}
	got := object(t, does(t, "stats", "--home", link, "--json"))
	if got["boxes"] != 1.0 || got["waiting"] != 1.0 || got["unaccounted"] != 0.0 || got["damaged"] != 0.0 {
		t.Errorf("restored: %v", got)
	}
	files, err := filepath.Glob(filepath.Join(filepath.Dir(offline), ".*part*"))
	if err != nil || len(files) != 0 {
		t.Errorf("left over: %v, %v", files, err)
	}
}

func TestVerifyFindsAMissingEnvelopeAndWillNotMakeAMailbox(t *testing.T) {
	dir := t.TempDir()
	refuses(t, exitUsage, "holds no mailbox", "verify", dir)
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("verify left %v", list)
	}
	home := homeDir(t)
	_, _, stop := serve(t, home)
	stop()
	does(t, "verify", filepath.Join(home, "mailbox"))
	tables, err := filepath.Glob(filepath.Join(home, "mailbox", "db", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(err, tables)
	}
	if err := os.Remove(tables[0]); err != nil {
		t.Fatal(err)
	}
	refuses(t, exitFailed, "it is missing", "verify", "--home", home)
}

func TestCommandsThatNeedAVolunteerSaySoAndThoseThatNeedFilesToo(t *testing.T) {
	home := homeDir(t)
	refuses(t, exitNotUp, "serve --home", "status", "--home", home)
	refuses(t, exitFailed, "no volunteer runs", "health", "--home", home)
	for _, args := range [][]string{{"stats"}, {"quota", "show"}, {"clients", "list"}, {"clients", "invite"}, {"drain"}, {"resume"}} {
		refuses(t, exitNotUp, "no mailbox lies there", append(args, "--home", home)...)
	}
	if got := does(t, "policy", "show", "--home", home); !strings.Contains(got, "open to everybody") || !strings.Contains(got, "You cannot see") {
		t.Errorf("%s", got)
	}
	if got := object(t, does(t, "policy", "show", "--json", "--home", home)); got["mode"] != "open" || got["relay"] != true {
		t.Errorf("%v", got)
	}
	off := homeDir(t)
	_, _, _ = serve(t, off, "--mailbox=false")
	refuses(t, exitFailed, "keeps no mailbox", "stats", "--home", off)
	if got := does(t, "status", "--home", off); !strings.Contains(got, "without a mailbox") {
		t.Errorf("%s", got)
	}
}

func TestStatusSaysInWordsWhatStandsAndWhatHelps(t *testing.T) {
	s := status{Services: Services{DHT: true, AutoNAT: true}, Mailbox: &mailboxStatus{
		Boxes: 412, Waiting: 9183, Bytes: 3 << 30, Ceiling: 20 << 30, Oldest: time.Unix(1, 0), OldestDays: 29,
		Lately: lately{Hours: 24, In: 18204, Out: 17990, Expired: 41, Refused: 3}, Policy: defaultConfig().policy(),
		Refused: map[string]uint64{"box full": 3},
		Wrong:   wrong(mailbox.QueueStats{Full: true, Free: 100 << 20}),
	}}
	got := s.words()
	for _, want := range []string{
		"● serving 412 boxes · 9,183 messages, 3 GiB of 20 GiB (15 %) · oldest 29 d of 30 d\n",
		"  24 h: in 18,204 · out 17,990 · expired 41 · refused 3\n",
		"policy: open to everybody, 128 KiB a message, 64 MiB and 4,096 messages a box, 30 d",
		"You cannot see: who, to whom, what.", "switched off: relay", "too full to take more: 100 MiB are free", "→ fix: free some of the disk", "refused 3 × mailbox: box full",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	for _, q := range []mailbox.QueueStats{{Failed: os.ErrClosed}, {Unaccounted: 1}} {
		if h := healthOf(status{Mailbox: &mailboxStatus{Wrong: wrong(q)}}, false); h.OK {
			t.Errorf("%+v is healthy", q)
		}
	}
}

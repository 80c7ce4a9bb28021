package operator

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"

	"sotto/mailbox"
)

func TestTheCommandsOfTheOperatorsGuideWork(t *testing.T) {
	text, err := os.ReadFile("../docs/OPERATORS.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range strings.Split(string(text), "<!-- try -->\n```sh\n")[1:] {
		body, _, ok := strings.Cut(block, "```")
		if !ok {
			t.Fatal("a block has no end")
		}
		script.WriteString(body)
	}
	ran := "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + strings.NewReplacer("14001", freePort(t), "14002", freePort(t), "9464", freePort(t)).Replace(script.String())
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-xeuo", "pipefail", "-c", ran)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(homeDir(t)))
	cmd.WaitDelay = 5 * time.Second // for what it left behind and holds its output
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{"● serving 0 boxes", "--voucher ", "2 vouchers not yet used", "quota 200 MiB", "sotto_mailbox_messages 0", "backed up to", "draining until", "serves on"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q was not said:\n%s", want, out)
		}
	}
}

// fetch gets a page of the metrics.
func fetch(t *testing.T, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestMetricsHaveTheFiguresOfTheBoardAndNoIdsAndAnswerOnlyHere(t *testing.T) {
	home, at := homeDir(t), "127.0.0.1:"+freePort(t)
	s, _, stop := serve(t, home, "--network", "test", "--mailbox-mode", "invite", "--metrics", at)
	code := object(t, does(t, "clients", "invite", "--home", home, "--json"))["vouchers"].([]any)[0].(string)
	c, box, err := guest(t, s.Service[0], with(code))
	if err != nil {
		t.Fatal(err)
	}
	leave(t, c, box, s.Service[0], 1)
	_, _, _ = guest(t, s.Service[0], with("wrong"))
	status, page := fetch(t, "http://"+at+"/metrics", "")
	if status != 200 || !strings.Contains(page, "sotto_mailbox_messages 1\n") || !strings.Contains(page, `sotto_mailbox_boxes{pool="vouched"} 1`) || !strings.Contains(page, "sotto_refused_total{") {
		t.Errorf("%d: %s", status, page)
	}
	if regexp.MustCompile(`[0-9a-f]{32}|12D3Koo|127\.0\.0\.1|\d+\.\d+\.\d+\.\d+`).MatchString(page) {
		t.Errorf("an id or an address is in it:\n%s", page)
	}
	board, err := os.ReadFile("../packaging/grafana.json")
	if err != nil || !json.Valid(board) {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../docs/OPERATORS.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\bsotto_[a-z_]+`).FindAllString(string(board)+string(guide), -1)
	if len(names) < 20 {
		t.Errorf("the board has only %v", names)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !strings.Contains(page, "# TYPE "+name+" ") {
			t.Errorf("there is no metric %s", name)
		}
	}
	if status, page := fetch(t, "http://"+at+"/healthz", ""); status != 200 || page != "ok\n" {
		t.Errorf("%d: %s", status, page)
	}
	if status, _ := fetch(t, "http://"+at+"/metrics", "rebound.example.org"); status != http.StatusForbidden {
		t.Errorf("a page in a browser is answered with %d", status)
	}
	if code := stop(); code != 0 {
		t.Errorf("stopped with %d", code)
	}
	refuses(t, exitUsage, "only loopback", "serve", "--home", homeDir(t), "--metrics", "0.0.0.0:9464")
	refuses(t, exitUsage, "want an address", "serve", "--home", homeDir(t), "--metrics", "9464")
}

func TestAnUnhealthyVolunteerIsSaidToBeByHealthzToo(t *testing.T) {
	at := "127.0.0.1:" + freePort(t)
	m, err := listenMetrics(Metrics{Listen: at}, func() status {
		return status{Mailbox: &mailboxStatus{Wrong: wrong(mailbox.QueueStats{Stuck: time.Hour})}}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenMetrics(Metrics{Listen: at}, nil); err == nil {
		t.Error("a taken port is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- m.run(ctx) }()
	if status, page := fetch(t, "http://"+at+"/healthz", ""); status != http.StatusServiceUnavailable || !strings.Contains(page, "✗ a write hangs since 1h0m0s") {
		t.Errorf("%d: %s", status, page)
	}
	if status, page := fetch(t, "http://"+at+"/metrics", ""); status != 200 || !strings.Contains(page, "sotto_healthy 0") {
		t.Errorf("%d: %s", status, page)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestEachServiceCanBeSwitchedOff(t *testing.T) {
	offers := func(switches string, host func(serviceAddrs, bootstrap []string) string) []protocol.ID {
		home := homeDir(t)
		if err := os.MkdirAll(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, configName), []byte("[services]\n"+switches), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, stop := serve(t, home)
		defer stop()
		info, err := peer.AddrInfoFromString(host(s.Service, s.Bootstrap))
		if err != nil {
			t.Fatal(err)
		}
		h, _ := front(t)
		if err := h.Connect(t.Context(), *info); err != nil {
			t.Fatal(err)
		}
		list, err := h.Peerstore().GetProtocols(info.ID)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	service := func(s, _ []string) string { return s[0] }
	dht := func(_, b []string) string { return b[0] }
	for _, c := range []struct {
		name, off string
		host      func(_, _ []string) string
		what      protocol.ID
	}{
		{"relay", "relay = false", service, proto.ProtoIDv2Hop},
		{"autonat", "autonat = false", service, "/libp2p/autonat/1.0.0"},
		{"autonat", "autonat = false", service, "/libp2p/autonat/2/dial-request"},
		{"dht", "dht = false", dht, "/sotto/kad/1.0.0"},
	} {
		if list := offers("", c.host); !slices.Contains(list, c.what) {
			t.Errorf("%s is not offered: %v", c.what, list)
		}
		if list := offers(c.off, c.host); slices.Contains(list, c.what) {
			t.Errorf("%s is offered with %s", c.what, c.off)
		}
	}
}

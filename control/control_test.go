package control_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sotto/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSendAnswersTheQueuedMessage(t *testing.T) {
	c := start(t).client(t)
	m, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: "hi"})
	if err != nil || m.State != control.StateQueued || m.Text != "hi" {
		t.Fatalf("got %+v, %v", m, err)
	}
	if v := c.NodeVersion(); v != "1.2.3" {
		t.Errorf("node version %q", v)
	}
}

func TestErrorsReachTheClientWhole(t *testing.T) {
	c := start(t).client(t)
	big := strings.Repeat("x", control.MaxText+1)
	for _, tc := range []struct {
		name, method string
		params       any
		code         string
		exit         int
	}{
		{"unknown contact", "message.send", control.SendParams{To: "eve", Text: "x"}, "contact_not_found", control.ExitNotFound},
		{"empty text", "message.send", control.SendParams{To: "bob"}, "empty_text", control.ExitUsage},
		{"no recipient", "message.send", control.SendParams{Text: "x"}, "no_recipient", control.ExitUsage},
		{"one byte over 64 KiB", "message.send", control.SendParams{To: "bob", Text: big}, "too_large", control.ExitRefused},
		{"negative expiry", "message.send", control.SendParams{To: "bob", Text: "x", ExpireSeconds: -1}, "bad_expiry", control.ExitUsage},
		{"not verified", "message.send", control.SendParams{To: "bob", Text: "x", RequireVerified: true}, "not_verified", control.ExitUnverified},
		{"unknown parameter", "message.send", map[string]any{"to": "bob", "text": "x", "exprie_s": 1}, "bad_parameters", control.ExitUsage},
		{"wrong type", "message.send", map[string]any{"to": 1}, "bad_parameters", control.ExitUsage},
		{"unknown method", "send", nil, "no_such_method", control.ExitUsage},
		{"network without a network", "peers.list", control.None{}, "node_offline", control.ExitNoNode},
		{"too many at once", "message.list", control.ListParams{Conv: "bob", Limit: 1001}, "bad_limit", control.ExitUsage},
		{"state that does not exist", "message.wait", control.WaitParams{ID: "m", State: "sent"}, "bad_state", control.ExitUsage},
		{"endless wait", "message.wait", control.WaitParams{ID: "m", State: "held", TimeoutMS: 1 << 60}, "bad_timeout", control.ExitUsage},
		{"plain error of the core", "identity.show", control.None{}, "failed", control.ExitFailed},
		{"panic", "inbox.list", control.None{}, "internal", control.ExitFailed},
		{"cursor without a name", "events.cursor", control.CursorParams{}, "bad_cursor", control.ExitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := control.Call[control.None](t.Context(), c, tc.method, tc.params)
			var e *control.Error
			if !errors.As(err, &e) || e.Code != tc.code || e.Exit != tc.exit {
				t.Fatalf("got %#v, want %s with exit %d", err, tc.code, tc.exit)
			}
			if e.Message == "" || e.Hint == "" {
				t.Errorf("%+v does not say what happened and what to do", e)
			}
		})
	}
	if _, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: big[1:]}); err != nil {
		t.Errorf("64 KiB refused: %v", err)
	}
}

func TestAnUnknownMethodNamesTheLikelyOne(t *testing.T) {
	c := start(t).client(t)
	_, err := control.Call[control.None](t.Context(), c, "send", control.None{})
	var e *control.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, "message.send") {
		t.Fatalf("got %#v", err)
	}
}

func TestRequestsAndContactsAreApart(t *testing.T) {
	c := start(t).client(t)
	contacts, err := c.Contacts(t.Context())
	if err != nil || len(contacts) != 1 || contacts[0].Name != "bob" {
		t.Errorf("contacts %v, %v", contacts, err)
	}
	requests, err := control.Call[control.ContactList](t.Context(), c, "request.list", control.None{})
	if err != nil || len(requests.Contacts) != 1 || requests.Contacts[0].Name != "mallory" {
		t.Errorf("requests %v, %v", requests, err)
	}
}

func TestWaitAnswersWhenTheStateIsReached(t *testing.T) {
	n := start(t)
	c := n.client(t)
	m, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: "hi"})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan control.Message, 1)
	go func() {
		w, err := c.Wait(t.Context(), m.ID, control.StateDelivered, time.Hour)
		if err != nil {
			t.Error(err)
		}
		got <- w
	}()
	n.core.settle(m.ID, control.StateHeld, "")
	n.core.settle(m.ID, control.StateDelivered, "")
	if w := <-got; w.State != control.StateDelivered {
		t.Errorf("got %+v", w)
	}
	if w, err := c.Wait(t.Context(), m.ID, control.StateQueued, 0); err != nil || w.State != control.StateDelivered {
		t.Errorf("a later state counts as an earlier one: %+v, %v", w, err)
	}
}

func TestWaitSaysWhyTheStateWasNotReached(t *testing.T) {
	n := start(t)
	c := n.client(t)
	first, _ := c.Send(t.Context(), control.SendParams{To: "bob", Text: "a"})
	_, err := c.Wait(t.Context(), first.ID, control.StateDelivered, time.Millisecond)
	if !errors.Is(err, &control.Error{Code: "not_in_time"}) {
		t.Errorf("time over: %v", err)
	}
	n.core.settle(first.ID, control.StateExpired, "30 days are over")
	_, err = c.Wait(t.Context(), first.ID, control.StateDelivered, time.Hour)
	if !errors.Is(err, &control.Error{Code: "message_expired"}) || !strings.Contains(err.Error(), "30 days are over") {
		t.Errorf("expired: %v", err)
	}
	_, err = c.Wait(t.Context(), "m99", control.StateDelivered, time.Hour)
	if !errors.Is(err, &control.Error{Code: "message_not_found"}) {
		t.Errorf("unknown id: %v", err)
	}
}

func TestWaitEndsWithTheNode(t *testing.T) {
	n := start(t)
	c := n.client(t)
	m, _ := c.Send(t.Context(), control.SendParams{To: "bob", Text: "a"})
	ended := make(chan error, 1)
	go func() {
		_, err := c.Wait(t.Context(), m.ID, control.StateRead, time.Hour)
		ended <- err
	}()
	stream, err := c.Events(t.Context(), control.StreamParams{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	var e *control.Error
	if err := <-ended; !errors.As(err, &e) || e.Exit != control.ExitNoNode { // stopped, or gone if it had not begun
		t.Errorf("waiting call got %v", err)
	}
	if e, err := stream.Next(); err != nil || e.Kind != control.EventStopped {
		t.Errorf("the stream's last event is %+v, %v", e, err)
	}
	if _, err := stream.Next(); err == nil {
		t.Error("the stream went on after the node's end")
	}
	if err := <-n.done; err != nil {
		t.Error(err)
	}
	n.done <- nil
	if _, err := control.Connect(t.Context(), n.path); !errors.Is(err, control.ErrNoNode) {
		t.Errorf("after the end: %v", err)
	}
}

func TestEventsResumeWithoutLossOrRepeat(t *testing.T) {
	n := start(t)
	c := n.client(t)
	for range 5 {
		if _, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	three := uint64(3)
	stream, err := c.Events(t.Context(), control.StreamParams{After: &three})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	n.core.settle("m00000001", control.StateDelivered, "")
	for want := uint64(4); want <= 6; want++ {
		if e, err := stream.Next(); err != nil || e.Seq != want {
			t.Fatalf("got event %d, %v; want %d", e.Seq, err, want)
		}
	}
}

func TestAStreamWithoutAPlaceBeginsNow(t *testing.T) {
	n := start(t)
	c := n.client(t)
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "old"})
	stream, err := c.Events(t.Context(), control.StreamParams{Kinds: []string{control.EventMessage, control.EventReset}})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	n.core.settle("m00000001", control.StateDelivered, "") // a kind that was not asked for
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "new"})
	if e, err := stream.Next(); err != nil || e.Message == nil || e.Message.Text != "new" || stream.From != 1 {
		t.Errorf("got %+v, %v from %d", e, err, stream.From)
	}
}

func TestACursorBeginsAtTheEndAndKeepsItsPlace(t *testing.T) {
	n := start(t)
	c := n.client(t)
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "before"})
	first, err := control.Call[control.Cursor](t.Context(), c, "events.cursor", control.CursorParams{Cursor: "bot"})
	if err != nil || !first.New || first.Seq != 1 {
		t.Fatalf("new cursor %+v, %v", first, err)
	}
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "while the bot is away"})
	stream, err := c.Events(t.Context(), control.StreamParams{Cursor: "bot"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	e, err := stream.Next()
	if err != nil || e.Seq != 2 {
		t.Fatalf("got %+v, %v", e, err)
	}
	if err := c.Ack(t.Context(), "bot", e.Seq); err != nil {
		t.Fatal(err)
	}
	again, err := control.Call[control.Cursor](t.Context(), c, "events.cursor", control.CursorParams{Cursor: "bot"})
	if err != nil || again.New || again.Seq != 2 {
		t.Errorf("cursor after the ack %+v, %v", again, err)
	}
}

func TestAReaderBehindTheLogIsToldToStartOver(t *testing.T) {
	n := start(t)
	n.core.first = 100
	c := n.client(t)
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "x"})
	for name, after := range map[string]uint64{"trimmed away": 7, "from another database": 5000} {
		t.Run(name, func(t *testing.T) {
			stream, err := c.Events(t.Context(), control.StreamParams{After: &after})
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if e, err := stream.Next(); err != nil || e.Kind != control.EventReset {
				t.Errorf("got %+v, %v", e, err)
			}
		})
	}
}

func TestServerSentEventsResumeByLastEventID(t *testing.T) {
	n := start(t)
	c := n.client(t)
	for range 2 {
		_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "x"})
	}
	resp := n.raw(t, "GET", "/v1/events", "", map[string]string{"Last-Event-ID": "1"})
	defer func() { _ = resp.Body.Close() }()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %q", got)
	}
	in := bufio.NewScanner(resp.Body)
	var lines []string
	for len(lines) < 3 && in.Scan() {
		lines = append(lines, in.Text())
	}
	if len(lines) < 3 || lines[0] != "id: 2" || lines[1] != "event: message" || !strings.HasPrefix(lines[2], `data: {"v":1,"seq":2`) {
		t.Errorf("got %q", lines)
	}
}

// raw makes one HTTP request through the socket as any program could.
func (n *node) raw(t *testing.T, method, path, body string, headers map[string]string) *http.Response {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.path)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://sotto"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestRequestsThatAreNotOursAreRefused(t *testing.T) {
	n := start(t)
	body := `{"jsonrpc":"2.0","id":1,"method":"node.status"}`
	js := map[string]string{"Content-Type": "application/json"}
	with := func(k, v string) map[string]string {
		return map[string]string{"Content-Type": "application/json", k: v}
	}
	for _, tc := range []struct {
		name, method, path, body string
		headers                  map[string]string
		status                   int
		contains                 string
	}{
		{"a web page's origin", "POST", "/v1/rpc", body, with("Origin", "http://localhost"), 403, "browser_refused"},
		{"an opaque origin", "GET", "/v1/events", "", with("Origin", "null"), 403, "browser_refused"},
		{"a referrer", "GET", "/v1/schema", "", with("Referer", "http://evil/"), 403, "browser_refused"},
		{"a form", "POST", "/v1/rpc", body, map[string]string{"Content-Type": "text/plain"}, 415, "bad_content_type"},
		{"no content type", "POST", "/v1/rpc", body, nil, 415, "bad_content_type"},
		{"a state change by GET", "GET", "/v1/rpc", "", js, 404, "no_such_path"},
		{"another path", "GET", "/v2/rpc", "", js, 404, "no_such_path"},
		{"a body over the limit", "POST", "/v1/rpc", strings.Repeat(" ", control.MaxBody+1), js, 413, "too_large"},
		{"a place that is no number", "GET", "/v1/events?after=x", "", js, 400, "bad_place"},
		{"bytes that are not UTF-8", "POST", "/v1/rpc", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", js, 200, "not valid UTF-8"},
		{"half an object", "POST", "/v1/rpc", body[:20], js, 200, "-32700"},
		{"nothing", "POST", "/v1/rpc", "", js, 200, "-32700"},
		{"an empty batch", "POST", "/v1/rpc", "[]", js, 200, "error"},
		{"an endless batch", "POST", "/v1/rpc", "[" + strings.Repeat("{},", 200) + "{}]", js, 200, "at most 64"},
		{"another version of JSON-RPC", "POST", "/v1/rpc", `{"jsonrpc":"1.0","id":1,"method":"node.status"}`, js, 200, "error"},
		{"positional parameters", "POST", "/v1/rpc", `{"jsonrpc":"2.0","id":1,"method":"message.send","params":["bob","hi"]}`, js, 200, "bad_parameters"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := n.raw(t, tc.method, tc.path, tc.body, tc.headers)
			defer func() { _ = resp.Body.Close() }()
			answer, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.status || !strings.Contains(string(answer), tc.contains) {
				t.Errorf("got %d %s", resp.StatusCode, answer)
			}
			if resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("CORS is allowed")
			}
		})
	}
}

func TestABatchIsAnsweredInOrderWithoutItsNotifications(t *testing.T) {
	n := start(t)
	resp := n.raw(t, "POST", "/v1/rpc", `[{"jsonrpc":"2.0","id":"a","method":"node.status"},{"jsonrpc":"2.0","method":"node.status"},{"jsonrpc":"2.0","id":7,"method":"nope"}]`,
		map[string]string{"Content-Type": "application/json; charset=utf-8"})
	defer func() { _ = resp.Body.Close() }()
	var got []struct {
		ID     any             `json:"id"`
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].ID != "a" || got[0].Result == nil || got[1].ID != 7.0 || got[1].Error == nil {
		t.Errorf("got %+v", got)
	}
	lone := n.raw(t, "POST", "/v1/rpc", `{"jsonrpc":"2.0","method":"node.status"}`, map[string]string{"Content-Type": "application/json"})
	defer func() { _ = lone.Body.Close() }()
	if lone.StatusCode != http.StatusNoContent {
		t.Errorf("a notification got %d", lone.StatusCode)
	}
}

func TestABatchStopsWhereItsAnswersGrowTooLarge(t *testing.T) {
	n := start(t)
	n.core.long = strings.Repeat("x", 1<<20)
	list := `{"jsonrpc":"2.0","id":1,"method":"message.list","params":{"conv":"bob"}}`
	resp := n.raw(t, "POST", "/v1/rpc", "["+strings.Repeat(list+",", control.MaxBatch-1)+list+"]", map[string]string{"Content-Type": "application/json"})
	defer func() { _ = resp.Body.Close() }()
	var got []struct {
		Result json.RawMessage `json:"result"`
		Error  struct {
			Data control.Error `json:"data"`
		} `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if len(got) != control.MaxBatch || got[0].Result == nil || got[len(got)-1].Error.Data.Code != "too_large" {
		t.Fatalf("%d answers, the last %+v", len(got), got[len(got)-1].Error.Data)
	}
	if asked := n.core.lists.Load(); asked > control.MaxAnswer>>20+1 {
		t.Errorf("%d requests were run", asked)
	}
}

func TestConnectionsThatSayNothingAreLimitedAndHarmNobody(t *testing.T) {
	n := start(t)
	c := n.client(t)
	for range control.MaxConns + 8 { // those beyond wait in the kernel
		idle, err := net.Dial("unix", n.path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = idle.Close() }()
	}
	if _, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: "x"}); err != nil {
		t.Error(err)
	}
}

func TestAPlaceIsOnlyDoneOnceItHappenedAndUnderASensibleName(t *testing.T) {
	c := start(t).client(t)
	_, _ = c.Send(t.Context(), control.SendParams{To: "bob", Text: "x"})
	for _, bad := range []control.AckParams{{Cursor: "", Seq: 1}, {Cursor: strings.Repeat("x", 1<<19), Seq: 1}, {Cursor: "bot", Seq: 2}, {Cursor: "bot", Seq: math.MaxUint64}} {
		var e *control.Error
		if err := c.Ack(t.Context(), bad.Cursor, bad.Seq); !errors.As(err, &e) || e.Exit != control.ExitUsage {
			t.Errorf("place %d of a reader with a name of %d bytes: %v", bad.Seq, len(bad.Cursor), err)
		}
	}
}

func TestAParameterThatIsWrongIsNamed(t *testing.T) {
	c := start(t).client(t)
	_, err := control.Call[control.None](t.Context(), c, "message.send", map[string]any{"to": "bob", "txet": "x"})
	if err == nil || !strings.Contains(err.Error(), `unknown field "txet"`) {
		t.Errorf("got %v", err)
	}
}

func TestEventStreamsAreLimited(t *testing.T) {
	c := start(t).client(t)
	for range control.MaxStreams {
		stream, err := c.Events(t.Context(), control.StreamParams{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
	}
	if _, err := c.Events(t.Context(), control.StreamParams{}); !errors.Is(err, &control.Error{Code: "too_many_streams"}) {
		t.Errorf("got %v", err)
	}
}

func TestTheSocketIsOursAlone(t *testing.T) {
	n := start(t)
	info, err := os.Stat(n.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
	dir, err := os.Stat(filepath.Dir(n.path))
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v, %v", dir.Mode(), err)
	}
}

func TestListenRefusesUnsafePlaces(t *testing.T) {
	top := t.TempDir()
	mk := func(name string, mode os.FileMode) string {
		d := filepath.Join(top, name)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
		return d
	}
	private := mk("private", 0o700)
	if err := os.Symlink(private, filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(private, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ path, code string }{
		"a directory that others enter": {filepath.Join(mk("open", 0o755), "s"), "unsafe_directory"},
		"a directory of the group":      {filepath.Join(mk("group", 0o770), "s"), "unsafe_directory"},
		"a directory that is a link":    {filepath.Join(top, "link", "s"), "unsafe_directory"},
		"a file in the socket's place":  {filepath.Join(private, "file"), "not_a_socket"},
		"a path that is too long":       {filepath.Join(private, strings.Repeat("x", 100)), "socket_path_too_long"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := control.Listen(t.Context(), tc.path)
			if err == nil {
				_ = l.Close()
			}
			if !errors.Is(err, &control.Error{Code: tc.code}) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAStaleSocketIsReplacedAndALivingOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if _, err := control.Listen(t.Context(), path); !errors.Is(err, control.ErrServed) {
		t.Errorf("a living socket: %v", err)
	}
	_ = l.Close()
	if _, err := control.Connect(t.Context(), path); !errors.Is(err, control.ErrNoNode) {
		t.Errorf("dial of a stale socket: %v", err)
	}
	again, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	_ = again.Close()
}

func TestANodeOfAnotherMajorVersionIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Sotto-Api", "2")
		w.Header().Set("Sotto-Version", "9.0.0")
	})}
	ended := make(chan struct{})
	go func() { _ = srv.Serve(l); close(ended) }()
	defer func() { _ = srv.Close(); <-ended }()
	_, err = control.Connect(t.Context(), path)
	if !errors.Is(err, &control.Error{Code: "other_version"}) || !strings.Contains(err.Error(), "9.0.0") {
		t.Errorf("got %v", err)
	}
}

func TestTheSchemaListsEveryMethodWithItsTypes(t *testing.T) {
	n := start(t)
	resp := n.raw(t, "GET", "/v1/schema", "", nil)
	defer func() { _ = resp.Body.Close() }()
	var doc struct {
		OpenRPC string `json:"openrpc"`
		Methods []struct {
			Name, Summary string
			Params        []struct {
				Name     string
				Required bool
				Schema   map[string]any
			}
			Result struct{ Schema map[string]any }
		}
		Components struct{ Schemas map[string]any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	byName := map[string]int{}
	for i, m := range doc.Methods {
		byName[m.Name] = i
		if m.Summary == "" || m.Result.Schema == nil {
			t.Errorf("%s has no summary or no result", m.Name)
		}
	}
	send := doc.Methods[byName["message.send"]]
	if send.Name != "message.send" || len(send.Params) < 3 || send.Params[0].Name != "to" || !send.Params[0].Required || send.Params[2].Required {
		t.Errorf("message.send: %+v", send)
	}
	if doc.Components.Schemas["Event"] == nil || doc.Components.Schemas["Error"] == nil {
		t.Error("events or errors are not described")
	}
}

func TestExitCodesStayAsPublished(t *testing.T) {
	got := []int{control.ExitDone, control.ExitFailed, control.ExitUsage, control.ExitNotFound, control.ExitNoNode, control.ExitNotInTime, control.ExitLocked,
		control.ExitUnverified, control.ExitRefused, control.ExitInterrupted}
	for i, want := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 130} {
		if got[i] != want {
			t.Errorf("exit code %d became %d", want, got[i])
		}
	}
}

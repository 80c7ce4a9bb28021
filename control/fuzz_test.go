package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"sotto/internal/clock"
)

// FuzzRequest throws bytes at the parser and the table. The core is nil, so a request that reaches it panics and
// must come back as an internal error; whatever comes back must be valid JSON.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"message.send","params":{"to":"bob","text":"hi"}}`,
		`[{"jsonrpc":"2.0","id":1,"method":"node.status"},{"jsonrpc":"2.0","method":"x"}]`,
		`[]`, `{}`, `null`, `{"jsonrpc":"2.0","id":{},"method":"node.status"}`, `{"jsonrpc":"2.0","id":"\ud800","method":"peers.list","params":null}`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	s := NewServer(struct{ Core }{}, Config{Clock: clock.System{}, Log: slog.New(slog.DiscardHandler), Stop: func() {}})
	f.Fuzz(func(t *testing.T, body []byte) {
		answers, _ := s.answer(context.Background(), body)
		for _, a := range answers {
			if _, err := json.Marshal(a); err != nil {
				t.Fatalf("%q got an answer that is not JSON: %v", body, err)
			}
		}
	})
}

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/creachadair/jrpc2"

	"sotto/internal/clock"
)

// Headers by which the two sides learn each other's version.
const (
	headerAPI     = "Sotto-Api"
	headerVersion = "Sotto-Version"
)

// Config is what the server needs besides the core. Net is nil when only the store is open; Stop ends the node.
type Config struct {
	Version string
	Profile string
	Data    string // the home's data directory
	Net     Net
	Stop    func()
	Clock   clock.Clock
	Log     *slog.Logger
}

// Server answers the local API.
type Server struct {
	core    Core
	cfg     Config
	started time.Time
	table   map[string]method
	order   []method
	streams chan struct{} // one slot for each open event stream
	stopped atomic.Bool   // somebody asked the node to stop
}

// NewServer prepares a server; Serve runs it.
func NewServer(core Core, cfg Config) *Server {
	s := &Server{core: core, cfg: cfg, started: cfg.Clock.Now(), table: map[string]method{}, streams: make(chan struct{}, MaxStreams)}
	s.order = s.methods()
	for _, m := range s.order {
		s.table[m.name] = m
	}
	return s
}

// graceTime is how long calls in progress may take to finish when the server ends.
const graceTime = 10 * time.Second

// Serve answers on l until the context ends, then lets requests in progress finish; it closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		BaseContext:       func(net.Listener) context.Context { return withServing(ctx) },
		ConnContext:       withPeer,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(limit(l, MaxConns)) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the local API: %w", err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), graceTime)
	defer stop()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // a client that neither reads nor leaves
	}
	<-ended
	return nil
}

// servingKey finds the context that Serve was given.
type servingKey struct{}

// withServing lets short calls finish after the server's end has begun; long ones ask ending for a context.
func withServing(ctx context.Context) context.Context {
	return context.WithValue(context.WithoutCancel(ctx), servingKey{}, ctx)
}

// ErrStopping means that the process which ran the node is ending; another one may take over.
var ErrStopping = &Error{Code: "node_stopping", Message: "the node is stopping", Hint: "Nothing is lost; start it again: sotto up", Exit: ExitNoNode}

// ErrStopped means that somebody asked the node to stop.
var ErrStopped = &Error{Code: "node_stopped", Message: "the node was stopped", Hint: "Nothing is lost; start it again: sotto up", Exit: ExitNoNode}

// ending is a context for calls that wait: it ends with the request and with the server.
func ending(ctx context.Context) (context.Context, func()) {
	serving, ok := ctx.Value(servingKey{}).(context.Context)
	if !ok {
		return ctx, func() {}
	}
	long, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(serving, func() { cancel(ErrStopping) })
	return long, func() { stop(); cancel(nil) }
}

// Handler is the API without its door: tests and other doors wrap it.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/rpc", s.rpc)
	mux.HandleFunc("GET /v1/events", s.events)
	mux.HandleFunc("GET /v1/schema", s.schema)
	mux.HandleFunc("GET /v1/version", s.version)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, Errorf(ExitUsage, "no_such_path", "The API is POST /v1/rpc, GET /v1/events, GET /v1/schema and GET /v1/version.", "no such path"))
	})
	return s.guard(mux)
}

// guard lets in only this user's own programs, and never a browser.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerAPI, strconv.Itoa(APIVersion))
		w.Header().Set(headerVersion, s.cfg.Version)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch err := peerOf(r.Context()); {
		case err != nil:
			s.cfg.Log.Warn("refused a local client", "why", err)
			refuse(w, http.StatusForbidden, Errorf(ExitRefused, "wrong_user", "Run sotto as the user who owns the node.", "this node belongs to another user"))
		case r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "":
			refuse(w, http.StatusForbidden, Errorf(ExitRefused, "browser_refused", "Use the socket from a program, without Origin or Referer.", "requests from web pages are refused"))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// hello is what a client learns first.
type hello struct {
	API     int    `json:"api"`
	Version string `json:"version"`
	Profile string `json:"profile"`
	Online  bool   `json:"online"`
	PID     int    `json:"pid"`
	Data    string `json:"data"`
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(hello{API: APIVersion, Version: s.cfg.Version, Profile: s.cfg.Profile, Online: s.cfg.Net != nil, PID: os.Getpid(), Data: s.cfg.Data})
}

func refuse(w http.ResponseWriter, status int, e *Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]*Error{"error": e})
}

// rpc answers one request or one batch, in order, each under the request's own context.
func (s *Server) rpc(w http.ResponseWriter, r *http.Request) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		refuse(w, http.StatusUnsupportedMediaType, Errorf(ExitUsage, "bad_content_type", "Send Content-Type: application/json.", "the content type must be application/json"))
		return
	}
	// A body that trickles in would hold a connection for ever; the answer may take as long as it needs.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(30 * time.Second))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		refuse(w, http.StatusRequestEntityTooLarge, Errorf(ExitRefused, "too_large", "Send less in one request.", "a request may have at most %d bytes", MaxBody))
		return
	case err != nil:
		return // the client went away
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	answers, batch := s.answer(r.Context(), body)
	if len(answers) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(streamStall))
	defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) }() // for the connection's next request
	if batch {
		_ = json.NewEncoder(w).Encode(answers)
		return
	}
	_ = json.NewEncoder(w).Encode(answers[0])
}

// answer is one JSON-RPC exchange; requests without an id get no answer.
func (s *Server) answer(ctx context.Context, body []byte) (answers []response, batch bool) {
	if !utf8.Valid(body) {
		return []response{failed("", jrpc2.Errorf(jrpc2.ParseError, "the request is not valid UTF-8"))}, false
	}
	requests, err := jrpc2.ParseRequests(body)
	switch {
	case err != nil:
		return []response{failed("", jrpc2.Errorf(jrpc2.ParseError, "the request is not valid JSON"))}, false
	case len(requests) == 0:
		return []response{failed("", jrpc2.Errorf(jrpc2.InvalidRequest, "the batch is empty"))}, false
	case len(requests) > MaxBatch:
		return []response{failed("", jrpc2.Errorf(jrpc2.InvalidRequest, "a batch has at most %d requests", MaxBatch))}, false
	}
	size := 0
	for _, p := range requests {
		if ctx.Err() != nil {
			break // nobody is left to take the answers
		}
		var a response
		if size > MaxAnswer {
			a = failed(p.ID, Errorf(ExitRefused, "too_large", "Send it in a request of its own.", "not run: the answers before it have more than %d bytes", MaxAnswer))
		} else {
			a = s.answerOne(ctx, p)
			size += len(a.Result)
		}
		if p.ID != "" || p.Error != nil {
			answers = append(answers, a)
		}
	}
	return answers, requests[0].Batch
}

func (s *Server) answerOne(ctx context.Context, p *jrpc2.ParsedRequest) (a response) {
	if p.Error != nil {
		return failed(p.ID, p.Error)
	}
	m, ok := s.table[p.Method]
	if !ok {
		return failed(p.ID, s.noSuchMethod(p.Method))
	}
	defer func() { // one bad request must not end the node
		if v := recover(); v != nil {
			s.cfg.Log.Error("panic in a local API method", "method", m.name, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			a = failed(p.ID, Errorf(ExitFailed, "internal", "Look into the log and report it.", "%s failed inside the node", m.name))
		}
	}()
	result, err := m.run(ctx, p.ToRequest())
	if err != nil {
		return failed(p.ID, err)
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return failed(p.ID, fmt.Errorf("encode the answer of %s: %w", m.name, err))
	}
	return response{Version: jrpc2.Version, ID: json.RawMessage(p.ID), Result: raw}
}

func (s *Server) noSuchMethod(name string) error {
	if len(name) > 64 {
		name = name[:64] + "…"
	}
	hint := "The methods are listed at GET /v1/schema."
	if i := slices.IndexFunc(s.order, func(m method) bool { return strings.HasSuffix(m.name, "."+name) }); i >= 0 {
		hint = "Did you mean " + s.order[i].name + "?"
	}
	e := Errorf(ExitUsage, "no_such_method", hint, "no method %q", name)
	return jrpc2.Errorf(jrpc2.MethodNotFound, "%s", e.Message).WithData(e)
}

// response is a JSON-RPC 2.0 response object.
type response struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *jrpc2.Error    `json:"error,omitempty"`
}

func failed(id string, err error) response {
	if id == "" {
		id = "null"
	}
	return response{Version: jrpc2.Version, ID: json.RawMessage(id), Error: rpcError(err)}
}

func (s *Server) send(ctx context.Context, p SendParams) (Message, error) {
	switch {
	case p.To == "":
		return Message{}, Errorf(ExitUsage, "no_recipient", "Name a contact: sotto contacts list", "nobody to send to")
	case strings.TrimSpace(p.Text) == "":
		return Message{}, Errorf(ExitUsage, "empty_text", "Give the text, or - to read it from stdin.", "the text is empty")
	case len(p.Text) > MaxText:
		return Message{}, Errorf(ExitRefused, "too_large", "Split it, at most 64 KiB in one message.", "the text has %d bytes, %d more than one message holds", len(p.Text), len(p.Text)-MaxText)
	case p.ExpireSeconds < 0:
		return Message{}, Errorf(ExitUsage, "bad_expiry", "Give a time such as 1d or 2h.", "a message cannot expire before it is sent")
	}
	if p.RequireVerified {
		c, err := s.core.Contact(ctx, p.To)
		if err != nil {
			return Message{}, err
		}
		if c.Verified != "yes" {
			return Message{}, Errorf(ExitUnverified, "not_verified", "Compare with them: sotto verify "+c.Name, "%s is not verified; nothing was sent", c.Name)
		}
	}
	m, err := s.core.Send(ctx, p)
	if err == nil && p.Key != "" {
		err = s.sameWish(ctx, p, m)
	}
	return m, err
}

// sameWish refuses a key that was used for another message: the answer would look as if this one was sent.
func (s *Server) sameWish(ctx context.Context, p SendParams, m Message) error {
	other := "text"
	if m.Text == p.Text {
		to, err := s.core.Contact(ctx, p.To)
		if err != nil || to.Name == m.Conv.Name {
			return nil // one who was renamed or removed since was written to all the same
		}
		other = "contact"
	}
	return Errorf(ExitUsage, "key_used", "Choose another key for a new message. What the key sent is shown by: sotto trace "+m.ID,
		"the key was used for another %s, in message %s; nothing was sent", other, m.ID)
}

func (s *Server) list(ctx context.Context, p ListParams) (MessageList, error) {
	if p.Limit < 0 || p.Limit > 1000 {
		return MessageList{}, Errorf(ExitUsage, "bad_limit", "Ask for 1 to 1000 messages.", "cannot show %d messages at once", p.Limit)
	}
	list, err := s.core.Messages(ctx, p)
	return MessageList{orEmpty(list)}, err
}

func (s *Server) contacts(ctx context.Context, _ None) (ContactList, error) {
	return s.contactsWhere(ctx, func(c Contact) bool { return c.State != "requested" && c.State != "removed" })
}

func (s *Server) requests(ctx context.Context, _ None) (ContactList, error) {
	return s.contactsWhere(ctx, func(c Contact) bool { return c.State == "requested" })
}

func (s *Server) contactsWhere(ctx context.Context, keep func(Contact) bool) (ContactList, error) {
	list, err := s.core.Contacts(ctx)
	kept := []Contact{}
	for _, c := range list {
		if keep(c) {
			kept = append(kept, c)
		}
	}
	return ContactList{kept}, err
}

func (s *Server) status(ctx context.Context, _ None) (Status, error) {
	st, err := s.core.Status(ctx)
	if err != nil {
		return Status{}, err
	}
	st.V, st.Version, st.API, st.Profile = 1, s.cfg.Version, APIVersion, s.cfg.Profile
	st.PID, st.Started, st.Network = os.Getpid(), s.started.UTC(), s.cfg.Net != nil
	if s.cfg.Net != nil {
		st.Net = s.cfg.Net.NetStatus()
		st.Warnings = append(st.Warnings, s.cfg.Net.Warnings()...)
	}
	st.Warnings = orEmpty(st.Warnings)
	st.Net.Addrs = orEmpty(st.Net.Addrs)
	return st, nil
}

func (s *Server) stopNode(_ context.Context, _ None) (None, error) {
	s.stopped.Store(true)
	s.cfg.Stop()
	return None{}, nil
}

func (s *Server) peers(_ context.Context, _ None) (PeerList, error) {
	if s.cfg.Net == nil {
		return PeerList{}, errOffline
	}
	return PeerList{orEmpty(s.cfg.Net.Peers())}, nil
}

func (s *Server) ping(ctx context.Context, p NameParams) (Ping, error) {
	if s.cfg.Net == nil {
		return Ping{}, errOffline
	}
	return s.cfg.Net.Ping(ctx, p.Name)
}

func (s *Server) connect(ctx context.Context, p AddrParams) (None, error) {
	if s.cfg.Net == nil {
		return None{}, errOffline
	}
	return None{}, s.cfg.Net.Connect(ctx, p.Addr)
}

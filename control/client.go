package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creachadair/jrpc2"
)

// Client talks to a running node.
type Client struct {
	path string
	http *http.Client
	node hello
	ids  atomic.Uint64
	pid  atomic.Int64 // who takes our connections, 0 where the kernel does not say
}

// Connect reaches the node at the socket and learns its version, or returns ErrNoNode when there is none.
func Connect(ctx context.Context, path string) (*Client, error) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoNode
	}
	c := &Client{path: path}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       4,
	}}
	if err := c.greet(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := dial(ctx, c.path)
	if to, ok := conn.(*net.UnixConn); ok && err == nil {
		c.pid.Store(int64(peerPID(to)))
	}
	return conn, err
}

// greet learns who answers; a process that takes connections and says nothing is as good as none.
func (c *Client) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sotto/v1/version", nil)
	if err != nil {
		return fmt.Errorf("prepare the greeting: %w", err)
	}
	resp, err := c.do(req)
	if err != nil {
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, &Error{Code: "timeout"}): // a socket's deadline may strike before its context's
			return c.silent()
		case errors.Is(err, &Error{Code: "node_gone"}):
			return ErrNoNode // it ended just now
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&c.node); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

const greetTimeout = 5 * time.Second

// silent is what a node that was stopped, or hangs, looks like.
func (c *Client) silent() error {
	pid := c.pid.Load()
	if pid == 0 {
		return Errorf(ExitNoNode, "node_silent", "End its process and start it again: sotto up", "the node takes connections but does not answer")
	}
	return Errorf(ExitNoNode, "node_silent", fmt.Sprintf("If it is only halted, wake it with kill -CONT %d; else end it with kill -9 %d and start it again: sotto up", pid, pid),
		"the node (process %d) takes connections but does not answer", pid)
}

func noNode(path string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNoNode
	case errors.Is(err, os.ErrPermission):
		return Errorf(ExitRefused, "wrong_user", "Run sotto as the user who owns the node, or choose another home with --home.", "the socket %s belongs to another user", path)
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG):
		return Errorf(ExitUsage, "socket_path_too_long", "Choose a shorter one with --socket.", "socket path %s cannot be used", path)
	default:
		return Errorf(ExitNoNode, "node_unreachable", "Start it again: sotto down, then sotto up", "reach the node at %s: %v", path, err)
	}
}

// Close frees the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// NodeVersion is the version of the node.
func (c *Client) NodeVersion() string { return c.node.Version }

// NodePID is the node's process.
func (c *Client) NodePID() int { return c.node.PID }

// NodeData is the data directory of the node's home, which need not be the one that the caller's flags name.
func (c *Client) NodeData() string { return c.node.Data }

// Online reports whether the node has its network, not only its store.
func (c *Client) Online() bool { return c.node.Online }

// Call runs one method and decodes its result; the error is an *Error.
func Call[R any](ctx context.Context, c *Client, methodName string, params any) (R, error) {
	var result R
	raw, err := c.call(ctx, methodName, params)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return result, Errorf(ExitFailed, "bad_answer", "The node may be of another version: sotto down, then sotto up", "cannot read the node's answer to %s: %v", methodName, err)
	}
	return result, nil
}

func (c *Client) call(ctx context.Context, methodName string, params any) (json.RawMessage, error) {
	body, err := json.Marshal(map[string]any{"jsonrpc": jrpc2.Version, "id": c.ids.Add(1), "method": methodName, "params": params})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", methodName, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sotto/v1/rpc", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", methodName, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header["Idempotency-Key"] = nil // sends nothing, but lets net/http dial again: a connection that the node closed between two calls is not the end of it
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  *jrpc2.Error    `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, c.broken(ctx, err)
	}
	if answer.Error != nil {
		return nil, fromRPC(answer.Error)
	}
	return answer.Result, nil
}

// do sends a request and turns away answers that are not ours: refusals, and nodes of another major version.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(req.Context(), err)
	}
	if api := resp.Header.Get(headerAPI); api != strconv.Itoa(APIVersion) {
		_ = resp.Body.Close()
		return nil, Errorf(ExitNoNode, "other_version", "Restart the node with this version: sotto down, then sotto up",
			"the node (version %q) speaks API %q, this program API %d", resp.Header.Get(headerVersion), api, APIVersion)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var refusal struct {
		Error *Error `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(&refusal); err != nil || refusal.Error == nil {
		return nil, Errorf(ExitFailed, "bad_answer", "The node may be of another version: sotto down, then sotto up", "the node answered %s", resp.Status)
	}
	return nil, refusal.Error
}

// broken names why no answer came.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return asError(ctx.Err())
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return noNode(c.path, err)
	}
	return Errorf(ExitNoNode, "node_gone", "See whether it runs: sotto status", "the node ended before it answered: %v", err)
}

// StreamParams chooses where a stream of events begins and what it holds; with neither After nor Cursor it begins now.
type StreamParams struct {
	After  *uint64
	Cursor string
	Kinds  []string
}

// Stream is an open stream of events. The node sends from From on.
type Stream struct {
	From uint64
	body io.ReadCloser
	in   *bufio.Reader
}

// Events opens a stream; it ends with the context, with Close, or with the node.
func (c *Client) Events(ctx context.Context, p StreamParams) (*Stream, error) {
	q := url.Values{}
	if p.After != nil {
		q.Set("after", strconv.FormatUint(*p.After, 10))
	}
	if p.Cursor != "" {
		q.Set("cursor", p.Cursor)
	}
	for i, k := range p.Kinds {
		if i > 0 {
			k = q.Get("kinds") + "," + k
		}
		q.Set("kinds", k)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sotto/v1/events?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("prepare the event stream: %w", err)
	}
	req.Header.Set("Accept", "application/jsonl")
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	from, err := strconv.ParseUint(resp.Header.Get("Sotto-After"), 10, 64)
	if err != nil {
		_ = resp.Body.Close()
		return nil, Errorf(ExitFailed, "bad_answer", "The node may be of another version: sotto down, then sotto up", "the event stream does not say where it begins")
	}
	return &Stream{From: from, body: resp.Body, in: bufio.NewReader(resp.Body)}, nil
}

// Next returns the next event, or io.EOF when the node ended the stream.
func (s *Stream) Next() (Event, error) {
	var e Event
	line, err := s.in.ReadBytes('\n')
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return e, Errorf(ExitFailed, "bad_answer", "The node may be of another version: sotto down, then sotto up", "cannot read an event: %v", err)
	}
	return e, nil
}

// Close ends the stream.
func (s *Stream) Close() { _ = s.body.Close() }

// Send queues a message.
func (c *Client) Send(ctx context.Context, p SendParams) (Message, error) {
	return Call[Message](ctx, c, "message.send", p)
}

// Wait waits until a message has reached a state.
func (c *Client) Wait(ctx context.Context, id, state string, timeout time.Duration) (Message, error) {
	return Call[Message](ctx, c, "message.wait", WaitParams{ID: id, State: state, TimeoutMS: Millis(timeout)})
}

// Millis is a time as parameters carry it, rounded up: 0 means no limit, which a short one must not become.
func Millis(d time.Duration) int64 { return (d + time.Millisecond - 1).Milliseconds() }

// Messages returns a page of a conversation, oldest first.
func (c *Client) Messages(ctx context.Context, p ListParams) ([]Message, error) {
	list, err := Call[MessageList](ctx, c, "message.list", p)
	return list.Messages, err
}

// Trace returns a message's life on this node.
func (c *Client) Trace(ctx context.Context, id string) (Trace, error) {
	return Call[Trace](ctx, c, "message.trace", IDParams{id})
}

// Inbox returns all conversations.
func (c *Client) Inbox(ctx context.Context) ([]Conversation, error) {
	list, err := Call[ConversationList](ctx, c, "inbox.list", None{})
	return list.Conversations, err
}

// Invite makes an invitation.
func (c *Client) Invite(ctx context.Context, p InviteParams) (Invite, error) {
	return Call[Invite](ctx, c, "invite.create", p)
}

// Add follows an invitation.
func (c *Client) Add(ctx context.Context, p AddParams) (Added, error) {
	return Call[Added](ctx, c, "contact.add", p)
}

// Contacts returns all contacts.
func (c *Client) Contacts(ctx context.Context) ([]Contact, error) {
	list, err := Call[ContactList](ctx, c, "contact.list", None{})
	return list.Contacts, err
}

// Contact returns one contact.
func (c *Client) Contact(ctx context.Context, name string) (Contact, error) {
	return Call[Contact](ctx, c, "contact.show", NameParams{name})
}

// Verify returns what to compare with a contact.
func (c *Client) Verify(ctx context.Context, name string) (Verification, error) {
	return Call[Verification](ctx, c, "contact.verify", NameParams{name})
}

// Status returns the node at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return Call[Status](ctx, c, "node.status", None{})
}

// Stop asks the node to end.
func (c *Client) Stop(ctx context.Context) error {
	_, err := Call[None](ctx, c, "node.stop", None{})
	return err
}

// Ack moves a named reader's place in the event log.
func (c *Client) Ack(ctx context.Context, cursor string, seq uint64) error {
	_, err := Call[None](ctx, c, "events.ack", AckParams{cursor, seq})
	return err
}
